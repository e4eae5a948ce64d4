import os
import subprocess
import sys

import pytest

from sb3_vla_envs import select_gl_backend
from sb3_vla_envs.mujoco import gl_backend


def test_a_driver_that_hangs_does_not_render(monkeypatch):
    def hang(*args, timeout, **kwargs):
        raise subprocess.TimeoutExpired(args, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert not gl_backend.egl_renders()


@pytest.fixture
def machine(monkeypatch):
    """A Linux machine with or without a GPU and with some OpenGL libraries."""

    def pretend(gpu, libraries, chosen=None, driver=True):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(gl_backend, "has_gpu", lambda: gpu)
        monkeypatch.setattr(gl_backend, "egl_renders", lambda: driver)
        monkeypatch.setattr(gl_backend, "loads", lambda library: library in libraries)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        if chosen is not None:
            monkeypatch.setenv("MUJOCO_GL", chosen)

    return pretend


@pytest.mark.parametrize(
    ("gpu", "libraries", "expected"),
    [
        (True, {"EGL", "OSMesa"}, "egl"),
        (False, {"EGL", "OSMesa"}, "osmesa"),
        (True, {"OSMesa"}, "osmesa"),
        (False, {"OSMesa"}, "osmesa"),
        (True, {"EGL"}, "egl"),
    ],
)
def test_egl_where_there_is_a_gpu_else_osmesa(machine, gpu, libraries, expected):
    machine(gpu, libraries)
    assert select_gl_backend() == expected
    gl_backend.configure_gl_backend()
    assert os.environ["MUJOCO_GL"] == expected


def test_egl_library_without_a_driver_falls_back_to_osmesa(machine):
    machine(True, {"EGL", "OSMesa"}, driver=False)
    assert select_gl_backend() == "osmesa"


@pytest.mark.parametrize("chosen", ["glfw", "osmesa", "EGL "])
def test_users_choice_is_respected(machine, chosen):
    machine(True, {"EGL", "OSMesa"}, chosen)
    gl_backend.configure_gl_backend()
    assert os.environ["MUJOCO_GL"] == chosen
    assert select_gl_backend() == chosen.strip().lower()


def test_no_library_names_the_packages_but_only_when_one_is_needed(machine):
    machine(False, {"EGL"})
    gl_backend.configure_gl_backend()
    assert "MUJOCO_GL" not in os.environ
    with pytest.raises(RuntimeError, match=r"apt-get install libosmesa6.*apt-get install libegl1"):
        select_gl_backend()


@pytest.mark.parametrize("value", ["disable", "Off", "0"])
def test_pictures_that_are_turned_off_are_an_error_that_says_so(machine, value):
    machine(True, {"EGL", "OSMesa"}, value)
    gl_backend.configure_gl_backend()
    with pytest.raises(RuntimeError, match=f"MUJOCO_GL={value.lower()} turns pictures off: unset it"):
        select_gl_backend()


def test_choice_without_its_library_names_the_package(machine):
    machine(True, {"OSMesa"}, "egl")
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=egl asks for libEGL.*apt-get install libegl1"):
        select_gl_backend()


def test_machine_without_opengl_imports_and_simulates_and_then_says_what_is_missing():
    code = """
import ctypes.util
ctypes.util.find_library = lambda name: None
import numpy as np
import sb3_vla_envs as envs
env = envs.MetaWorldEnv("window-open-v3", n_goals=1)
env.reset(seed=0)
env.step(np.zeros(4))
print("simulated")
try:
    envs.make_vla_env("window-open-v3", n_goals=1)
except RuntimeError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("simulated\n")
    assert "apt-get install libosmesa6" in run.stdout


def test_mujoco_imported_before_this_package_renders_too():
    code = """
import mujoco
import sb3_vla_envs as envs
env = envs.make_vla_env("window-open-v3", n_goals=1)
print(env.reset(seed=0)[0]["image"].std() > 20)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "True", run.stderr


@pytest.mark.parametrize(("chosen", "n_threads"), [(None, 0), ("2", 2)])
def test_software_rendering_takes_one_thread_a_process_unless_the_user_wants_more(chosen, n_threads):
    code = """
import time
from pathlib import Path
from sb3_vla_envs.mujoco.gl_context import shared_gl_context
shared_gl_context()
time.sleep(1)  # a thread gets its name once it runs
print(sum("llvmpipe" in comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "LP_NUM_THREADS"}
    environment["MUJOCO_GL"] = "osmesa"  # also where there is a GPU
    if chosen is not None:
        environment["LP_NUM_THREADS"] = chosen
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert int(run.stdout) == n_threads


def test_import_alone_loads_no_simulator():
    code = "import sys, sb3_vla_envs; print(sorted({'mujoco', 'metaworld', 'torch', 'stable_baselines3'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def run_beside_triton(tmp_path, code, **environment):
    """:return: What it prints, in a process in which a package of triton's name prints whether OpenGL was there before it"""
    (tmp_path / "triton.py").write_text("import sys; print('triton', 'OpenGL' in sys.modules)")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment, "PYTHONPATH": path}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("chosen", ["", "osmesa", " OSMesa"])
def test_triton_is_loaded_before_mesa_whose_llvm_it_would_take_for_its_own(chosen, tmp_path):
    code = "import sb3_vla_envs as envs; envs.make_vla_env('window-open-v3', n_goals=1).reset(seed=0)"
    assert run_beside_triton(tmp_path, code, MUJOCO_GL=chosen) == ["triton", "False"]


def test_triton_is_not_loaded_where_mesa_is_there_already_or_not_needed(tmp_path):
    assert run_beside_triton(tmp_path, "import mujoco, sb3_vla_envs", MUJOCO_GL="osmesa") == []
    assert run_beside_triton(tmp_path, "import sb3_vla_envs", MUJOCO_GL="disable") == []


def test_an_optimizer_can_be_made_beside_an_environment_with_pictures():
    code = """
import sb3_vla_envs as envs
envs.make_vla_env("window-open-v3", n_goals=1).reset(seed=0)
import torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
"""
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, f"torch's triton, where it has one, crashed: {run.stderr}"

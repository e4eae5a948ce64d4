"""What the doctor says of machines and software, good and bad."""

import sys
from email.message import Message
from importlib import metadata

import numpy as np
import pytest

from sb3_vla.runs import doctor
from sb3_vla.runs.cli import main

GB = 2**30


def test_this_machine_works(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    subjects = {line[7:21].strip() for line in lines if line.startswith(("ok", "hurts"))}
    assert {"sb3-vla", "packages", "[metaworld]", "OpenGL", "processor", "threads", "GPU", "memory"} <= subjects
    assert lines[-1] == "Nothing hurts" or lines[-1].startswith("0 will not work")


def test_what_does_not_work_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_free_memory", lambda: GB // 2)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAILS  memory          0.5 GB free" in text and "1 will not work" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("threads", "cpus", "load", "policy", "trouble"),
    [
        (2, 2, 0.1, "", ""),
        (1, 2, 1.9, "passive", ""),
        (1, 1, 0.0, "", ""),
        (1, 2, 6.5, "", "more than two processes for each CPU"),
        (1, 1.5, 0.0, "", ""),
        (64, 4, 0.1, "", "OMP_NUM_THREADS=4"),
        (2, 0.5, 0.1, "", "OMP_NUM_THREADS=1"),
        (4, 4, 3.9, "", "OMP_NUM_THREADS=1"),
        (1, 8, 0.1, "", "unset OMP_NUM_THREADS"),
        (2, 2, 0.1, "passive", "OMP_WAIT_POLICY"),
    ],
)
def test_threads(threads, cpus, load, policy, trouble):
    found = doctor.look_at_threads(threads, cpus, load, policy)
    assert found.works and (trouble in found.trouble if trouble else not found.trouble)


@pytest.mark.parametrize(("free", "state"), [(8 * GB, "ok"), (2 * GB, "hurts"), (GB // 2, "FAILS")])
def test_memory(free, state):
    assert str(doctor.look_at_memory(free)).startswith(state)


@pytest.mark.parametrize(("free", "state"), [(GB, "ok"), (63 * 2**20, "hurts"), (2**20, "FAILS")])
def test_shared_memory(free, state):
    found = doctor.look_at_shared_memory(free)
    assert str(found).startswith(state) and ("--shm-size" in found.trouble) == (state != "ok")


def test_package_out_of_bounds_or_missing(monkeypatch):
    versions = {"numpy": "1.26.4", "torch": "2.13.0+cpu"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    needs = ["numpy<3,>=2", "torch<3,>=2.8", "gymnasium>=1.4", 'peft>=0.18; extra == "lora"', 'torch>=2.8; extra == "lora"']
    described = Message()
    described["Provides-Extra"] = "lora"
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: described)
    monkeypatch.setattr(doctor.metadata, "version", version)
    packages, *extras = doctor.look_at_packages()
    assert not packages.works and packages.found == "numpy 1.26.4, torch 2.13.0+cpu, gymnasium missing"
    assert packages.trouble.startswith("numpy 1.26.4 is not <3,>=2, gymnasium")
    (lora,) = extras
    assert lora.subject == "[lora]" and lora.found == "not installed (peft)" and lora.works and not lora.trouble


def test_package_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_vla.api", None)
    *_, last = doctor.examine()
    assert last.subject == "import" and not last.works and "sb3_vla.api" in last.trouble


def test_missing_opengl_library_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda library: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    found = doctor.look_at_rendering()
    assert not found.works and "apt-get install libosmesa6" in found.trouble


def test_driver_that_draws_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "_draw", lambda: np.zeros((64, 64, 3), np.uint8))
    assert not doctor.look_at_rendering().works

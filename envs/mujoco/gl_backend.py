"""Which OpenGL library MuJoCo shall use for off-screen rendering."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
# Values of MUJOCO_GL with which MuJoCo makes no context
_DISABLING = ("disable", "disabled", "off", "false", "0")
_SECONDS_TO_TRY = 60


def select_gl_backend() -> str:
    """
    The OpenGL backend to render with: what ``MUJOCO_GL`` says, else EGL where there is a GPU, else OSMesa.

    :return: A value for ``MUJOCO_GL``; on other systems than Linux ``"default"``, MuJoCo's own choice
    :raises RuntimeError: If the library needed is not installed, or ``MUJOCO_GL`` turns rendering off
    """
    chosen = _chosen()
    if chosen in _DISABLING:
        raise RuntimeError(f"MUJOCO_GL={chosen} turns pictures off: unset it, or set it to egl or osmesa")
    if not sys.platform.startswith("linux"):
        return chosen or "default"
    if not chosen:
        found = find_gl_backend()
        if found is None:
            raise RuntimeError(
                "Found no OpenGL library for off-screen rendering. Install one: `apt-get install libosmesa6` (software "
                "rendering, works everywhere) or `apt-get install libegl1` (on a machine with a GPU)."
            )
        return found
    if chosen in _LIBRARIES and not loads(_LIBRARIES[chosen]):
        package = {"egl": "libegl1", "osmesa": "libosmesa6"}[chosen]
        raise RuntimeError(
            f"MUJOCO_GL={chosen} asks for lib{_LIBRARIES[chosen]}, which is not installed: `apt-get install {package}`, "
            "or unset MUJOCO_GL to let sb3_vla_envs choose."
        )
    return chosen


def find_gl_backend() -> str | None:
    """
    The best backend this Linux machine has, whatever ``MUJOCO_GL`` says.

    :return: ``"egl"``, ``"osmesa"``, or ``None`` if neither library is installed
    """
    if has_gpu() and loads(_LIBRARIES["egl"]) and egl_renders():
        return "egl"
    return "osmesa" if loads(_LIBRARIES["osmesa"]) else None


def configure_gl_backend() -> None:
    """
    Set ``MUJOCO_GL`` where it is unset and a backend is there, and load what must come before it; called when the package is
    imported.

    MuJoCo reads the variable when it is imported and without it takes GLFW, which needs a display. A missing library is
    no error here: environments without pictures do not need one.
    """
    if not sys.platform.startswith("linux"):
        return
    if not _chosen():
        found = find_gl_backend()
        if found is not None:
            os.environ["MUJOCO_GL"] = found
    _load_triton_before_mesa()


def _chosen() -> str:
    return os.environ.get("MUJOCO_GL", "").strip().lower()  # as MuJoCo reads it


def _load_triton_before_mesa() -> None:
    """
    Import triton where it is installed, as torch does with the first optimizer of a process.

    Mesa comes with LLVM, whose symbols MuJoCo's way of loading it hands to every library that is loaded later. triton (3.7 and
    later) takes them for those of its own LLVM and crashes the process; see https://github.com/tensorflow/tensorflow/issues/124205,
    of another library that does so. Loaded before Mesa it has its own.
    """
    if _chosen() in _LIBRARIES and "OpenGL" not in sys.modules:  # else it is too late, and would crash here
        with suppress(ImportError):  # torch for CPUs comes without it
            importlib.import_module("triton")


def has_gpu() -> bool:
    """
    :return: Whether this machine shows a GPU
    """
    return Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("renderD*"))


def egl_renders() -> bool:
    """
    Try in another process: in a container EGL's library may be there without a driver.

    :return: Whether EGL gives a context
    """
    program = "import mujoco.egl; mujoco.egl.GLContext(8, 8).make_current()"
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    try:
        probe = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=_SECONDS_TO_TRY)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def loads(library: str) -> bool:
    """
    :param library: Its name without ``lib``
    :return: Whether it is installed and can be loaded
    """
    name = ctypes.util.find_library(library)
    if name is None:
        return False
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True

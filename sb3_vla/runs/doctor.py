"""What this machine and its software are, and what of it will hurt: ``sb3-vla doctor``."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from ..common.version import __version__

_DISTRIBUTION = "sb3-vla"
_MB = 2**20
_GB = 2**30
_SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/><camera name="above" pos="0 0 2"/><geom type="box" size=".4 .2 .1" rgba="1 0 0 1"/>
</worldbody></mujoco>
"""


@dataclass(frozen=True)
class Finding:
    """
    One thing looked at.

    :param subject: What was looked at
    :param found: What it is
    :param trouble: What of it hurts, and what to do; empty if nothing does
    :param works: Whether things can work with it
    """

    subject: str
    found: str
    trouble: str = ""
    works: bool = True

    def __str__(self) -> str:
        state = "ok" if not self.trouble else "hurts" if self.works else "FAILS"
        lines = [f"{state:5}  {self.subject:14}  {self.found}", *([f"{'':23}{self.trouble}"] if self.trouble else [])]
        return "\n".join(lines)


def report() -> bool:
    """
    Examine everything, and print it line by line.

    :return: Whether all can work
    """
    findings = []
    for finding in examine():
        print(finding, flush=True)
        findings.append(finding)
    failing = sum(not finding.works for finding in findings)
    hurting = sum(bool(finding.trouble) for finding in findings) - failing
    print(f"{failing} will not work, {hurting} hurt" if failing or hurting else "Nothing hurts")
    return not failing


def examine() -> Iterator[Finding]:
    """
    Look at everything, the quick things first.

    :return: What was found, one after the other
    """
    yield Finding("sb3-vla", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from look_at_packages()
    broken = try_import("sb3_vla.api")
    if broken:
        yield broken
        return
    yield look_at_rendering()
    yield look_at_processor()
    yield look_at_threads(*_threads_and_cpus(), os.getloadavg()[0], os.environ.get("OMP_WAIT_POLICY", ""))
    yield look_at_gpu()
    yield look_at_memory(_free_memory())
    if Path("/dev/shm").is_dir():
        free = os.statvfs("/dev/shm")
        yield look_at_shared_memory(free.f_bavail * free.f_frsize)


def look_at_packages() -> Iterator[Finding]:
    """
    :return: The packages that sb3-vla needs, then its extras
    """
    try:
        requirements = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "unknown", "sb3-vla is not installed here, only found: pip install it to have them checked")
        return
    needed = {requirement.name: _fit(requirement) for requirement in requirements if _applies(requirement, "")}
    unfit = [problem for _, problem in needed.values() if problem]
    mend = f"{', '.join(unfit)}: pip install --upgrade sb3-vla" if unfit else ""
    yield Finding("packages", ", ".join(f"{name} {version}" for name, (version, _) in needed.items()), mend, not unfit)

    for extra in sorted(metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []):
        if extra == "dev":
            continue
        of_extra = [requirement for requirement in requirements if _applies(requirement, extra)]
        others = [requirement for requirement in of_extra if requirement.name not in {_DISTRIBUTION, *needed}]
        fits = {requirement.name: _fit(requirement) for requirement in others}
        missing = [problem for version, problem in fits.values() if version == "missing"]
        wrong = [problem for version, problem in fits.values() if problem and version != "missing"]
        found = f"not installed ({', '.join(missing)})" if missing else ", ".join(f"{n} {v}" for n, (v, _) in fits.items())
        trouble = f"{', '.join(wrong)}: pip install --upgrade 'sb3-vla[{extra}]'" if wrong else ""
        yield Finding(f"[{extra}]", found, trouble)


def try_import(module: str) -> Finding | None:
    """
    :param module: Its name
    :return: What is wrong with it, if it can't be imported
    """
    try:
        import_module(module)
    except Exception as error:
        return Finding("import", module, f"{type(error).__name__}: {error}", works=False)
    return None


def look_at_rendering() -> Finding:
    """
    Draw a red box.

    :return: Which OpenGL does, if one does
    """
    from sb3_vla_envs.mujoco.gl_backend import has_gpu, select_gl_backend

    try:
        backend = select_gl_backend()
        picture = _draw()
    except Exception as error:
        mend = f"{error} Without pictures only state observations work." if str(error) else type(error).__name__
        return Finding("OpenGL", os.environ.get("MUJOCO_GL") or "none", " ".join(mend.split()), works=False)
    middle = picture[32, 32].astype(int)
    if middle[0] < middle[1:].max() + 30:
        return Finding("OpenGL", backend, "it draws a red box in another color: try MUJOCO_GL=osmesa", works=False)
    trouble = ""
    if backend == "osmesa" and has_gpu():
        trouble = "it draws on the CPU though there is a GPU: install libegl1 and the GPU driver's EGL library"
    return Finding("OpenGL", f"{backend}{', in software' if backend == 'osmesa' else ''}", trouble)


def look_at_processor() -> Finding:
    """
    :return: What of it matters for torch
    """
    import torch as th

    capability = th.backends.cpu.get_cpu_capability()
    bfloat16 = th.cpu._is_avx512_bf16_supported() or th.cpu._is_amx_tile_supported()
    precision = "multiplies in bfloat16" if bfloat16 else "no bfloat16: autocast='auto' stays with float32"
    slow = (
        "torch finds neither AVX2 nor better, and is slow"
        if platform.machine() == "x86_64" and capability == "DEFAULT"
        else ""
    )
    return Finding("processor", f"{platform.machine()}, {capability}, {precision}", slow)


def look_at_threads(threads: int, cpus: float, load: float, wait_policy: str = "") -> Finding:
    """
    :param threads: Of torch
    :param cpus: That this process may use
    :param load: Processes that ran in the last minute, on average
    :param wait_policy: ``OMP_WAIT_POLICY``
    :return: Whether that goes together
    """
    found = f"torch uses {threads} of {cpus:g} CPUs; {load:.1f} were busy in the last minute"
    if threads > max(cpus, 1):
        return Finding("threads", found, f"more threads than CPUs wait for each other: OMP_NUM_THREADS={max(int(cpus), 1)}")
    if load > cpus - 0.5 and threads > 1:
        return Finding("threads", found, "the machine is busy: beside other trainings OMP_NUM_THREADS=1 is quickest")
    if load > 2 * cpus:
        return Finding("threads", found, "more than two processes for each CPU: all take as much longer")
    if load < cpus / 2 and threads < int(cpus):
        return Finding("threads", found, "CPUs are idle: unset OMP_NUM_THREADS, but for other trainings beside this one")
    if load < cpus / 2 and wait_policy.lower() == "passive":
        return Finding("threads", found, "OMP_WAIT_POLICY=passive makes training 1.6 times as long on a machine of its own")
    return Finding("threads", found)


def look_at_gpu() -> Finding:
    """
    :return: What torch can use
    """
    import torch as th

    if th.cuda.is_available():
        free, total = th.cuda.mem_get_info()
        name = th.cuda.get_device_name()
        return Finding("GPU", f"{name}, {free / _GB:.1f} of {total / _GB:.1f} GB free, CUDA {th.version.cuda}")
    if not Path("/dev/nvidia0").exists():
        return Finding("GPU", "none")
    if th.version.cuda is None:
        return Finding("GPU", "not used", f"torch {th.__version__} is a build without CUDA: install one that has it")
    return Finding("GPU", "not used", f"torch is built for CUDA {th.version.cuda}, but can't reach the GPU: update its driver")


def look_at_memory(free: int) -> Finding:
    """
    :param free: Bytes that this process can have
    :return: Whether they are enough
    """
    found = f"{free / _GB:.1f} GB free"
    if free < _GB:
        return Finding("memory", found, "the default policy alone takes 1.1 GB to train", works=False)
    if free < 3 * _GB:
        mend = "the quickstart takes 1.1 GB and 1.2 GB of 16 environments: take fewer (train.n_envs, eval.n_envs)"
        return Finding("memory", found, mend)
    return Finding("memory", found)


def look_at_shared_memory(free: int) -> Finding:
    """
    :param free: Bytes of ``/dev/shm``
    :return: Whether they are enough for the observations of many environments
    """
    found = f"{free / _MB:.0f} MB free in /dev/shm"
    mend = "observations of many environments pass through it: docker run --shm-size=1g, or mount it larger"
    return Finding("shared memory", found, mend if free < 64 * _MB else "", works=free >= 4 * _MB)


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    return requirement.marker.evaluate({"extra": extra}) and (not extra or not requirement.marker.evaluate({"extra": ""}))


def _fit(requirement: Requirement) -> tuple[str, str]:
    """
    :param requirement: A package, with bounds
    :return: The version there is, or ``"missing"``; what is wrong with it, or nothing
    """
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing", requirement.name
    fits = requirement.specifier.contains(version, prereleases=True)
    return version, "" if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def _draw() -> np.ndarray:
    import mujoco

    from sb3_vla_envs import Camera, SceneRenderer

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return SceneRenderer(model, [Camera("above", 64, 64)], "plain").render(data)


def _threads_and_cpus() -> tuple[int, float]:
    import torch as th

    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")  # of a container
    return th.get_num_threads(), min(cpus, int(quota) / int(period)) if quota.isdigit() else cpus


def _free_memory() -> int:
    import torch as th

    from ..common.free_memory import free_memory

    return free_memory(th.device("cpu"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""

"""A long training: memory, open files and throughput stay what they are."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from run_settings import ENVIRONMENT, TRAIN, write_settings
from tally import Tally

from sb3_vla.common.run_folder import RunFolder

_SECONDS_BETWEEN = 5.0
_WARM_UP = 0.2  # of the time, in which buffers fill
_GROWTH = {"megabytes": 0.1, "open files": 0.0, "processes": 0.0}  # allowed, as a part of what there was


def soak(minutes: float, picture: Path) -> Tally:
    """
    :param minutes: How long
    :param picture: Gets curves of it
    :return: What came of it, each measure a try
    """
    tally = Tally(f"{minutes:g} minutes of training: memory, open files, processes, throughput")
    with tempfile.TemporaryDirectory() as temporary:
        config = write_settings(Path(temporary) / "config.yml", 10**9)
        folder = RunFolder(Path(temporary) / "run")
        command = [*TRAIN, "--config", str(config), "--out", str(folder.path)]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began, samples = time.monotonic(), []
        while time.monotonic() - began < 60 * minutes and process.poll() is None:
            time.sleep(_SECONDS_BETWEEN)
            samples.append({"seconds": time.monotonic() - began, **_measure(process.pid, folder)})
        if process.poll() is not None:
            tally.lose(f"it ended by itself, with {process.returncode}")
            return tally
        process.terminate()
        process.wait(120)
    samples = [sample for sample in samples if sample["chunks"] > 0]
    steady = samples[int(_WARM_UP * len(samples)) :]
    _compare(tally, steady)
    _draw(samples, picture)
    return tally


def _measure(pid: int, folder: RunFolder) -> dict[str, float]:
    """:return: Of the process and all that it started; and the timesteps of the newest checkpoint"""
    pids = [pid, *_descendants(pid)]
    memory = files = 0
    for each in pids:
        try:
            memory += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{each}/fd"))
        except OSError:  # it has just ended
            pass
    names = [int(path.name) for path in folder.checkpoints.glob("*") if path.name.isdecimal()]
    return {"megabytes": memory / 1e6, "open files": files, "processes": len(pids), "chunks": max(names, default=0)}


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in map(int, children) for each in (child, *_descendants(child))]


def _compare(tally: Tally, samples: list[dict[str, float]]) -> None:
    """Hold the second half against the first."""
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    for name, growth in _GROWTH.items():
        before, after = (float(np.median([sample[name] for sample in half])) for half in halves)
        if after > before * (1 + growth):
            tally.lose(f"{name}: {before:g}, then {after:g}")
        else:
            tally.survived(f"{name} {before:.0f}, then {after:.0f}")
    rates = [(half[-1]["chunks"] - half[0]["chunks"]) / (half[-1]["seconds"] - half[0]["seconds"]) for half in halves]
    # Other processes of the machine count, too
    (tally.survived if rates[1] > rates[0] / 2 else tally.lose)(f"chunks a second {rates[0]:.1f}, then {rates[1]:.1f}")


def _draw(samples: list[dict[str, float]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    for number, name in enumerate(("megabytes", "open files", "chunks"), start=1):
        axes = figure.add_subplot(1, 3, number)
        values = [sample[name] for sample in samples]
        axes.plot(minutes, values)
        axes.set(title=name, xlabel="minutes", ylim=(0, 1.1 * max(values)))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=90)

"""How much memory saving and loading demonstrations takes: python benchmarks/demonstration_memory.py [--episodes 200]"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sb3_vla_envs import Demonstration, load_demonstrations, save_demonstrations

RESULTS = Path(__file__).parent / "results"
CHUNKS, CHUNK_SIZE = 12, 8  # of an episode of about 90 steps
CAMERAS = {"image": 96, "image_gripperPOV": 64}  # pixels


def main() -> None:
    """Measure making, saving, loading and drawing batches, each in a process of its own, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--only", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(STEPS[args.only](args.file, args.episodes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demos.npz"
        rows = {name: _in_new_process(name, file, args.episodes) for name in STEPS}
        size = file.stat().st_size / 2**20
    for name, row in rows.items():
        print(f"{name:22} {row['seconds']:6.2f} s, {row['peak_mib']:7.1f} MiB more at the peak (file: {size:.1f} MiB)")
    RESULTS.mkdir(exist_ok=True)
    content = {"episodes": args.episodes, "file_mib": round(size, 1), "steps": rows}
    (RESULTS / "demonstration_memory.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _episode(seed: int) -> Demonstration:
    rng = np.random.default_rng(seed)
    pictures = {key: rng.integers(0, 256, (CHUNKS, size, size, 3), dtype=np.uint8) for key, size in CAMERAS.items()}
    state = rng.normal(size=(CHUNKS, 4)).astype(np.float32)
    actions = rng.normal(size=(CHUNKS, CHUNK_SIZE, 4)).astype(np.float32)
    return Demonstration("push-v3", {**pictures, "state": state}, actions, np.full(CHUNKS, CHUNK_SIZE), True)


def _save(file: Path, n_episodes: int) -> dict[str, float]:
    demonstrations = [_episode(seed) for seed in range(n_episodes)]
    return _measured(lambda: save_demonstrations(file, demonstrations))


def _load(file: Path, n_episodes: int) -> dict[str, float]:
    return _measured(lambda: load_demonstrations(file))


def _load_and_read(file: Path, n_episodes: int) -> dict[str, float]:
    def read() -> None:
        for demonstration in load_demonstrations(file):
            demonstration.observations["image"].sum()

    return _measured(read)


STEPS = {"save": _save, "load": _load, "load and read all": _load_and_read}


def _measured(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and by how much the process's own (anonymous) memory grew at most; pages of files can be dropped any time."""
    before, peak, done = _anonymous_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    kept = work()  # noqa: F841  # so that what it made is still there
    seconds = time.perf_counter() - start
    peak = max(peak, _anonymous_mib())
    done.set()
    watcher.join()
    return {"seconds": round(seconds, 3), "peak_mib": round(peak - before, 1)}


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("This benchmark reads memory from Linux's /proc/self/status, which has no RssAnon here")


def _in_new_process(step: str, file: Path, n_episodes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", step, "--file", str(file), "--episodes", str(n_episodes)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


if __name__ == "__main__":
    main()

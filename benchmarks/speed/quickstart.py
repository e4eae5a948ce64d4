"""Wall-clock of the quickstart and what it has learnt, now and before: python benchmarks/speed/quickstart.py [SEED ...]"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ratio, row, save
from versions import BEFORE, Version, checked_out

_COMMAND = "import sys; from sb3_vla.runs.cli import main; sys.exit(main())"


def main() -> None:
    """Run the quickstart with either version in turn, a quarter of an hour a seed on two cores."""
    seeds = sys.argv[1:] or ["0"]
    measured: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with checked_out(BEFORE) as before, checked_out(None) as now:
        for seed in seeds:
            for name, version in (("before", before), ("now", now)):
                measured[name].append({"seed": int(seed), **_run(version, seed)})
                print(name, measured[name][-1], flush=True)
    seconds = {name: [run["seconds"] for run in runs] for name, runs in measured.items()}
    figures = {}
    for name, runs in measured.items():
        steps, success = (statistics.fmean(run[key] for run in runs) for key in ("steps_to_success", "success"))
        figures[name] = f"{statistics.median(seconds[name]):.0f} s to {steps:.1f} steps at success {success:.2f}"
    what = "whole quickstart: demonstrations, SFT, post-training, evaluations, films"
    other = f"before (`{BEFORE}`), {figures['before']}"
    rows = [row(what, figures["now"], other, ratio(seconds["before"], seconds["now"]), "at least 2")]
    save("quickstart", rows, measured)


def _run(version: Version, seed: str) -> dict[str, float]:
    """Seconds of a run, and what its post-trained policy did on test goals."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [sys.executable, "-c", _COMMAND, "quickstart", "--seed", seed, "--out", str(out)]
        start = time.perf_counter()
        version.run(command, subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        episodes = json.loads((out / "results.json").read_text(encoding="utf-8"))["post-trained"]["episodes"]
    successes = [episode for episode in episodes if episode["success"]]
    return {
        "seconds": seconds,
        "success": len(successes) / len(episodes),
        "steps_to_success": statistics.fmean(episode["steps_to_success"] for episode in successes),
    }


if __name__ == "__main__":
    main()

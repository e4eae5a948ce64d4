"""
What each head is worth: the quickstart's three tasks, its demonstrations and as many primitive steps, three seeds each. What
is there is not done again. ``make heads``, or

    python benchmarks/heads.py --seeds 0 1 2 --only gaussian flow_sde
    python benchmarks/heads.py --small       # one task and little of everything, to see that all of it runs
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import yaml

from sb3_vla import EvaluationResult
from sb3_vla.runs.settings import deep_update
from sb3_vla_envs.durable_files import replace_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- heads: begin -->\n", "<!-- heads: end -->"
CLI = [sys.executable, "-c", "import sys; from sb3_vla.runs.cli import main; sys.exit(main())"]
SMALL: dict[str, Any] = {
    "tasks": "drawer-close-v3",
    "demos": {"n_per_task": 40},
    "sft": {"n_epochs": 20},
    "train": {"total_timesteps": 960, "n_envs": 8, "n_steps": 40, "critic_warmup_steps": 320, "critic_epochs": 5},
    "eval": {"n_goals": 20, "n_envs": 8},
}
# What the table calls it, and its decimals
MEASURES = {
    "sft_success": ("success after SFT", 2),
    "success": ("success after post-training", 2),
    "steps": ("steps to success", 1),
    "minutes": ("minutes of post-training", 0),
    "peak_gib": ("GiB at the peak of it", 1),
}


@dataclass(frozen=True)
class Head:
    """
    A head as a configuration.

    :param label: For the table
    :param policy: Settings of the new policy
    :param train: Settings of post-training
    :param sft_of: Another one, with which it has its SFT in common
    """

    label: str
    policy: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sft_of: str | None = None


HEADS = {
    "gaussian": Head("Gaussian"),
    "token_parallel": Head("token, parallel", {"head": "token"}),
    "token_autoregressive": Head("token, autoregressive", {"head": "token", "head_kwargs": {"decoding": "autoregressive"}}),
    "flow_noise": Head("flow, Flow-Noise", {"head": "flow"}),
    "flow_sde": Head(
        "flow, Flow-SDE", {"head": "flow"}, {"policy_kwargs": {"head_kwargs": {"noise": "sde"}}}, sft_of="flow_noise"
    ),
}


def main() -> None:
    """Run what is missing, then write the summary, the picture and the table in the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="of everything random")
    parser.add_argument("--only", nargs="+", choices=HEADS, default=list(HEADS), metavar="NAME")
    parser.add_argument("--small", action="store_true", help="one task, little of everything; all of it in runs/heads_small")
    arguments = parser.parse_args()
    if arguments.small:
        runs = ROOT / "runs" / "heads_small"
        study = Study(runs, runs / "results", SMALL, writes_page=False)
    else:
        study = Study(ROOT / "runs" / "heads", ROOT / "results" / "heads", {}, writes_page=True)
    for seed in arguments.seeds:
        for name in arguments.only:
            study.run(name, seed)
    study.summarise()


@dataclass(frozen=True)
class Study:
    """
    :param runs: Where models go
    :param results: Where result files go
    :param settings: What differs from the quickstart's
    :param writes_page: Whether the table in the documentation is of it
    """

    runs: Path
    results: Path
    settings: dict[str, Any]
    writes_page: bool

    def run(self, name: str, seed: int) -> None:
        """
        :param name: Of a head
        :param seed: Of everything random
        """
        head, result = HEADS[name], self.results / f"{name}_seed{seed}.json"
        if result.exists():
            return
        folder, shared = self.runs / f"seed{seed}" / name, self.runs / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yml"
        settings = deep_update(self.settings, {"policy": head.policy, "train": head.train, "seed": seed})
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        demos, sft, trained = shared / "demos.npz", shared / (head.sft_of or name) / "sft", folder / "trained"
        if not demos.exists():
            _call("demos", "--config", config, "--out", demos)
        if not (sft / "sft_model.zip").exists():
            shutil.rmtree(sft, ignore_errors=True)
            _call("sft", "--config", config, "--demos", demos, "--out", sft)
        sft_result = sft / "result.json"
        if not sft_result.exists():
            _call("eval", sft / "sft_model.zip", "--config", config, "--out", sft_result)
        cost = trained / "cost.json"
        if not cost.exists():
            shutil.rmtree(trained, ignore_errors=True)
            init = ("--init", sft / "sft_model.zip", "--demos", demos)
            taken = _call("train", "--config", config, *init, "--out", trained)
            cost.write_text(json.dumps(taken), encoding="utf-8")
        post_trained = trained / "result.json"
        if not post_trained.exists():
            _call("eval", trained / "model.zip", "--config", config, "--out", post_trained)
        found = {"sft_losses": sft / "sft_model.json", "sft": sft_result, "post_trained": post_trained, "cost": cost}
        content = {each: json.loads(path.read_text(encoding="utf-8")) for each, path in found.items()}
        replace_text(result, json.dumps(content, indent=1) + "\n")

    def summarise(self) -> None:
        """Put what there is together, in the order of the heads: a file, a picture, and the table."""
        rows = []
        for name, head in HEADS.items():
            found = [self._row(path) for path in sorted(self.results.glob(f"{name}_seed*.json"))]
            if found:
                rows.append({"label": head.label, **{measure: [row[measure] for row in found] for measure in MEASURES}})
        replace_text(self.results / "summary.json", json.dumps(rows, indent=1) + "\n")
        draw(rows, self.results / "summary.png")
        lines = [_line("head", (label for label, _ in MEASURES.values())), "|---" * (1 + len(MEASURES)) + "|"]
        for row in rows:
            lines.append(_line(row["label"], (_spread(row[measure], digits) for measure, (_, digits) in MEASURES.items())))
        print("\n".join(lines))
        if self.writes_page:
            before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
            replace_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])

    def _row(self, path: Path) -> dict[str, float | None]:
        """
        :param path: A result
        :return: Its measures
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        sft, post_trained = (EvaluationResult.from_dict(content[each]).overall for each in ("sft", "post_trained"))
        return {
            "sft_success": sft.success,
            "success": post_trained.success,
            "steps": post_trained.steps_to_success,
            "minutes": content["cost"]["minutes"],
            "peak_gib": content["cost"]["peak_gib"],
        }


def _call(*command: str | Path) -> dict[str, float]:
    """
    :param command: Of ``sb3-vla``
    :return: What it took: minutes, and GiB of its process at the peak, without the simulators'
    """
    print("sb3-vla", *command, flush=True)
    began = time.monotonic()
    process = subprocess.Popen([*CLI, *map(str, command)], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"sb3-vla {command[0]} failed")
    return {"minutes": (time.monotonic() - began) / 60, "peak_gib": usage.ru_maxrss / 2**20}


def _line(label: str, cells: Iterable[str]) -> str:
    return f"| {label} | " + " | ".join(cells) + " |"


def _spread(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})" if known else "none"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """
    :param rows: Of the table
    :param path: Where the picture goes
    """
    figure, all_axes = plt.subplots(1, len(MEASURES), figsize=(15, 0.5 * len(rows) + 1), sharey=True, constrained_layout=True)
    for axes, (measure, (label, _)) in zip(all_axes, MEASURES.items(), strict=True):
        for y, row in enumerate(rows):
            values = [value for value in row[measure] if value is not None]
            axes.plot(values, [y] * len(values), "o", color="#0072B2", ms=5, alpha=0.6)
            axes.plot([fmean(values)] if values else [], [y] if values else [], "|", color="#D55E00", ms=16, mew=2)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    all_axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""
Put the runs of study.py together, in results/mt10/summary.json and in the tables of README.md and docs/mt10.md.

    python benchmarks/mt10/summary.py
"""

import csv
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from study import PROTOCOLS

from sb3_vla.evaluation.result import EvaluationResult

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "mt10"
# Of Wang et al. 2025 (arXiv 2509.25718), who say nothing of the success of SFT
PAPER = [["Wang et al. 2025, SFT", "-", "66.62", "", ""], ["Wang et al. 2025, post-trained", "0.93", "42.17", "", ""]]
STAGES = {"sft": "SFT", "post_trained": "post-trained"}


def main() -> None:
    """Summarise the seeds that are complete."""
    summary: dict[str, Any] = {}
    for folder in sorted(RESULTS.glob("demos_*"), key=lambda path: int(path.name.split("_")[1])):
        seeds = sorted(path for path in folder.glob("seed*") if (path / "post_trained.json").exists())
        if not seeds:
            continue
        rows = [validation_rows(path)[-1] for path in seeds]
        summary[folder.name] = {
            **{name: of_seeds([load(path / f"{name}.json") for path in seeds]) for name in ("sft", "post_trained")},
            "protocols": {name: of_seeds([load(path / f"post_trained_{name}.json") for path in seeds]) for name in PROTOCOLS},
            "seeds": [int(path.name.removeprefix("seed")) for path in seeds],
            "primitive_steps": fmean(int(row["primitive_steps"]) for row in rows),
            "hours": fmean(int(row["seconds"]) for row in rows) / 3600,
            "deepest_fall": [deepest_fall(training_success(path)) for path in seeds],
            "longest_dip": [longest_dip(training_success(path)) for path in seeds],
        }
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "docs" / "mt10.md"):
        replace(page, "mt10", headline(summary))
    replace(ROOT / "docs" / "mt10.md", "tasks", by_task(summary))
    replace(ROOT / "docs" / "mt10.md", "protocols", by_protocol(summary))
    replace(ROOT / "docs" / "mt10.md", "stability", stability(summary))


def load(path: Path) -> EvaluationResult:
    """
    :param path: Of an evaluation
    :return: It
    """
    return EvaluationResult.from_dict(json.loads(path.read_text(encoding="utf-8")))


def validation_rows(path: Path) -> list[dict[str, str]]:
    """
    :param path: Of a seed's results
    :return: What was found on the validation's goals, from the beginning to the end of the training
    """
    return list(csv.DictReader((path / "validation.csv").read_text(encoding="utf-8").splitlines()))


def training_success(path: Path) -> list[float]:
    """
    :param path: Of a seed's results
    :return: Success in training, with exploration noise, after each rollout: of the last 100 episodes
    """
    rows = csv.DictReader((path / "progress.csv").read_text(encoding="utf-8").splitlines())
    return [float(row["rollout/success_rate"]) for row in rows if row["rollout/success_rate"]]


def deepest_fall(success: Sequence[float]) -> float:
    """
    :param success: In the course of a training
    :return: How far it ever fell below its best until then
    """
    return max(best - each for best, each in zip(accumulate(success, max), success, strict=True))


def longest_dip(success: Sequence[float], depth: float = 0.1) -> float:
    """
    :param success: In the course of a training
    :param depth: How far below its best until then is a dip
    :return: The part of the training that its longest dip lasts
    """
    longest, current = 0, 0
    for best, each in zip(accumulate(success, max), success, strict=True):
        current = current + 1 if each < best - depth else 0
        longest = max(longest, current)
    return longest / len(success)


def of_seeds(results: list[EvaluationResult]) -> dict[str, Any]:
    """
    :param results: Of the same tasks, by different seeds
    :return: Means over seeds, of all tasks and by task, and what each seed reached
    """
    tasks = {name: [result.tasks[name] for result in results] for name in results[0].tasks}
    return {
        **_means([result.overall for result in results]),
        "by_seed": [{"success": r.overall.success, "steps_to_success": r.overall.steps_to_success} for r in results],
        "tasks": {name: _means(summaries) for name, summaries in tasks.items()},
    }


def _means(summaries: list[Any]) -> dict[str, float | None]:
    steps = [each.steps_to_success for each in summaries if each.steps_to_success is not None]
    return {
        "success": fmean(each.success for each in summaries),
        "steps_to_success": fmean(steps) if steps else None,
    }


def headline(summary: dict[str, Any]) -> str:
    """
    :param summary: What is in ``summary.json``
    :return: Table of means over seeds and of what each seed reached
    """
    rows = [["demonstrations a task", "success", "steps to success", "primitive steps", "hours"], ["---"] * 5, *PAPER]
    for demos, found in summary.items():
        for stage, name in STAGES.items():
            cost = ["", ""] if stage == "sft" else [f"{found['primitive_steps'] / 1e6:.1f} M", f"{found['hours']:.1f}"]
            seeds = found[stage]["by_seed"]
            success, steps = (_mean_and_seeds(seeds, *form) for form in (("success", ".3f"), ("steps_to_success", ".1f")))
            rows.append([f"{demos.removeprefix('demos_')}, {name}", success, steps, *cost])
    return _markdown(rows)


def _mean_and_seeds(seeds: list[dict[str, float]], name: str, form: str) -> str:
    values = [seed[name] for seed in seeds]
    each = f" ({', '.join(format(value, form) for value in values)})" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{each}"


def by_task(summary: dict[str, Any]) -> str:
    """
    :param summary: What is in ``summary.json``
    :return: Table of success and steps to success, means over seeds
    """
    columns = [(demos, stage) for demos in summary for stage in STAGES]
    rows = [["task", *(f"{demos.removeprefix('demos_')}, {STAGES[stage]}" for demos, stage in columns)]]
    rows.append(["---"] * len(rows[0]))
    tasks = next(iter(summary.values()))["sft"]["tasks"] if summary else ()
    for task in (*tasks, "mean"):
        cells = []
        for demos, stage in columns:
            cells.append(_cell(summary[demos][stage] if task == "mean" else summary[demos][stage]["tasks"][task]))
        rows.append([task, *cells])
    return _markdown(rows)


def by_protocol(summary: dict[str, Any]) -> str:
    """
    :param summary: What is in ``summary.json``
    :return: Table of success and steps to success of the post-trained policies, means over seeds
    """
    rows = [["protocol", *(f"{demos.removeprefix('demos_')}, {STAGES['post_trained']}" for demos in summary)]]
    rows.append(["---"] * len(rows[0]))
    rows.append(["ours", *(_cell(found["post_trained"]) for found in summary.values())])
    rows += [[f"`{name}`", *(_cell(found["protocols"][name]) for found in summary.values())] for name in PROTOCOLS]
    return _markdown(rows)


def stability(summary: dict[str, Any]) -> str:
    """
    :param summary: What is in ``summary.json``
    :return: Table of how success fell in the course of the trainings, of the worst seed
    """
    rows = [["demonstrations a task", "deepest fall", "longest time more than 0.10 below"], ["---"] * 3]
    for demos, found in summary.items():
        fall, dip = max(found["deepest_fall"]), max(found["longest_dip"])
        rows.append([demos.removeprefix("demos_"), f"{fall:.2f}", f"{100 * dip:.1f} % of the training"])
    return _markdown(rows)


def _cell(found: dict[str, Any]) -> str:
    steps = "-" if found["steps_to_success"] is None else f"{found['steps_to_success']:.1f}"
    return f"{found['success']:.2f} in {steps}"


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def replace(page: Path, mark: str, text: str) -> None:
    """
    :param page: A page
    :param mark: Name of a mark in it
    :param text: What stands between the mark's begin and end from now on
    """
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {mark}: begin -->\n")
    after = rest.split(f"<!-- {mark}: end -->")[1]
    page.write_text(f"{before}<!-- {mark}: begin -->\n{text}\n<!-- {mark}: end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

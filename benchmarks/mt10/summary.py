"""Put the runs of study.py together in results/mt10/summary.json and print a table: python benchmarks/mt10/summary.py"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sb3_vla.evaluation.result import EvaluationResult

RESULTS = Path(__file__).parents[2] / "results" / "mt10"


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
            "seeds": [int(path.name.removeprefix("seed")) for path in seeds],
            "primitive_steps": fmean(int(row["primitive_steps"]) for row in rows),
            "hours": fmean(int(row["seconds"]) for row in rows) / 3600,
            "longest_dip": [longest_dip(training_success(path)) for path in seeds],
        }
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print_table(summary)


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


def longest_dip(success: Sequence[float], depth: float = 0.1) -> float:
    """
    :param success: In the course of a training
    :param depth: How far below its best until then is a dip
    :return: The part of the training that its longest dip lasts
    """
    best, longest, current = 0.0, 0, 0
    for each in success:
        best = max(best, each)
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


def print_table(summary: dict[str, Any]) -> None:
    """
    :param summary: What is in ``summary.json``
    """
    columns = [(demos, stage) for demos in summary for stage in ("sft", "post_trained")]
    print("| task | " + " | ".join(f"{demos.replace('_', ' ')}, {stage.replace('_', '-')}" for demos, stage in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    tasks = next(iter(summary.values()))["sft"]["tasks"] if summary else ()
    for task in (*tasks, "mean"):
        cells = []
        for demos, stage in columns:
            found = summary[demos][stage] if task == "mean" else summary[demos][stage]["tasks"][task]
            steps = "-" if found["steps_to_success"] is None else f"{found['steps_to_success']:.1f}"
            cells.append(f"{found['success']:.2f} / {steps}")
        print(f"| {task} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

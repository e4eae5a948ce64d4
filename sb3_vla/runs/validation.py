"""Which of a training's models is the best: evaluations on goals for that alone, on its way."""

import csv
import io
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from sb3_vla_envs.durable_files import replace_text

from ..evaluation.evaluate import evaluate_on_tasks
from ..evaluation.result import EvaluationResult
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .between_updates import BetweenUpdates


def mean_episode_steps(result: EvaluationResult) -> float:
    """
    What a validation ranks by: how long an episode takes to succeed. A failure takes the whole horizon, however it ended.

    :param result: An evaluation
    :return: Mean over tasks of the mean primitive steps of an episode
    """
    failure = float(result.settings["horizon"])
    steps = {
        task: [episode.steps_to_success or failure for episode in result.episodes if episode.task == task]
        for task in result.tasks
    }
    return fmean(map(fmean, steps.values()))


def _whole_rows(path: Path) -> Iterator[dict[str, str]]:
    """
    :param path: The file of evaluations
    :return: Iterator over its rows; of a file that is damaged, over those that can be read
    """
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\0", "").splitlines()
    with suppress(csv.Error):
        yield from filter(_is_whole, csv.DictReader(lines))


def _is_whole(row: dict[str, str]) -> bool:
    """
    :param row: Of the file of evaluations
    :return: Whether it says what is needed of it
    """
    try:
        int(row["timesteps"])
        return all(math.isfinite(float(row[name])) for name in ("seconds", "episode_steps"))
    except (KeyError, TypeError, ValueError):
        return False


class Validation(BetweenUpdates):
    """
    Evaluates the model between two updates, and keeps the best one so far: the one whose episodes are shortest, a failure
    counting as the whole horizon.

    :param csv_file: Gets a row an evaluation, after those that are there: a run that was killed and goes on from an earlier
        checkpoint has some timesteps twice
    :param best_model: Where the best model so far is saved
    :param every: Timesteps between two evaluations
    :param arguments: Of :func:`~sb3_vla.evaluate_on_tasks`: tasks, goals and settings
    """

    def __init__(self, csv_file: Path, best_model: Path, every: int, arguments: dict[str, Any]) -> None:
        super().__init__(every)
        self.csv_file = csv_file
        self.best_model = best_model
        self.arguments = arguments

    def _on_training_start(self) -> None:
        assert isinstance(self.model, PPOSelfBC)
        self.start = time.monotonic()
        self.rows = list(_whole_rows(self.csv_file)) if self.csv_file.exists() else []
        self.seconds_before = float(self.rows[-1]["seconds"]) if self.rows else 0.0
        last = max((n for row in self.rows if (n := int(row["timesteps"])) <= self.num_timesteps), default=0)
        self.last = self.model.ranks.broadcast_object(last)  # as the others may not see the file

    def act(self) -> None:
        """Evaluate it."""
        assert isinstance(self.model, PPOSelfBC)
        result = evaluate_on_tasks(self.model, progress=False, ranks=self.model.ranks, **self.arguments)
        ranks = self.model.ranks
        if ranks.broadcast_object(ranks.is_first and self._is_best(result)):
            self.model.save(self.best_model)
        if ranks.is_first:
            self._keep(self.model, result)

    def _is_best(self, result: EvaluationResult) -> bool:
        episode_steps = mean_episode_steps(result)
        return all(episode_steps < float(before["episode_steps"]) for before in self.rows)

    def _keep(self, model: PPOSelfBC, result: EvaluationResult) -> None:
        episode_steps = mean_episode_steps(result)
        row = {
            "timesteps": self.num_timesteps,
            "primitive_steps": model.num_primitive_steps,
            "seconds": round(self.seconds_before + time.monotonic() - self.start),
            "episode_steps": round(episode_steps, 3),
            "success": round(result.overall.success, 4),
            "steps_to_success": result.overall.steps_to_success,
            **{f"success/{task}": summary.success for task, summary in result.tasks.items()},
            **{f"steps_to_success/{task}": summary.steps_to_success for task, summary in result.tasks.items()},
        }
        self.rows.append({name: "" if value is None else str(value) for name, value in row.items()})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row))
        writer.writeheader()
        writer.writerows(self.rows)
        replace_text(self.csv_file, text.getvalue())

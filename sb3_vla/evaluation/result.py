"""What an evaluation found: episodes, summaries with confidence intervals, a table, a JSON file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from sb3_vla_envs.argument_checks import Limits
from sb3_vla_envs.durable_files import replace_text

from ..common.run_folder import software_versions

#: Among the settings of an evaluation: how long its model, a PPOSelfBC, had trained
MODEL_TIMESTEPS = "model_timesteps"

_FILE_FORMAT = "sb3-vla evaluation"
_FILE_VERSION = 1


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of a success probability (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference"). Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and n successes.

    :param successes: Number of successes, 0..n
    :param n: Number of trials, at least 1; no whole number where trials count differently, see
        :attr:`EvaluationResult.overall`
    :param confidence: Coverage, in (0, 1)
    :return: Lower and upper end
    :raises ValueError: If an argument is out of its range
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"Got {successes} successes in {n} trials: give at least one trial and 0 to n successes.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1, for example 0.95.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    scale = 1.0 / (1.0 + z**2 / n)
    centre = scale * (rate + z**2 / (2 * n))
    half_width = scale * z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


@dataclass(frozen=True)
class EpisodeRecord:
    """
    One episode that was run.

    :param task: Name of the task, "" without tasks
    :param goal_index: Number of the goal
    :param success: Whether the task was solved
    :param steps_to_success: Primitive steps until it was, ``None`` if it wasn't
    :param n_steps: Primitive steps of the whole episode
    :param episode_return: Sum of the rewards that the vectorised environment gave
    :raises TypeError: If a value is of another type
    :raises ValueError: If it can't be that of an episode
    """

    task: str
    goal_index: int
    success: bool
    steps_to_success: int | None
    n_steps: int
    episode_return: float

    def __post_init__(self) -> None:
        if not isinstance(self.task, str) or not isinstance(self.success, bool):
            raise TypeError(f"task must be a text and success true or false, got {self.task!r} and {self.success!r}")
        for name, least in (("goal_index", 0), ("n_steps", 1)):
            Limits(at_least=least, whole=True).check(name, getattr(self, name))
        Limits().check("episode_return", self.episode_return)
        if self.success != (self.steps_to_success is not None):
            raise ValueError(f"success is {self.success}, but steps_to_success {self.steps_to_success}")
        if self.steps_to_success is not None:
            Limits(at_least=1, at_most=self.n_steps, whole=True).check("steps_to_success", self.steps_to_success)


@dataclass(frozen=True)
class EvaluationSummary:
    """
    What some episodes say.

    :param success: Success rate, 0..1
    :param success_low: Lower end of its 95 % Wilson interval
    :param success_high: Upper end
    :param steps_to_success: Mean primitive steps of the successful episodes, ``None`` if there are none
    :param n_episodes: Number of episodes
    """

    success: float
    success_low: float
    success_high: float
    steps_to_success: float | None
    n_episodes: int


@dataclass
class EvaluationResult:
    """
    All episodes of an evaluation and what they were run with.

    :param episodes: At least one, in the order of their jobs
    :param settings: What determines the numbers: ``deterministic``, ``seed``, ``goal_split``, ``horizon``, ``chunk_size``...
    :param versions: Of the software (:func:`~sb3_vla.common.run_folder.software_versions`)
    """

    episodes: list[EpisodeRecord]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | int | None] = field(default_factory=software_versions)

    @property
    def tasks(self) -> dict[str, EvaluationSummary]:
        """Summary of each task, in the order in which the tasks were given."""
        names = dict.fromkeys(episode.task for episode in self.episodes)
        return {name: _summarize([episode for episode in self.episodes if episode.task == name]) for name in names}

    @property
    def overall(self) -> EvaluationSummary:
        """
        All tasks count alike: the means over tasks of success and (where a task has a success) of steps to success. The
        interval is that of as many episodes as count alike (Kish 1965, "Survey Sampling": the effective sample size), which
        are all where tasks have equally many.
        """
        tasks = list(self.tasks.values())
        success = fmean(task.success for task in tasks)
        n_effective = len(tasks) ** 2 / sum(1 / task.n_episodes for task in tasks)
        low, high = wilson_interval(success * n_effective, n_effective)
        steps = [task.steps_to_success for task in tasks if task.steps_to_success is not None]
        return EvaluationSummary(
            success=success,
            success_low=low,
            success_high=high,
            steps_to_success=fmean(steps) if steps else None,
            n_episodes=len(self.episodes),
        )

    def is_comparable_to(self, other: "EvaluationResult") -> bool:
        """
        :param other: Of another model
        :return: Whether the same was played in the same way
        """
        mine, theirs = ([(episode.task, episode.goal_index) for episode in each.episodes] for each in (self, other))
        return mine == theirs and self._protocol() == other._protocol()

    def _protocol(self) -> dict[str, Any]:
        """Settings but for those on which success and steps don't depend, and what tells models apart."""
        return {key: value for key, value in self.settings.items() if key not in ("n_envs", "gamma", MODEL_TIMESTEPS)}

    def table(self) -> str:
        """
        :return: The summaries as text, a line a task and one for the mean
        """
        return results_table({"": self})

    def to_dict(self) -> dict[str, Any]:
        """
        :return: Everything as plain types; ``summary`` is there for the reader, :meth:`from_dict` computes it anew
        """
        return {
            "format": _FILE_FORMAT,
            "version": _FILE_VERSION,
            "settings": self.settings,
            "versions": self.versions,
            "summary": {
                "overall": asdict(self.overall),
                "tasks": {name: asdict(summary) for name, summary in self.tasks.items()},
            },
            "episodes": [asdict(episode) for episode in self.episodes],
        }

    @classmethod
    def from_dict(cls, content: Any) -> "EvaluationResult":
        """
        :param content: What :meth:`to_dict` returned
        :return: The result
        :raises ValueError: If it is something else, or of another version
        """
        if not isinstance(content, dict) or content.get("format") != _FILE_FORMAT:
            raise ValueError(f"This is no evaluation result: its 'format' should be '{_FILE_FORMAT}'.")
        if content.get("version") != _FILE_VERSION:
            raise ValueError(
                f"This evaluation result is of version {content.get('version')}, but this sb3-vla reads {_FILE_VERSION}. "
                "Evaluate the model again."
            )
        try:
            episodes = [EpisodeRecord(**episode) for episode in content["episodes"]]
            if not episodes or not isinstance(content["settings"], dict) or not isinstance(content["versions"], dict):
                raise ValueError("it needs episodes, settings and versions")
            return cls(episodes, content["settings"], content["versions"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This evaluation result is damaged ({error}). Evaluate the model again.") from error

    def save(self, path: str | Path) -> None:
        """
        Write a JSON file, whole or not at all: an interrupted write leaves what was there before.

        :param path: The file
        """
        replace_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationResult":
        """
        :param path: A file that :meth:`save` wrote
        :return: The result
        :raises FileNotFoundError: If there is none
        :raises ValueError: If it is no evaluation result
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"Cannot read '{path}': {error}") from error


def results_table(results: Mapping[str, EvaluationResult]) -> str:
    """
    Evaluations side by side, for example ``{"SFT": before, "post-trained": after}``.

    :param results: Evaluations by name
    :return: Text, a line a task and one for the mean: success rate with its 95 % interval, mean steps to success, episodes
    :raises ValueError: If there are no evaluations
    """
    if not results:
        raise ValueError("There are no results to make a table of: give at least one.")
    tasks = list(dict.fromkeys(task for result in results.values() for task in result.tasks))
    names = [cell for name in results for cell in (name, "", "")]
    rows = [["", *names]] if any(names) else []
    rows.append(["task", *(("success (95 % CI)", "steps", "episodes") * len(results))])
    for task in tasks:
        rows.append([task or "(no task)", *(cell for result in results.values() for cell in _cells(result.tasks.get(task)))])
    rows.append(["mean", *(cell for result in results.values() for cell in _cells(result.overall))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(len(lines) - 1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _summarize(episodes: Sequence[EpisodeRecord]) -> EvaluationSummary:
    n_successes = sum(episode.success for episode in episodes)
    low, high = wilson_interval(n_successes, len(episodes))
    steps = [episode.steps_to_success for episode in episodes if episode.steps_to_success is not None]
    return EvaluationSummary(n_successes / len(episodes), low, high, fmean(steps) if steps else None, len(episodes))


def _cells(summary: EvaluationSummary | None) -> tuple[str, str, str]:
    if summary is None:
        return "-", "-", "-"
    success = f"{summary.success:.2f} ({summary.success_low:.2f}-{summary.success_high:.2f})"
    steps = "-" if summary.steps_to_success is None else f"{summary.steps_to_success:.1f}"
    return success, steps, str(summary.n_episodes)

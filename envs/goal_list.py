"""Seeded lists of goals: what those of all suites have in common."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .argument_checks import check_choice, check_count
from .task_env import SPLITS, GoalSplit

# Where an object stands on a line of 15 cm there are 75,000 goals a split, as goals are whole micrometres: a longer list
# would take ever longer to fill.
MAX_GOALS = 10_000


@dataclass(frozen=True)
class GoalList:
    """
    Which list of goals.

    :param task: Name of a task
    :param split: ``"train"`` or ``"test"``
    :param n_goals: How many goals, at most 10,000: some tasks have no more than a few times as many
    :param seed: Which list
    :raises TypeError: If ``n_goals`` or ``seed`` is no integer
    :raises ValueError: If the split is unknown, or ``n_goals`` or ``seed`` out of range
    """

    task: str
    split: GoalSplit
    n_goals: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_count("n_goals", self.n_goals)
        check_count("seed", self.seed, least=0)
        if self.n_goals > MAX_GOALS:
            raise ValueError(
                f"The goals of {self.task!r} are numbered from 0 to at most {MAX_GOALS - 1}: n_goals must be at most "
                f"{MAX_GOALS}, got {self.n_goals}"
            )

    def generator(self) -> np.random.Generator:
        """
        :return: Random numbers, which do not depend on ``n_goals``
        """
        return np.random.default_rng([zlib.crc32(self.task.encode()), SPLITS.index(self.split), self.seed])

    def fill(self, draw: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """
        :param draw: Gives a goal, shape ``(size,)``
        :return: The goals, all different, shape ``(n_goals, size)``, read-only, as environments share them
        """
        goals: dict[bytes, NDArray[np.float64]] = {}
        while len(goals) < self.n_goals:
            goal = draw()
            goals.setdefault(goal.tobytes(), goal)
        result = np.stack(list(goals.values()))
        result.setflags(write=False)
        return result

"""Seeded lists of goals: where objects and targets stand in an episode."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..argument_checks import check_choice, check_count
from ..goal_split import round_goal, split_of
from ..task_env import SPLITS, GoalSplit
from .simulator import build_simulator
from .suite import METAWORLD


def sample_goals(task: str, split: GoalSplit, n_goals: int = 50, seed: int = 0) -> NDArray[np.float64]:
    """
    The list of goals of a task: MetaWorld's ``rand_vec``, the random numbers from which it places objects and target.

    Every possible goal belongs to one split for good, by a hash of its position, so that the training goals of any seed
    and any ``n_goals`` are never test goals. A shorter list is a prefix of a longer one. MetaWorld's own rules for
    rejecting goals (too near the object) hold.

    :param task: Name of a MetaWorld v3 task
    :param split: ``"train"`` or ``"test"``
    :param n_goals: How many goals
    :param seed: Which list
    :return: The goals, shape ``(n_goals, rand_vec_dim)``, all different, read-only
    :raises TypeError: If ``n_goals`` or ``seed`` is no integer
    :raises ValueError: If the task or the split is unknown, or ``n_goals`` or ``seed`` out of range
    """
    (task,) = METAWORLD.resolve_tasks(task)
    check_choice("goal split", split, SPLITS)
    check_count("n_goals", n_goals)
    check_count("seed", seed, least=0)
    return _sample_goals(task, split, int(n_goals), int(seed))


@cache
def _sample_goals(task: str, split: GoalSplit, n_goals: int, seed: int) -> NDArray[np.float64]:
    simulator: Any = build_simulator(task)
    space = simulator._random_reset_space
    rng = np.random.default_rng([zlib.crc32(task.encode()), SPLITS.index(split), seed])
    candidate = _candidates(rng, space.low, space.high, split)
    last: NDArray[np.float64] = np.empty(0)

    def draw() -> NDArray[np.float64]:
        nonlocal last
        last = candidate()
        return last

    # MetaWorld's reset draws until its task accepts: let it draw from our candidates and keep the last one. What it would
    # simulate afterwards (moving the hand, 7 ms) does not matter here.
    simulator._get_state_rand_vec = draw
    simulator.do_simulation = _no_simulation
    goals: dict[bytes, NDArray[np.float64]] = {}
    while len(goals) < n_goals:
        simulator.reset_model()
        goals.setdefault(last.tobytes(), last)
    simulator.close()
    result = np.stack(list(goals.values()))
    result.setflags(write=False)  # shared by every environment of this process
    return result


def _candidates(
    rng: np.random.Generator, low: NDArray[Any], high: NDArray[Any], split: GoalSplit
) -> Callable[[], NDArray[np.float64]]:
    def draw() -> NDArray[np.float64]:
        while True:
            goal = round_goal(rng.uniform(low, high))
            if split_of(goal) == split:
                return goal

    return draw


def _no_simulation(ctrl: Any, n_frames: int) -> None:
    """Stands in for ``do_simulation``."""

"""Seeded lists of goals: where objects and targets stand in an episode."""

from __future__ import annotations

import pickle
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..argument_checks import check_count
from ..goal_list import GoalList
from ..goal_split import round_goal, split_of
from ..task_env import GoalSplit
from .simulator import Quick, build_simulator
from .suite import METAWORLD


def sample_goals(task: str, split: GoalSplit, n_goals: int = 50, seed: int = 0) -> NDArray[np.float64]:
    """
    The list of goals of a task: MetaWorld's ``rand_vec``, the random numbers from which it places objects and target.

    Every possible goal belongs to one split for good, by a hash of its position, so that the training goals of any seed
    and any ``n_goals`` are never test goals. A shorter list is a prefix of a longer one. MetaWorld's own rules for
    rejecting goals (too near the object) hold. The split ``"benchmark"`` is another thing: the 50 goals of
    ``metaworld.MT1(task, seed)``, of which some may be training goals.

    :param task: Name of a MetaWorld v3 task
    :param split: ``"train"``, ``"test"`` or ``"benchmark"``
    :param n_goals: How many goals, at most 10,000; of the benchmark 50
    :param seed: Which list
    :return: The goals, shape ``(n_goals, rand_vec_dim)``, all different, read-only
    :raises TypeError: If ``n_goals`` or ``seed`` is no integer
    :raises ValueError: If the task or the split is unknown, or ``n_goals`` or ``seed`` out of range
    """
    (task,) = METAWORLD.resolve_tasks(task)
    if split == "benchmark":
        check_count("n_goals", n_goals)
        check_count("seed", seed, least=0)
        goals = _benchmark_goals(task, seed)
        if n_goals > len(goals):
            raise ValueError(f"MetaWorld's own benchmark has {len(goals)} goals of each task: lower n_goals, it is {n_goals}")
        return goals[:n_goals]
    return _sample(GoalList(task, split, n_goals, seed))


@cache
def _benchmark_goals(task: str, seed: int) -> NDArray[np.float64]:
    """
    :param task: Name of a task
    :param seed: Of the benchmark
    :return: Its goals, shape ``(50, rand_vec_dim)``, read-only
    """
    import metaworld

    tasks = metaworld.MT1(task, seed=seed).train_tasks
    goals = np.stack([pickle.loads(task.data)["rand_vec"] for task in tasks])  # its own pickles, made a moment ago
    goals.setflags(write=False)
    return goals


@cache
def _sample(goals: GoalList) -> NDArray[np.float64]:
    simulator: Any = build_simulator(goals.task)
    space, rng = simulator._random_reset_space, goals.generator()
    last: NDArray[np.float64] = np.empty(0)

    def candidate() -> NDArray[np.float64]:
        nonlocal last
        last = round_goal(rng.uniform(space.low, space.high))
        while split_of(last) != goals.split:
            last = round_goal(rng.uniform(space.low, space.high))
        return last

    def accepted() -> NDArray[np.float64]:
        simulator.reset_model()
        return last

    # MetaWorld's reset draws until its task accepts: let it draw from our candidates and keep the last one. What it would
    # simulate (moving the hand, 7 ms) does not matter here, nor that we remember where the hand goes (0.8 ms).
    simulator._get_state_rand_vec = candidate
    simulator.do_simulation = _no_simulation
    simulator._reset_hand = partial(super(Quick, simulator)._reset_hand, steps=1)
    try:
        return goals.fill(accepted)
    finally:
        simulator.close()


def _no_simulation(ctrl: Any, n_frames: int) -> None:
    """Stands in for ``do_simulation``."""

"""Seeded lists of goals: where the object begins and where the target is in an episode."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..goal_list import GoalList
from ..goal_split import round_goal, split_of
from ..task_env import GoalSplit
from .suite import FETCH
from .tasks import DISTANCE_THRESHOLD, MAX_TARGET_HEIGHT, MIN_OBJECT_DISTANCE, TASKS, FetchTask


def sample_fetch_goals(task: str, split: GoalSplit, n_goals: int = 50, seed: int = 0) -> NDArray[np.float64]:
    """
    The list of goals of a task, drawn as Gymnasium-Robotics draws them, except that none is solved from the beginning (in
    FetchPush-v4 every twelfth would be).

    A goal is five numbers, in metres: x and y of the object as it begins, seen from where the gripper begins (zeros if there
    is none), and x, y and z of the target. These are seen from the gripper, too, except that an object's target is as high
    above the object as z says.

    Every possible goal belongs to one split for good, by a hash of its numbers, so that the training goals of any seed and
    any ``n_goals`` are never test goals. A shorter list is a prefix of a longer one.

    :param task: Name of a Fetch task
    :param split: ``"train"`` or ``"test"``
    :param n_goals: How many goals, at most 10,000
    :param seed: Which list
    :return: The goals, shape ``(n_goals, 5)``, all different, read-only
    :raises TypeError: If ``n_goals`` or ``seed`` is no integer
    :raises ValueError: If the task or the split is unknown, or ``n_goals`` or ``seed`` out of range
    """
    (task,) = FETCH.resolve_tasks(task)
    return _sample(GoalList(task, split, n_goals, seed))


@cache
def _sample(goals: GoalList) -> NDArray[np.float64]:
    task, rng = TASKS[goals.task], goals.generator()

    def accepted() -> NDArray[np.float64]:
        while True:
            goal = round_goal(_draw(task, rng))
            if split_of(goal) == goals.split and not _is_solved(task, goal):
                return goal

    return goals.fill(accepted)


def _draw(task: FetchTask, rng: np.random.Generator) -> NDArray[np.float64]:
    start = np.zeros(2)
    while task.has_object and np.linalg.norm(start) < MIN_OBJECT_DISTANCE:
        start = rng.uniform(-task.object_range, task.object_range, 2)
    target = rng.uniform(-task.target_range, task.target_range, 3)
    target[0] += task.target_offset
    if task.has_object:
        target[2] = rng.uniform(0, MAX_TARGET_HEIGHT) if task.target_in_the_air and rng.uniform() < 0.5 else 0.0
    return np.concatenate([start, target])


def _is_solved(task: FetchTask, goal: NDArray[np.float64]) -> bool:
    """Whether the object, or the gripper where there is none, begins at the target."""
    start = np.append(goal[:2], 0.0)
    return bool(np.linalg.norm(goal[2:] - start) < DISTANCE_THRESHOLD)

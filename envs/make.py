"""Factories: the whole stack of wrappers, and many of them for vectorised training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from .argument_checks import check_count
from .suite import Suite, find_suite


def make_vla_env(
    tasks: str | Sequence[str], *, suite: str | Suite | None = None, render_mode: str | None = None, **settings: Any
) -> gym.Env:
    """
    Tasks as a vision-language-action policy sees them: pictures, proprioception and an instruction in, action chunks out.

    :param tasks: Task, group, comma-separated names or a sequence of them, see :func:`resolve_tasks`
    :param suite: The suite of tasks or its name; by default the one that has these
    :param render_mode: ``None``; ``"rgb_array"``: ``render()`` gives the current frame; ``"rgb_array_list"``: it gives one
        frame for every primitive step since the last call, those inside chunks too
    :param settings: Of the suite's simulation, see :class:`SimulationSettings`, and of what stands between it and the
        policy, see :class:`WrappingSettings`
    :return: The environment
    :raises TypeError: If a setting is unknown or of another type
    :raises ValueError: If an argument is not one of those allowed
    """
    return find_suite(tasks, suite).make_env(tasks, render_mode=render_mode, **settings)


# gymnasium.make looks here for how an environment renders, to add a window to one that has pictures only
make_vla_env.metadata = {"render_modes": ["rgb_array", "rgb_array_list"]}  # type: ignore[attr-defined]


def make_env_fns(
    tasks: str | Sequence[str],
    n_envs: int,
    *,
    seed: int = 0,
    suite: str | Suite | None = None,
    task_weights: Mapping[str, int] | None = None,
    **settings: Any,
) -> list[Callable[[], gym.Env]]:
    """
    Functions that each build one environment of a vectorised one, with the tasks spread over them.

    With at least as many environments as tasks, each has one task; otherwise each has several, none in two. The ids of
    tasks in ``privileged`` are those of the whole list everywhere. The functions can be pickled, and make simulator and
    OpenGL context where they are called: in the worker process.

    Example:
        >>> from sb3_vla import SharedMemoryVecEnv
        >>> venv = SharedMemoryVecEnv(make_env_fns("MT10", n_envs=20, seed=1))  # doctest: +SKIP

    :param tasks: Task, group, comma-separated names or a sequence of them
    :param n_envs: Number of environments
    :param seed: Seeds each environment differently; seeding them by ``reset(seed=...)`` later overrules it
    :param suite: The suite of tasks or its name; by default the one that has these
    :param task_weights: For some of the tasks, how many environments they get for each one of the others, e.g. because they
        are learned slowly; needs as many environments as the weights of all tasks add up to
    :param settings: Further arguments of :func:`make_vla_env`
    :return: ``n_envs`` functions
    :raises TypeError: If a setting is unknown or of another type
    :raises ValueError: If there is an unknown task, or an argument is out of range
    """
    found = find_suite(tasks, suite)
    names = found.resolve_tasks(tasks)
    check_count("n_envs", n_envs)
    check_count("seed", seed, least=0)
    found.split_settings({name: value for name, value in settings.items() if name != "render_mode"})
    turns = _turns(names, n_envs, task_weights or {})
    shares = [(turns[i % len(turns)],) if n_envs >= len(turns) else turns[i::n_envs] for i in range(n_envs)]
    # By name, as a worker finds it; a suite that is not registered goes there itself
    settings = {**settings, "suite": suite if isinstance(suite, Suite) else found.address}
    if settings.get("task_ids") is None:
        settings["task_ids"] = names
    return [partial(_make_seeded_env, share, (seed, index), settings) for index, share in enumerate(shares)]


def _turns(tasks: Sequence[str], n_envs: int, weights: Mapping[str, int]) -> tuple[str, ...]:
    """
    :param tasks: Names of tasks
    :param n_envs: Number of environments
    :param weights: Of some tasks, 1 of all others
    :return: The tasks in the order in which environments take them, each as often as it weighs
    :raises ValueError: If there is no such task, a weight is no whole number from 1 on, or there are too few environments
    """
    for task, weight in weights.items():
        if task not in tasks:
            raise ValueError(f"task_weights has {task!r}, which is none of the tasks: {', '.join(tasks)}")
        check_count(f"task_weights[{task!r}]", weight)
    rounds = range(max(weights.values(), default=1))
    turns = tuple(task for turn in rounds for task in tasks if weights.get(task, 1) > turn)
    if weights and n_envs < len(turns):
        raise ValueError(f"n_envs must be at least {len(turns)}, the sum of all tasks' weights, got {n_envs}")
    return turns


def _make_seeded_env(tasks: tuple[str, ...], seed: tuple[int, int], settings: dict[str, Any]) -> gym.Env:
    env = make_vla_env(tasks, **settings)
    env.unwrapped.np_random = np.random.default_rng(seed)
    return env

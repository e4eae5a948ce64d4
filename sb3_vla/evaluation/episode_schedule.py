"""Which episodes an evaluation runs, and the wrapper that makes an environment play them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_vla_envs.argument_checks import check_count


@dataclass(frozen=True)
class EpisodeJob:
    """
    One episode to run.

    :param task: Name of the task, or "" where the environment has no tasks
    :param goal_index: Number of the goal; without a task, just the number of the episode
    :param seed: Seed of the environment's reset
    """

    task: str
    goal_index: int
    seed: int

    @property
    def options(self) -> dict[str, Any] | None:
        """What ``env.reset`` gets."""
        return {"task": self.task, "goal_index": self.goal_index} if self.task else None


def episode_jobs(tasks: Sequence[str], n_goals: int, seed: int = 0) -> list[EpisodeJob]:
    """
    One episode for each task and goal, the tasks one after the other.

    :param tasks: Names of tasks; ``[""]`` for an environment without tasks
    :param n_goals: Goals (or, without tasks, episodes) per task
    :param seed: An episode's own seed follows from this one, its task and its goal, so that it stays the same whatever
        other tasks and goals are evaluated
    :return: ``len(tasks) * n_goals`` jobs
    :raises TypeError: If ``n_goals`` or ``seed`` is no integer
    :raises ValueError: If there is nothing to do, or a task is named twice
    """
    check_count("n_goals", n_goals)
    if not tasks:
        raise ValueError(f"There are no tasks, got {tasks!r}: give at least one.")
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"A task is named twice in {list(tasks)}: name each once.")
    return [EpisodeJob(task, goal, episode_seed(seed, task, goal)) for task in tasks for goal in range(n_goals)]


def episode_seed(seed: int, task: str, goal_index: int) -> int:
    """
    :param seed: Seed of the evaluation, at least 0
    :param task: Name of the task
    :param goal_index: Number of the goal
    :return: Seed of that episode, 0..2^31 - 1
    :raises TypeError: If ``seed`` is no integer
    :raises ValueError: If it is negative
    """
    check_count("seed", seed, least=0)
    entropy = (seed, zlib.crc32(task.encode("utf-8")), goal_index)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


class EpisodeSchedule(gym.Wrapper[Any, Any, Any, Any]):
    """
    Plays a given list of episodes, one a reset, and then stands still.

    SB3's vectorised environments reset an environment by themselves when its episode ends, and that reset takes neither
    seed nor options (``VecEnv.set_options`` reaches only an explicit ``reset()``). So the environment itself has to know
    what to play next. Once its list is played, it repeats its last observation and simulates nothing while the other
    environments finish.

    :param env: An environment whose ``reset`` takes the options ``task`` and ``goal_index``, or no options at all
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._jobs: list[EpisodeJob] = []
        self._n_started = 0
        self._idle = True
        self._observation: Any = None

    def set_jobs(self, jobs: Sequence[EpisodeJob]) -> None:
        """
        :param jobs: What to play, from the next reset on
        """
        self._jobs = list(jobs)
        self._n_started = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start the next episode of the list.

        :param seed: Used only if there is no episode to play: each brings its own
        :param options: Likewise
        :return: Observation and info
        """
        self._idle = self._n_started >= len(self._jobs)
        if not self._idle:
            job = self._jobs[self._n_started]
            self._n_started += 1
            self._observation, info = self.env.reset(seed=job.seed, options=job.options)
            return self._observation, info
        if self._observation is None:  # more environments than episodes: still needs something valid to show
            self._observation, _ = self.env.reset(seed=seed, options=options)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: As the wrapped environment takes it; ignored once the list is played
        :return: Observation, reward, terminated, truncated, info
        """
        if self._idle:
            return self._observation, 0.0, False, False, {}
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation, reward, terminated, truncated, info

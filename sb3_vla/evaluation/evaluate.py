"""Evaluation of a policy: one episode for each task and goal, in parallel, the same whatever the number of environments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from tqdm.auto import tqdm

from sb3_vla_envs import Suite, find_suite, make_vla_env
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress, task_name

from ..vec_env.make import make_vec_env_from_fns
from ..vec_env.shared_memory_vec_env import SharedMemoryVecEnv
from .episode_schedule import EpisodeJob, EpisodeSchedule, episode_jobs
from .model_fit import check_model_fits, model_settings
from .normalize_like import normalize_like
from .result import EpisodeRecord, EvaluationResult


def evaluate(
    model: PolicyPredictor,
    venv: VecEnv,
    jobs: Sequence[EpisodeJob],
    deterministic: bool = True,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """
    Run exactly the given episodes. Which environment runs which is settled beforehand, so a slow episode is never dropped
    in favour of a quick one, and the outcome doesn't depend on the number of environments (but for the rounding of
    differently sized batches and, if actions are sampled, the order of the samples).

    :param model: An SB3 model or policy, or anything with their ``predict``
    :param venv: Vectorised environment, each environment of it in an :class:`EpisodeSchedule`; the model sees it
        through its own ``VecNormalize``, if it has one
    :param jobs: The episodes (:func:`episode_jobs`)
    :param deterministic: Take the policy's mode instead of sampling
    :param progress: Show a progress bar over episodes with the time left
    :param settings: What else determines the numbers, to be kept in the result
    :return: The result, its episodes in the order of ``jobs``
    :raises ValueError: If there are no jobs, an environment has no schedule, or the model has lost its ``VecNormalize``
    :raises TypeError: If ``settings`` can't be written as JSON
    :raises RuntimeError: If an environment plays another task than it was told to
    """
    if not jobs:
        raise ValueError("There are no episodes to run: give at least one job, for example episode_jobs([''], n_goals=10).")
    if not all(venv.env_is_wrapped(EpisodeSchedule)):
        raise ValueError(
            "Each environment must be wrapped in an EpisodeSchedule, which tells it what to play next. Build them like "
            "this: DummyVecEnv([lambda: EpisodeSchedule(make_env()) for _ in range(8)])."
        )
    # Through JSON now: settings that can't be saved should fail before the work, and look the same when loaded again.
    settings_to_keep: dict[str, Any] = json.loads(
        json.dumps({"deterministic": deterministic, **(settings or {})}, default=_as_plain)
    )
    venv = normalize_like(model, venv)
    n_envs = venv.num_envs
    logs = [_EpisodeLog(jobs[index::n_envs]) for index in range(n_envs)]
    for index in range(n_envs):
        venv.env_method("set_jobs", jobs[index::n_envs], indices=index)

    observations = venv.reset()
    states = None
    episode_starts = np.ones(n_envs, dtype=bool)
    with tqdm(total=len(jobs), desc="evaluate", unit="episode", disable=not progress) as bar:
        while not all(log.complete for log in logs):
            actions, states = model.predict(
                observations,  # type: ignore[arg-type]  # tuples of observations are for old Gym
                state=states,
                episode_start=episode_starts,
                deterministic=deterministic,
            )
            observations, rewards, episode_starts, infos = venv.step(actions)
            for log, reward, done, info in zip(logs, rewards, episode_starts, infos, strict=True):
                if log.add(float(reward), bool(done), info):
                    bar.update()

    episodes = [logs[number % n_envs].records[number // n_envs] for number in range(len(jobs))]
    return EvaluationResult(episodes, settings_to_keep)


def evaluate_on_tasks(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    n_goals: int = 25,
    split: str = "test",
    n_envs: int = 8,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] | type[SharedMemoryVecEnv] | None = None,
    seed: int = 0,
    deterministic: bool = True,
    progress: bool = True,
    suite: str | Suite | None = None,
    **settings: Any,
) -> EvaluationResult:
    """
    Evaluate a model on tasks of a suite, one episode for each task and goal.

    :param model: A model trained on :func:`sb3_vla_envs.make_vla_env`'s environments; its chunk size, discount and
        ``VecNormalize`` are used
    :param tasks: Task, group of tasks, comma-separated names or a sequence of them
    :param n_goals: Goals per task
    :param split: Which goals: ``"test"``, which training never saw, ``"train"``, or ``"benchmark"`` where the suite has such
    :param n_envs: Environments that run at the same time
    :param vec_env_cls: ``SharedMemoryVecEnv`` (the default for more than one environment) or ``DummyVecEnv``, which starts
        at once and so is quicker for a few episodes
    :param seed: Seed of the environments' resets and, if actions are sampled, of the samples
    :param deterministic: Take the policy's mode instead of sampling
    :param progress: Show a progress bar over episodes with the time left
    :param suite: Suite of the tasks, by default the one that knows them
    :param settings: Settings of the environments (``cameras``, ``horizon``, ``n_action_steps``, ...), as in training
    :return: The result
    :raises TypeError: If a setting is unknown
    :raises ValueError: If a task is unknown, an argument is out of range, the model and the environment disagree on actions or
        observations, or the model has lost its ``VecNormalize``
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}")
    found = find_suite(tasks, suite)
    tasks = found.resolve_tasks(tasks)
    jobs = episode_jobs(tasks, n_goals, seed)
    settings = model_settings(model, **{"goal_split": split, "n_goals": n_goals, **settings})
    n_envs = min(n_envs, len(jobs))
    make_venv = vec_env_cls or make_vec_env_from_fns
    venv = make_venv([partial(_make_scheduled_env, tasks, {"suite": suite or found.address, **settings})] * n_envs)
    try:
        check_model_fits(model, venv)
        what_counts = {"suite": found.address, "tasks": tasks, "seed": seed, "n_envs": n_envs, **_in_full(found, settings)}
        # fork_rng: sampling here must not change the random numbers of a training that goes on afterwards
        with th.random.fork_rng():
            th.manual_seed(seed)
            return evaluate(model, venv, jobs, deterministic, progress, what_counts)
    finally:
        venv.close()


class _EpisodeLog:
    """
    Turns the steps of one environment into the records of its episodes.

    :param jobs: What the environment plays, in order
    """

    def __init__(self, jobs: Sequence[EpisodeJob]) -> None:
        self.records: list[EpisodeRecord] = []
        self._jobs = jobs
        self._start()

    @property
    def complete(self) -> bool:
        return len(self.records) == len(self._jobs)

    def add(self, reward: float, done: bool, info: Mapping[str, Any]) -> bool:
        """
        :param reward: Of the step
        :param done: Whether the episode ended with it
        :param info: Of the step
        :return: Whether this step completed an episode that counts
        """
        if self.complete:
            return False
        self._episode_return += reward
        self._progress.add(info)
        if not done:
            return False
        job = self._jobs[len(self.records)]
        played = task_name(info)
        if job.task and played not in ("", job.task):
            raise RuntimeError(
                f"The environment was reset with {job.options}, but played the task '{played}'. Its reset must "
                "follow options['task'] and options['goal_index']; see whether a wrapper drops them."
            )
        steps, to_success = self._progress.steps, self._progress.steps_to_success
        record = EpisodeRecord(job.task, job.goal_index, to_success is not None, to_success, steps, self._episode_return)
        self.records.append(record)
        self._start()
        return True

    def _start(self) -> None:
        self._episode_return = 0.0
        self._progress = EpisodeProgress()


def _make_scheduled_env(tasks: Sequence[str], settings: Mapping[str, Any]) -> EpisodeSchedule:
    return EpisodeSchedule(make_vla_env(tasks, **settings))


def _in_full(suite: Suite, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and those that go without saying: the suite's own, but for what matters in training only."""
    defaults = suite.acting_settings({**vars(suite.simulation()), **vars(suite.wrapping)})
    return {**defaults, **{name: value for name, value in settings.items() if value is not None}}


def _as_plain(value: Any) -> dict[str, Any]:
    """For what JSON doesn't know: a dataclass, such as a ``Camera``, as a dict."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} is among the settings of the evaluation, but can't be written to its JSON file. Leave it out.")

"""Evaluation of a policy: one episode for each task and goal, in parallel, the same whatever the number of environments."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from tqdm.auto import tqdm

from sb3_vla_envs import make_vla_env, resolve_tasks
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress

from ..vec_env.make import make_vec_env_from_fns
from ..vec_env.shared_memory_vec_env import SharedMemoryVecEnv
from .evaluation_result import EpisodeRecord, EvaluationResult

# Arguments of ``make_vla_env`` that do not matter to a model in use: the discount, the critic's inputs, the order of episodes
TRAINING_ONLY = ("gamma", "privileged", "task_ids", "goal_order", "task_order")


@dataclass(frozen=True)
class EpisodeJob:
    """
    One episode to run.

    :param task: name of the task, or "" where the environment has no tasks
    :param goal_index: number of the goal; without a task, just the number of the episode
    :param seed: seed of the environment's reset
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

    :param tasks: names of tasks; ``[""]`` for an environment without tasks
    :param n_goals: goals (or, without tasks, episodes) per task
    :param seed: an episode's own seed follows from this one, its task and its goal, so that it stays the same whatever
        other tasks and goals are evaluated
    :return: ``len(tasks) * n_goals`` jobs
    :raises ValueError: if there is nothing to do, or a task is named twice
    """
    if not tasks or n_goals < 1:
        raise ValueError(f"Got {len(tasks)} tasks and {n_goals} goals a task: give at least one of both.")
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"A task is named twice in {list(tasks)}: name each once.")
    return [EpisodeJob(task, goal, episode_seed(seed, task, goal)) for task in tasks for goal in range(n_goals)]


class EpisodeSchedule(gym.Wrapper[Any, Any, Any, Any]):
    """
    Plays a given list of episodes, one a reset, and then stands still.

    SB3's vectorised environments reset an environment by themselves when its episode ends, and that reset takes neither
    seed nor options (``VecEnv.set_options`` reaches only an explicit ``reset()``). So the environment itself has to know
    what to play next. Once its list is played, it repeats its last observation and simulates nothing while the other
    environments finish.

    :param env: an environment whose ``reset`` takes the options ``task`` and ``goal_index``, or no options at all
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._jobs: list[EpisodeJob] = []
        self._n_started = 0
        self._idle = True
        self._observation: Any = None

    def set_jobs(self, jobs: Sequence[EpisodeJob]) -> None:
        """
        :param jobs: what to play, from the next reset on
        """
        self._jobs = list(jobs)
        self._n_started = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start the next episode of the list.

        :param seed: used only if there is no episode to play: each brings its own
        :param options: likewise
        :return: observation and info
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
        :param action: as the wrapped environment takes it; ignored once the list is played
        :return: observation, reward, terminated, truncated, info
        """
        if self._idle:
            return self._observation, 0.0, False, False, {}
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation, reward, terminated, truncated, info


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

    :param model: an SB3 model or policy, or anything with their ``predict``
    :param venv: vectorised environment, each environment of it in an :class:`EpisodeSchedule`
    :param jobs: the episodes (:func:`episode_jobs`)
    :param deterministic: take the policy's mode instead of sampling
    :param progress: show a progress bar over episodes with the time left
    :param settings: what else determines the numbers, to be kept in the result
    :return: the result, its episodes in the order of ``jobs``
    :raises ValueError: if there are no jobs or an environment has no schedule
    :raises TypeError: if ``settings`` can't be written as JSON
    :raises RuntimeError: if an environment plays another task than it was told to
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


def evaluate_on_metaworld(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    n_goals: int = 25,
    split: str = "test",
    n_envs: int = 8,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] | type[SharedMemoryVecEnv] | None = None,
    seed: int = 0,
    deterministic: bool = True,
    progress: bool = True,
    horizon: int = 500,
    goal_seed: int = 0,
    n_action_steps: int | None = None,
    **env_kwargs: Any,
) -> EvaluationResult:
    """
    Evaluate a model on MetaWorld, one episode for each task and goal.

    :param model: a model trained on :func:`sb3_vla_envs.make_vla_env`'s environments; its chunk size and discount are used
    :param tasks: task, benchmark (``"MT10"``), comma-separated names or a sequence of them
    :param n_goals: goals per task
    :param split: which goals: ``"test"``, which training never saw, or ``"train"``
    :param n_envs: environments that run at the same time
    :param vec_env_cls: ``SharedMemoryVecEnv`` (the default for more than one environment) or ``DummyVecEnv``, which starts
        at once and so is quicker for a few episodes
    :param seed: seed of the environments' resets and, if actions are sampled, of the samples
    :param deterministic: take the policy's mode instead of sampling
    :param progress: show a progress bar over episodes with the time left
    :param horizon: primitive steps after which an episode ends
    :param goal_seed: seed of the list of goals
    :param n_action_steps: primitive steps executed of each chunk; all by default
    :param env_kwargs: further arguments of ``make_vla_env`` (``cameras``, ``quality``...), as in training
    :return: the result
    :raises ValueError: if a task is unknown, or the model and the environment disagree on actions or observations
    """
    tasks = resolve_tasks(tasks)
    jobs = episode_jobs(tasks, n_goals, seed)
    env_kwargs = metaworld_env_kwargs(
        model, horizon=horizon, goal_seed=goal_seed, goal_split=split, n_action_steps=n_action_steps, **env_kwargs
    )
    n_envs = min(n_envs, len(jobs))
    make_venv = vec_env_cls or make_vec_env_from_fns
    venv = make_venv([partial(_make_scheduled_env, tasks, n_goals, env_kwargs)] * n_envs)
    try:
        check_model_fits(model, venv)
        settings = {"tasks": tasks, "n_goals": n_goals, "seed": seed, "n_envs": n_envs, **env_kwargs}
        # fork_rng: sampling here must not change the random numbers of a training that goes on afterwards
        with th.random.fork_rng():
            th.manual_seed(seed)
            return evaluate(model, venv, jobs, deterministic, progress, settings)
    finally:
        venv.close()


def metaworld_env_kwargs(model: BaseAlgorithm, **env_kwargs: Any) -> dict[str, Any]:
    """
    Complete the arguments of ``make_vla_env`` by those that the model fixes: its chunk size and its discount. Without
    ``privileged``: no policy needs it to act, and its size depends on the list of tasks in training.

    :param model: a model whose actions are chunks of shape (chunk_size, action_dim)
    :param env_kwargs: arguments of ``make_vla_env``
    :return: the arguments, with ``chunk_size``, ``gamma`` and ``privileged``
    :raises ValueError: if the model's actions are no chunks, or of another size than an explicit ``chunk_size``
    """
    shape = model.action_space.shape
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"The model's action space is {model.action_space}, but MetaWorld takes chunks of actions: a Box of shape "
            "(chunk_size, 4). Give a model that was trained on sb3_vla_envs.make_vla_env(...)."
        )
    chunk_size = env_kwargs.setdefault("chunk_size", shape[0])
    if chunk_size != shape[0]:
        raise ValueError(
            f"chunk_size is {chunk_size}, but the model predicts chunks of {shape[0]}. Leave chunk_size out; to execute "
            "fewer actions of each chunk, give n_action_steps."
        )
    env_kwargs.setdefault("privileged", False)
    if hasattr(model, "gamma"):
        env_kwargs.setdefault("gamma", float(model.gamma))
    return env_kwargs


def check_model_fits(model: BaseAlgorithm, env: gym.Env[Any, Any] | VecEnv) -> None:
    """
    Check that a model can act in an environment. Whether images are channels-first doesn't matter, as SB3 policies turn
    them, nor does a missing ``privileged``, which only a critic in training reads.

    :param model: the model
    :param env: the environment
    :raises ValueError: if actions or observations differ in shape or type; the message names them
    """
    expected = {"action": _signature(model.action_space), **_observation_signatures(model.observation_space)}
    given = {"action": _signature(env.action_space), **_observation_signatures(env.observation_space)}
    if "observation 'privileged'" not in given:
        expected.pop("observation 'privileged'", None)
    differences = [
        f"{key}: the model has {expected.get(key, 'none')}, the environment {given.get(key, 'none')}"
        for key in {**expected, **given}
        if expected.get(key) != given.get(key)
    ]
    if differences:
        raise ValueError(
            f"The model doesn't fit the environment. {'; '.join(differences)}. "
            "Give the environment the arguments that it had in training (chunk_size, cameras, tasks or task_ids, ...)."
        )


def episode_seed(seed: int, task: str, goal_index: int) -> int:
    """
    :param seed: seed of the evaluation, at least 0
    :param task: name of the task
    :param goal_index: number of the goal
    :return: seed of that episode, 0..2^31 - 1
    """
    entropy = (seed, zlib.crc32(task.encode("utf-8")), goal_index)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


class _EpisodeLog:
    """
    Turns the steps of one environment into the records of its episodes.

    :param jobs: what the environment plays, in order
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
        :param reward: of the step
        :param done: whether the episode ended with it
        :param info: of the step
        :return: whether this step completed an episode that counts
        """
        if self.complete:
            return False
        self._episode_return += reward
        self._progress.add(info)
        if not done:
            return False
        job = self._jobs[len(self.records)]
        if info.get("task", job.task) != job.task:
            raise RuntimeError(
                f"The environment was reset with {job.options}, but played the task '{info['task']}'. Its reset must "
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


def _make_scheduled_env(tasks: Sequence[str], n_goals: int, env_kwargs: Mapping[str, Any]) -> EpisodeSchedule:
    return EpisodeSchedule(make_vla_env(tasks, n_goals=n_goals, **env_kwargs))


def _as_plain(value: Any) -> dict[str, Any]:
    """For what JSON doesn't know: a dataclass, such as a ``Camera``, as a dict."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} is among the settings of the evaluation, but can't be written to its JSON file. Leave it out.")


def _observation_signatures(space: gym.Space[Any]) -> dict[str, str]:
    if isinstance(space, gym.spaces.Dict):
        return {f"observation '{key}'": _signature(subspace) for key, subspace in space.spaces.items()}
    return {"observation": _signature(space)}


def _signature(space: gym.Space[Any]) -> str:
    shape = space.shape
    if isinstance(space, gym.spaces.Box) and is_image_space(space) and is_image_space_channels_first(space):
        shape = (*space.shape[1:], space.shape[0])
    return f"{type(space).__name__}{shape} of {space.dtype}"

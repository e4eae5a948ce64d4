"""Playing a given list of episodes with a model, in parallel, the same whatever the number of environments."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_vla_envs import Suite, make_vla_env

from ..common.lost_episode import is_lost
from ..vec_env.make import make_vec_env_from_fns
from ..vec_env.shared_memory_vec_env import SharedMemoryVecEnv
from .episode_schedule import EpisodeJob, EpisodeSchedule
from .model_fit import check_model_fits
from .normalize_like import normalize_like

#: What may run the environments
VecEnvClass = type[DummyVecEnv] | type[SubprocVecEnv] | type[SharedMemoryVecEnv]


class PlayedStep(NamedTuple):
    """
    A step of one of the episodes.

    :param episode: Number of the episode in the list of jobs
    :param observation: What the environment showed before the step, before ``VecNormalize``; to be kept, it must be copied
    :param action: What the model did, clipped to the bounds of the action space
    :param reward: Of the step
    :param done: Whether the episode ended with it
    :param info: Of the step
    """

    episode: int
    observation: Any
    action: np.ndarray
    reward: float
    done: bool
    info: Mapping[str, Any]


def play(model: PolicyPredictor, venv: VecEnv, jobs: Sequence[EpisodeJob], deterministic: bool) -> Iterator[PlayedStep]:
    """
    Play exactly the given episodes. Which environment plays which is settled beforehand, so a slow episode is never dropped
    in favour of a quick one, and the outcome doesn't depend on the number of environments (but for the rounding of
    differently sized batches and, if actions are sampled, the order of the samples).

    :param model: An SB3 model or policy, or anything with their ``predict``
    :param venv: Vectorised environment, each environment of it in an :class:`EpisodeSchedule`; the model sees it
        through its own ``VecNormalize``, if it has one
    :param jobs: The episodes
    :param deterministic: Take the policy's mode instead of sampling
    :return: Iterator over the steps of all episodes; those of one come in order
    :raises ValueError: If an environment has no schedule, or the model has lost its ``VecNormalize``
    :raises RuntimeError: If a worker of the environments is lost
    """
    if not isinstance(venv, VecEnv) or not all(venv.env_is_wrapped(EpisodeSchedule)):
        raise ValueError(
            "Each environment must be wrapped in an EpisodeSchedule, which tells it what to play next. Build them like "
            "this: DummyVecEnv([lambda: EpisodeSchedule(make_env()) for _ in range(8)])."
        )
    venv = normalize_like(model, venv)
    n_envs = venv.num_envs
    for index in range(n_envs):
        venv.env_method("set_jobs", jobs[index::n_envs], indices=index)
    # Numbers of the episodes that they play; beyond the last one an environment stands still
    playing = np.arange(n_envs)
    observations = venv.reset()
    states = None
    episode_starts = np.ones(n_envs, dtype=bool)
    while (playing < len(jobs)).any():
        seen = venv.get_original_obs() if isinstance(venv, VecNormalize) else observations
        actions, states = model.predict(
            observations,  # type: ignore[arg-type]  # tuples of observations are for old Gym
            state=states,
            episode_start=episode_starts,
            deterministic=deterministic,
        )
        observations, rewards, episode_starts, infos = venv.step(actions)
        if any(map(is_lost, infos)):
            raise RuntimeError("a worker of the environments was lost in mid-episode: play all episodes once more")
        for index in map(int, np.flatnonzero(playing < len(jobs))):
            observation = {key: values[index] for key, values in seen.items()} if isinstance(seen, dict) else seen[index]
            done = bool(episode_starts[index])
            yield PlayedStep(int(playing[index]), observation, actions[index], float(rewards[index]), done, infos[index])
        playing[episode_starts] += n_envs


@contextmanager
def scheduled_envs(
    model: BaseAlgorithm,
    suite: Suite | str,
    tasks: Sequence[str],
    n_envs: int,
    settings: Mapping[str, Any],
    vec_env_cls: VecEnvClass | None = None,
) -> Iterator[VecEnv]:
    """
    Environments that play lists of episodes, as long as the context lasts.

    :param model: What acts in them
    :param suite: Suite of the tasks, or its name
    :param tasks: Their tasks
    :param n_envs: How many
    :param settings: Settings of the environments
    :param vec_env_cls: ``SharedMemoryVecEnv`` (the default for more than one environment) or ``DummyVecEnv``
    :return: The vectorised environment
    :raises ValueError: If the model does not fit them
    """
    make_venv = vec_env_cls or make_vec_env_from_fns
    venv = make_venv([partial(_make_scheduled_env, tasks, {"suite": suite, **settings})] * n_envs)
    try:
        check_model_fits(model, venv)
        yield venv
    finally:
        venv.close()


def _make_scheduled_env(tasks: Sequence[str], settings: Mapping[str, Any]) -> EpisodeSchedule:
    return EpisodeSchedule(make_vla_env(tasks, **settings))

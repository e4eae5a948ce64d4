"""Episodes recorded as pictures."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Suite, decode_instruction, make_vla_env
from sb3_vla_envs.argument_checks import check_count
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress

from ..common.observation_normalization import normalize_observations, observation_normalizer
from ..common.random_states import forked_random
from .episode_schedule import episode_seed
from .model_fit import check_model_fits, model_settings


@dataclass(frozen=True)
class Recording:
    """
    One recorded episode.

    :param frames: Pictures, each uint8 of shape (height, width, 3)
    :param steps: The primitive step after which each was taken; the first is 0, the last the end of the episode
    :param instruction: What the policy was told, "" if nothing
    :param steps_to_success: Primitive steps until success, ``None`` if there was none
    """

    frames: list[NDArray[np.uint8]]
    steps: list[int]
    instruction: str
    steps_to_success: int | None


def record_episode(
    model: PolicyPredictor,
    env: gym.Env[Any, Any],
    options: dict[str, Any] | None = None,
    seed: int | None = None,
    deterministic: bool = True,
    stride: int = 2,
) -> Recording:
    """
    Run one episode and keep its pictures.

    :param model: An SB3 model or policy, or anything with their ``predict``; it sees observations through its own
        ``VecNormalize``, if it has one
    :param env: Environment with ``render_mode="rgb_array_list"``, whose ``render`` returns the pictures of all primitive
        steps since it was last asked
    :param options: Of the environment's reset, for example ``{"task": "window-open-v3", "goal_index": 0}``
    :param seed: Of the environment's reset
    :param deterministic: Take the policy's mode instead of sampling
    :param stride: Keep each ``stride``-th picture (and the last), at least 1
    :return: The recording
    :raises ValueError: If the environment renders in another way, ``stride`` is below 1, or the model has lost its
        ``VecNormalize``
    """
    if env.render_mode != "rgb_array_list":
        raise ValueError(
            f"The environment's render_mode is {env.render_mode!r}, but recording needs the pictures of all steps of a "
            "chunk: make it with render_mode='rgb_array_list'."
        )
    if stride < 1:
        raise ValueError(f"stride is {stride}, but must be at least 1, which keeps every picture.")
    normalizer = observation_normalizer(model)
    observation, _ = env.reset(seed=seed, options=options)
    instruction = _instruction(observation)
    pictures, progress = _PictureCollector(stride), EpisodeProgress()
    pictures.add(env.render())
    state, start, done = None, np.ones(1, dtype=bool), False
    while not done:
        action, state = model.predict(
            _as_seen(observation, normalizer), state=state, episode_start=start, deterministic=deterministic
        )
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        start = np.array([done])
        pictures.add(env.render())  # after each chunk, so that the pictures that aren't kept are freed
        progress.add(info)
    pictures.keep_last()
    return Recording(pictures.frames, pictures.steps, instruction, progress.steps_to_success)


def record_task_episode(
    model: BaseAlgorithm,
    task: str,
    goal_index: int = 0,
    split: str = "test",
    seed: int = 0,
    deterministic: bool = True,
    suite: str | Suite | None = None,
    **settings: Any,
) -> Recording:
    """
    Record one of the episodes that :func:`~sb3_vla.evaluate_on_tasks` runs with the same arguments; with sampled actions one
    like it, as there samples depend on what is played beside it. It changes no random numbers of a training that goes on.

    :param model: A model trained on :func:`sb3_vla_envs.make_vla_env`'s environments
    :param task: Name of the task
    :param goal_index: Number of the goal
    :param split: Which goals: ``"test"`` or ``"train"``
    :param seed: Seed of the evaluation
    :param deterministic: Take the policy's mode instead of sampling
    :param suite: Suite of the task, by default the one that knows it
    :param settings: Settings of the environment (``cameras``, ``quality``, ...), as in training
    :return: The recording
    :raises TypeError: If the goal or the seed is no integer
    :raises ValueError: If the task is unknown, one of these is negative, or the model and the environment disagree on actions
        or observations
    """
    check_count("goal_index", goal_index, least=0)
    # Goals just enough, since a shorter list is a prefix of a longer one
    settings = model_settings(model, **{"goal_split": split, "n_goals": goal_index + 1, **settings})
    env = make_vla_env(task, suite=suite, render_mode="rgb_array_list", **settings)
    try:
        check_model_fits(model, env)
        options = {"task": task, "goal_index": goal_index}
        with forked_random(getattr(model, "device", None)):
            th.manual_seed(seed)
            return record_episode(model, env, options, episode_seed(seed, task, goal_index), deterministic)
    finally:
        env.close()


class _PictureCollector:
    """
    Keeps each ``stride``-th picture and the last.

    :param stride: At least 1
    """

    def __init__(self, stride: int) -> None:
        self.frames: list[NDArray[np.uint8]] = []
        self.steps: list[int] = []
        self.step = -1
        self._stride = stride
        self._last: NDArray[np.uint8] | None = None

    def add(self, pictures: Any) -> None:
        for picture in pictures:
            self.step += 1
            self._last = picture
            if self.step % self._stride == 0:
                self._keep(picture)

    def keep_last(self) -> None:
        if self._last is not None and self.steps[-1] != self.step:
            self._keep(self._last)

    def _keep(self, picture: NDArray[np.uint8]) -> None:
        self.frames.append(picture)
        self.steps.append(self.step)


def _as_seen(observation: Any, normalizer: VecNormalize | None) -> Any:
    """What a model sees of an observation."""
    if normalizer is None:
        return observation
    if isinstance(observation, dict):
        return normalize_observations(normalizer, observation)
    return normalizer.normalize_obs(observation)


def _instruction(observation: Any) -> str:
    if not isinstance(observation, dict) or "instruction" not in observation:
        return ""
    return decode_instruction(observation["instruction"])

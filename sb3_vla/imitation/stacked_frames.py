"""Demonstrations as ``VecFrameStack`` would have shown them to the policy."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_wrapper

from sb3_vla_envs import Demonstration


def stack_frames(demonstrations: Sequence[Demonstration], venv: VecEnv) -> list[Demonstration]:
    """
    :param demonstrations: Episodes of what a single environment shows; those whose frames are stacked already stay as they are
    :param venv: The vectorised environment of the policy
    :return: The episodes with the last n frames of each observation, the oldest first and zeros before the episode's start,
        if a ``VecFrameStack`` that stacks n of them is among the environment's wrappers
    """
    stack = unwrap_vec_wrapper(venv, VecFrameStack)
    if stack is None:
        return list(demonstrations)
    return [replace(demo, observations=_stacked(demo.observations, stack)) for demo in demonstrations]


def _stacked(observations: dict[str, np.ndarray], stack: VecFrameStack) -> dict[str, np.ndarray]:
    """
    :param observations: ``(T, ...)`` by key
    :param stack: The wrapper
    :return: The same, where the wrapper stacks a key: n times as long along one axis, the images' axes as it has them
    """
    stacked = dict(observations)
    for key, part in stack.stacked_obs.sub_stacked_observations.items():
        frames = observations.get(key)
        if frames is None or math.prod(frames.shape[1:]) == math.prod(part.stacked_shape):
            continue
        frames = maybe_transpose(frames, part.observation_space)
        seen = np.concatenate([np.zeros_like(frames, shape=(part.n_stack - 1, *frames.shape[1:])), frames])
        stacked[key] = np.concatenate([seen[k : k + len(frames)] for k in range(part.n_stack)], axis=part.stack_dimension)
    return stacked

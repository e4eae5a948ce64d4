"""What PPOSelfBC expects of an environment, beside what SB3 does."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_vla_envs.demonstrations import ARRAY_KEY

from ..policies.observation_checks import normalize_call


def check_chunks(env: VecEnv, gamma: float, required: bool) -> int | None:
    """
    :param env: The environment
    :param gamma: The algorithm's discount factor of a primitive step
    :param required: Whether it must take chunks
    :return: How many primitive actions a chunk of it has, ``None`` if it takes no chunks
    :raises ValueError: If it discounts rewards inside a chunk by another gamma, or has no chunks where they are required
    """
    if not (env.has_attr("chunk_size") and env.has_attr("chunk_gamma")):  # of other meaning, if alone
        if required:
            raise ValueError(
                "VLAPolicy needs an environment that takes chunks and says so by the attributes chunk_size and "
                "chunk_gamma and by info['chunk_length']: wrap it in "
                "sb3_vla_envs.ChunkedActionWrapper(env, chunk_size, gamma=...)"
            )
        return None
    chunk_sizes = env.get_attr("chunk_size")
    for chunk_size, chunk_gamma in set(zip(chunk_sizes, env.get_attr("chunk_gamma"), strict=True)):
        if chunk_size > 1 and chunk_gamma != gamma:  # inside a chunk of one there is nothing to discount
            raise ValueError(
                f"the environment discounts inside a chunk by gamma={chunk_gamma}, PPOSelfBC by gamma={gamma}: give both "
                f"the same, e.g. ChunkedActionWrapper(env, chunk_size, gamma={gamma})"
            )
    return int(chunk_sizes[0])


def check_chunk_lengths(infos: Sequence[Mapping[str, Any]], chunk_size: int | None) -> np.ndarray:
    """
    :param infos: Of a step
    :param chunk_size: Primitive actions of a chunk, ``None`` without chunks
    :return: Primitive steps that each environment has executed, ``(n_envs,)``
    :raises ValueError: If one does not say it
    """
    if chunk_size is not None and chunk_size > 1:
        for number, info in enumerate(infos):
            if "chunk_length" not in info:
                raise ValueError(
                    f"environment {number} takes chunks of {chunk_size} actions, but info['chunk_length'] does not say how "
                    "many of them it executed: wrap it in ChunkedActionWrapper, or see which wrapper drops the key; there are "
                    f"{sorted(map(str, info))}"
                )
    return np.array([info.get("chunk_length", 1) for info in infos])


def check_numbering(action_space: spaces.Space) -> None:
    """
    :param action_space: Action space of an environment
    :raises ValueError: If its discrete actions are not numbered from 0 on, as SB3's policies number them
    """
    if isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete) and np.any(action_space.start):
        raise ValueError(
            f"the actions of {action_space} begin at {np.asarray(action_space.start).tolist()}, but SB3's policies number "
            "them from 0: add that to the action in a gymnasium.wrappers.TransformAction, inside of chunks"
        )


def check_normalization(env: VecEnv, byte_keys: Sequence[str]) -> tuple[str, ...]:
    """
    :param env: The environment
    :param byte_keys: Observations that must not be normalised: pictures and prompts
    :return: The observations that ``VecNormalize`` normalises
    :raises ValueError: If these are among them
    """
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None or not normalizer.norm_obs:
        return ()
    if not isinstance(env.observation_space, spaces.Dict):
        return (ARRAY_KEY,)
    keys = tuple(normalizer.norm_obs_keys or ())
    if wrong := [key for key in keys if key in byte_keys]:
        raise ValueError(
            f"VecNormalize would normalise {wrong}, but pictures and prompts are bytes and must stay as they are: write "
            f"{normalize_call(env.observation_space)}, for the evaluation environment too"
        )
    return keys


def check_normalized_alike(learned: Collection[str], found: Collection[str]) -> None:
    """
    :param learned: Observations that ``VecNormalize`` normalised while a model learned
    :param found: Those that it normalises in another environment
    :raises ValueError: If they are not the same
    """
    if set(learned) != set(found):
        raise ValueError(
            f"the model has learned with the observations {list(learned)} normalised by VecNormalize, but of this environment "
            f"{list(found)} are: give it one like that of its training, where there was a VecNormalize by "
            "VecNormalize.load('vecnormalize.pkl', venv)"
        )


def check_no_text(observation_space: spaces.Space) -> None:
    """
    :param observation_space: Observation space of an environment
    :raises ValueError: If it holds text, which SB3 can't store
    """
    texts = [key for key, space in getattr(observation_space, "spaces", {}).items() if isinstance(space, spaces.Text)]
    if texts:
        raise ValueError(
            f"the observations {texts} are text, which SB3 does not know: let sb3_vla_envs.InstructionObservation(env) make "
            "bytes of the instruction, and leave out other texts"
        )

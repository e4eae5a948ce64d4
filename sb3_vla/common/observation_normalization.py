"""``VecNormalize``, away from the environment that it stands around."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize, unwrap_vec_wrapper


def observation_normalizer(model: Any) -> VecNormalize | None:
    """
    :param model: An SB3 model, or anything that predicts
    :return: What normalises its observations in training, or ``None`` if nothing does
    :raises ValueError: If something did, and the model is here without its statistics, or these are of single frames though
        the model sees several
    """
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if normalizer is not None and normalizer.norm_obs:
        check_frame_stack(model.get_env(), "away from its environment the model")
        return normalizer
    if keys := getattr(model, "normalized_keys", ()):
        raise ValueError(
            f"In training VecNormalize normalised the observations {list(keys)} of this model, which is here without the "
            "statistics. They are in a file of their own: save them beside the model by "
            "model.get_vec_normalize_env().save('vecnormalize.pkl'), load both by "
            "PPOSelfBC.load('model.zip', env=VecNormalize.load('vecnormalize.pkl', venv)), and give that model, not its "
            "policy alone."
        )
    return None


def check_frame_stack(env: VecEnv, who: str, otherwise: str = "") -> None:
    """
    :param env: An environment whose observations are normalised
    :param who: What reads observations that are normalised only when they are read, for the message
    :param otherwise: What else could be done, for the message
    :raises ValueError: If they, kept as they were before normalisation, would not be stacked
    """
    stack = unwrap_vec_wrapper(env, VecFrameStack)
    if stack is not None and unwrap_vec_normalize(stack) is not None:
        raise ValueError(
            f"VecFrameStack stands around VecNormalize, but {who} sees stacked observations that are normalised after that: "
            "stack first, VecNormalize(VecFrameStack(env, n_stack)), in rl-baselines3-zoo by vec_env_wrapper in place of "
            f"frame_stack{otherwise}"
        )


def normalize_observations(normalizer: VecNormalize, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    :param normalizer: The wrapper
    :param observations: Some of its environment's observations, ``(batch, ...)`` by key
    :return: The same, those that it normalises normalised
    """
    assert isinstance(normalizer.obs_rms, dict)
    # VecNormalize.normalize_obs wants every key, and copies all of them
    return {
        key: normalizer._normalize_obs(values, normalizer.obs_rms[key]).astype(np.float32)
        if key in normalizer.obs_rms
        else values
        for key, values in observations.items()
    }

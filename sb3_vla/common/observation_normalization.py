"""``VecNormalize``, away from the environment that it stands around."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize


def observation_normalizer(model: Any) -> VecNormalize | None:
    """
    :param model: An SB3 model, or anything that predicts
    :return: What normalises its observations in training, or ``None`` if nothing does
    :raises ValueError: If something did, and the model is here without its statistics
    """
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if normalizer is not None and normalizer.norm_obs:
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

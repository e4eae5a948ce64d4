"""A model sees the observations of an evaluation as it saw those of its training: through the same ``VecNormalize``."""

from copy import deepcopy
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize


def normalize_like(model: Any, venv: VecEnv) -> VecEnv:
    """
    :param model: An SB3 model, or anything that predicts
    :param venv: A vectorised environment. One that stands in a ``VecNormalize`` already is left as it is
    :return: The environment in a copy of the model's ``VecNormalize``, which learns nothing and leaves rewards alone; or the
        environment itself, if the model was trained without
    :raises ValueError: If the model was trained with one and is here without its statistics
    """
    if unwrap_vec_normalize(venv) is not None:
        return venv
    normalizer = observation_normalizer(model)
    if normalizer is None:
        return venv
    copy = VecNormalize(
        venv,
        training=False,
        norm_reward=False,
        clip_obs=normalizer.clip_obs,
        epsilon=normalizer.epsilon,
        norm_obs_keys=deepcopy(normalizer.norm_obs_keys),
    )
    copy.obs_rms = deepcopy(normalizer.obs_rms)
    return copy


def observation_normalizer(model: Any) -> VecNormalize | None:
    """
    :param model: An SB3 model, or anything that predicts
    :return: What normalised its observations in training, or ``None`` if nothing did
    :raises ValueError: If something did, and the model is here without its statistics
    """
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if normalizer is not None and normalizer.norm_obs:
        return normalizer
    keys = getattr(model, "normalized_keys", ())
    if keys:
        raise ValueError(
            f"In training VecNormalize normalised the observations {list(keys)} of this model, but it was loaded without the "
            "statistics, which are in a file of their own. Save them beside the model by "
            "model.get_vec_normalize_env().save('vecnormalize.pkl'), and load both: "
            f"{type(model).__name__}.load('model.zip', env=VecNormalize.load('vecnormalize.pkl', venv))."
        )
    return None

"""A model sees the observations of an evaluation as it saw those of its training: through the same ``VecNormalize``."""

from copy import deepcopy
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ..common.observation_normalization import observation_normalizer


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
    statistics: Any = deepcopy(normalizer.obs_rms)
    if isinstance(venv.observation_space, spaces.Dict):
        # The environment may do without what only a critic reads
        statistics = {key: value for key, value in statistics.items() if key in venv.observation_space.spaces}
    copy = VecNormalize(
        venv,
        training=False,
        norm_reward=False,
        clip_obs=normalizer.clip_obs,
        epsilon=normalizer.epsilon,
        norm_obs_keys=list(statistics) if isinstance(statistics, dict) else None,
    )
    copy.obs_rms = statistics
    return copy

"""Images and prompts stay as they are under ``VecNormalize``."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import (
    StackedObservations,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from ..policies.vla_policy import REQUIRED_KEYS, is_image_key


def keep_images_and_prompts_raw(env: VecEnv) -> list[str]:
    """
    Take the images and the instruction of an environment that VLAPolicy can read out of ``VecNormalize``, which normalises
    all keys unless ``norm_obs_keys`` says otherwise. Other keys, and other environments, stay as they are.

    ``VecNormalize`` and the wrappers around it are changed in place, and so are the observation spaces of those inside it,
    which it had replaced.

    :param env: A vectorised environment, perhaps in wrappers
    :return: The keys that would have been normalised
    """
    normalize = unwrap_vec_normalize(env)
    if normalize is None or not normalize.norm_obs or not isinstance(env.observation_space, spaces.Dict):
        return []
    assert isinstance(normalize.observation_space, spaces.Dict) and isinstance(normalize.obs_rms, dict)
    assert normalize.norm_obs_keys is not None
    observations = normalize.observation_space.spaces
    if not set(REQUIRED_KEYS) <= observations.keys():
        return []
    raw = [key for key in normalize.norm_obs_keys if key == "instruction" or is_image_key(key)]
    normalize.norm_obs_keys = [key for key in normalize.norm_obs_keys if key not in raw]
    for key in raw:
        del normalize.obs_rms[key]
        if _is_replaced(observations[key], normalize):
            observations[key] = spaces.Box(0, 255, observations[key].shape, np.uint8)
        _adapt_wrappers(env, normalize, key)
    return raw


def _is_replaced(space: spaces.Space, normalize: VecNormalize) -> bool:
    """Whether ``VecNormalize`` has put the space in the place of an image's."""
    if space.dtype != np.float32 or len(space.shape or ()) != 3:
        return False
    assert isinstance(space, spaces.Box)
    return bool((space.low == -np.float32(normalize.clip_obs)).all() and (space.high == np.float32(normalize.clip_obs)).all())


def _adapt_wrappers(env: VecEnv, normalize: VecNormalize, key: str) -> None:
    """
    :param env: The outermost wrapper
    :param normalize: The innermost to leave alone
    :param key: The observation whose space has changed; wrappers that don't change it share their space with those inside
    """
    if env is normalize:
        return
    assert isinstance(env, VecEnvWrapper) and isinstance(env.observation_space, spaces.Dict)
    _adapt_wrappers(env.venv, normalize, key)
    inner = env.venv.observation_space[key]  # type: ignore[index]
    if isinstance(env, VecFrameStack):
        stacked = StackedObservations(env.num_envs, env.stacked_obs.n_stack, inner)
        env.stacked_obs.sub_stacked_observations[key] = stacked
        env.observation_space.spaces[key] = stacked.stacked_observation_space
    elif isinstance(env, VecTransposeImage) and not env.skip and key not in env.image_space_keys:
        if is_image_space(inner) and not is_image_space_channels_first(inner):
            env.image_space_keys.append(key)
            env.observation_space.spaces[key] = env.transpose_space(inner, key)
        else:
            env.observation_space.spaces[key] = inner

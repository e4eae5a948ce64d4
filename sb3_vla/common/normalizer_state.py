"""What SB3's ``VecNormalize`` goes on from."""

import os
from typing import Any

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from .plain_file import load_plain, save_plain

_FORMAT = "sb3-vla normalizer 1"
_STATISTICS = ("mean", "var", "count")
_ARGUMENTS = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def save_normalizer(normalizer: VecNormalize, path: str | os.PathLike[str]) -> None:
    """
    Save a ``VecNormalize``; unlike its own ``save``, without pickle.

    :param normalizer: The wrapper
    :param path: Where to write
    """
    arguments = {name: getattr(normalizer, name) for name in _ARGUMENTS}
    save_plain(path, {"format": _FORMAT, "arguments": arguments, "state": get_normalizer_state(normalizer)})


def load_normalizer(path: str | os.PathLike[str], venv: VecEnv) -> VecNormalize:
    """
    :param path: What :func:`save_normalizer` wrote
    :param venv: The environment to wrap
    :return: A ``VecNormalize`` around it with the arguments and statistics of the file, which runs nothing
    :raises ValueError: If the file is truncated, damaged or something else
    """
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is no file that save_normalizer wrote")
    normalizer = VecNormalize(venv, **content["arguments"])
    set_normalizer_state(normalizer, {**content["state"], "discounted": normalizer.returns})  # of as many environments
    return normalizer


def get_normalizer_state(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: The wrapper
    :return: Its statistics, and what it last saw
    """
    return {
        "observations": get_observation_statistics(normalizer),
        "returns": _numbers(normalizer.ret_rms),
        "discounted": normalizer.returns.copy(),
        "last_observation": vars(normalizer).get("old_obs"),  # before the first reset there is none
        "last_reward": normalizer.old_reward,
    }


def set_normalizer_state(normalizer: VecNormalize, state: dict[str, Any]) -> None:
    """
    :param normalizer: A wrapper made with the same arguments
    :param state: What :func:`get_normalizer_state` returned
    """
    set_observation_statistics(normalizer, state["observations"])
    _set_numbers(normalizer.ret_rms, state["returns"])
    normalizer.returns = state["discounted"].copy()
    normalizer.old_reward = state["last_reward"]
    if state["last_observation"] is not None:
        normalizer.old_obs = state["last_observation"]


def get_observation_statistics(normalizer: VecNormalize) -> dict[str, Any] | None:
    """
    :param normalizer: The wrapper
    :return: Of what it normalises observations by; those of a dictionary by key
    """
    statistics: Any = getattr(normalizer, "obs_rms", None)
    return {key: _numbers(rms) for key, rms in statistics.items()} if isinstance(statistics, dict) else _numbers(statistics)


def set_observation_statistics(normalizer: VecNormalize, numbers: dict[str, Any] | None) -> None:
    """
    :param normalizer: A wrapper made with the same arguments
    :param numbers: What :func:`get_observation_statistics` returned
    """
    statistics: Any = getattr(normalizer, "obs_rms", None)
    if isinstance(statistics, dict) and numbers is not None:
        for key, rms in statistics.items():
            _set_numbers(rms, numbers[key])
    elif statistics is not None and numbers is not None:
        _set_numbers(statistics, numbers)


def _numbers(rms: RunningMeanStd | None) -> dict[str, Any] | None:
    return None if rms is None else {name: getattr(rms, name) for name in _STATISTICS}


def _set_numbers(rms: RunningMeanStd, numbers: dict[str, Any]) -> None:
    vars(rms).update({name: numbers[name] for name in _STATISTICS})

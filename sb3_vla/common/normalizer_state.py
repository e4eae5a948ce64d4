"""What SB3's ``VecNormalize`` goes on from."""

from typing import Any

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

_STATISTICS = ("mean", "var", "count")


def get_normalizer_state(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: The wrapper
    :return: Its statistics, and what it last saw
    """
    statistics: Any = getattr(normalizer, "obs_rms", None)
    by_key = {key: _numbers(rms) for key, rms in statistics.items()} if isinstance(statistics, dict) else _numbers(statistics)
    return {
        "observations": by_key,
        "returns": _numbers(normalizer.ret_rms),
        "discounted": normalizer.returns.copy(),
        "last_observation": normalizer.old_obs,
        "last_reward": normalizer.old_reward,
    }


def set_normalizer_state(normalizer: VecNormalize, state: dict[str, Any]) -> None:
    """
    :param normalizer: A wrapper made with the same arguments
    :param state: What :func:`get_normalizer_state` returned
    """
    statistics: Any = getattr(normalizer, "obs_rms", None)
    if isinstance(statistics, dict):
        for key, rms in statistics.items():
            _set_numbers(rms, state["observations"][key])
    elif statistics is not None:
        _set_numbers(statistics, state["observations"])
    _set_numbers(normalizer.ret_rms, state["returns"])
    normalizer.returns = state["discounted"].copy()
    normalizer.old_obs, normalizer.old_reward = state["last_observation"], state["last_reward"]


def _numbers(rms: RunningMeanStd | None) -> dict[str, Any] | None:
    return None if rms is None else {name: getattr(rms, name) for name in _STATISTICS}


def _set_numbers(rms: RunningMeanStd, numbers: dict[str, Any]) -> None:
    vars(rms).update({name: numbers[name] for name in _STATISTICS})

"""NaN and infinity stop a training with the name of what is wrong, before they reach the weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_vla_envs.demonstrations import ARRAY_KEY
from sb3_vla_envs.wrappers.episode_progress import task_name

from ..policies.finite import is_finite


def check_rewards(rewards: np.ndarray, infos: Sequence[Mapping[str, Any]]) -> None:
    """
    :param rewards: ``(n_envs,)``
    :param infos: Name the tasks
    :raises FloatingPointError: If one is not finite
    """
    if not np.isfinite(rewards).all():
        i = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise FloatingPointError(f"the reward of environment {i}{_task(infos[i])} is {rewards[i]}: training stopped before it")


def check_observations(observations: Any, infos: Sequence[Mapping[str, Any]], keys: Collection[str]) -> None:
    """
    :param observations: An array ``(n_envs, ...)``, or arrays by key
    :param infos: Name the tasks
    :param keys: What a policy reads of them
    :raises FloatingPointError: If a number is not finite
    """
    for key, array in _read(observations, keys):
        if not is_finite(array):
            i = next(i for i, row in enumerate(array) if not np.isfinite(row).all())
            raise _unusable(f"the observation {key!r}", i, infos[i])


def check_last_observation(observation: Any, environment: int, info: Mapping[str, Any], keys: Collection[str]) -> None:
    """
    :param observation: What was seen last in an episode that ran out of time, an array or arrays by key
    :param environment: Number of the environment
    :param info: Names its task
    :param keys: What a value function reads of it
    :raises FloatingPointError: If a number is not finite
    """
    for key, array in _read(observation, keys):
        if not is_finite(array):
            raise _unusable(f"the last observation of an episode, info['terminal_observation'], {key!r}", environment, info)


def _read(observations: Any, keys: Collection[str]) -> list[tuple[str, Any]]:
    arrays = observations if isinstance(observations, Mapping) else {ARRAY_KEY: observations}
    return [(key, array) for key, array in arrays.items() if key in keys]


def _unusable(what: str, environment: int, info: Mapping[str, Any]) -> FloatingPointError:
    return FloatingPointError(
        f"{what} of environment {environment}{_task(info)} has NaN or infinity: training stopped before it"
    )


def check_gradients(norms: Mapping[str, th.Tensor]) -> None:
    """
    :param norms: Norms of the gradients, by the names of what they are of
    :raises FloatingPointError: If one is not finite
    """
    if th.isfinite(th.stack(list(norms.values()))).all():  # once for all, as a GPU has to wait for it
        return
    wrong = {name: norm.item() for name, norm in norms.items() if not th.isfinite(norm)}
    named = " and ".join(f"of the {name} is {value}" for name, value in wrong.items())
    raise FloatingPointError(
        f"the gradient {named}: the weights are still those of before this step; lower the learning rate or max_grad_norm, or "
        "look for extreme observations, rewards and demonstrations"
    )


def _task(info: Mapping[str, Any]) -> str:
    name = task_name(info)
    return f" (task {name!r})" if name else ""

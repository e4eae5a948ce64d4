"""NaN and infinity stop a training with the name of what is wrong, before they reach the weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_vla_envs.wrappers.episode_progress import task_name

from ..imitation.demonstration_set import ARRAY_KEY


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
    arrays = observations if isinstance(observations, Mapping) else {ARRAY_KEY: observations}
    for key, array in arrays.items():
        if key in keys and isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            i = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise FloatingPointError(
                f"the observation {key!r} of environment {i}{_task(infos[i])} has NaN or infinity: training stopped before it"
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


def check_weights(policy: nn.Module) -> None:
    """
    :param policy: A policy
    :raises FloatingPointError: If a weight is not finite
    """
    for name, tensor in policy.state_dict().items():
        if tensor.is_floating_point() and not th.isfinite(tensor).all():
            raise FloatingPointError(
                f"the policy's {name} holds NaN or infinity: it is not saved, load the last good checkpoint"
            )


def _task(info: Mapping[str, Any]) -> str:
    name = task_name(info)
    return f" (task {name!r})" if name else ""

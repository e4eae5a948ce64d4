"""NaN and infinity in what a policy sees and in its weights."""

from collections.abc import Mapping

import numpy as np
import torch as th
from torch import nn


def is_finite(array: object) -> bool:
    """
    :param array: An observation
    :return: Whether it holds neither NaN nor infinity
    """
    return not (isinstance(array, np.ndarray) and array.dtype.kind == "f") or bool(np.isfinite(array).all())


def check_seen(observation: Mapping[str, np.ndarray]) -> None:
    """
    :param observation: What a policy is to act on, by key
    :raises FloatingPointError: If a number is not finite
    """
    for key, array in observation.items():
        if not is_finite(np.asarray(array)):
            raise FloatingPointError(f"the observation {key!r} has NaN or infinity: no action follows from it")


def check_actions(actions: np.ndarray | th.Tensor, policy: nn.Module) -> None:
    """
    Before they are clipped, which would hide infinity.

    :param actions: What a policy chose
    :param policy: The policy
    :raises FloatingPointError: If a number is not finite
    """
    if not th.isfinite(th.as_tensor(actions)).all():
        check_weights(policy.state_dict(), "it can't act")
        raise FloatingPointError("the policy's action has NaN or infinity, though its weights and the observation have not")


def check_weights(weights: Mapping[str, th.Tensor], consequence: str) -> None:
    """
    :param weights: ``state_dict()`` of a policy
    :param consequence: What is not done with it, for the message
    :raises FloatingPointError: If a weight is not finite
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise FloatingPointError(
                f"the policy's {name} holds NaN or infinity: {consequence}, load the last good checkpoint"
            )

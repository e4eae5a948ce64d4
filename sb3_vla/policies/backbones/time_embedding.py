"""How action experts are told where on the way from noise to an action they are."""

import math

import torch as th


def embed_time(t: th.Tensor, dim: int, min_period: float = 0.004, max_period: float = 4.0) -> th.Tensor:
    """
    :param t: ``(n,)`` in [0, 1]
    :param dim: Length of the result, even
    :param min_period: Of the fastest sine, by default pi0's
    :param max_period: Of the slowest
    :return: Sines, then cosines, of periods from the one to the other, ``(n, dim)``
    """
    periods = min_period * (max_period / min_period) ** th.linspace(0, 1, dim // 2, device=t.device)
    angles = 2 * math.pi * t.unsqueeze(1) / periods
    return th.cat([angles.sin(), angles.cos()], dim=1)

"""The loss terms, as functions of tensors."""

import torch as th
from torch.nn import functional as F


def executed_mask(chunk_lengths: th.Tensor, chunk_size: int) -> th.Tensor:
    """
    :param chunk_lengths: ``(batch,)`` executed primitive steps k
    :param chunk_size: h
    :return: ``(batch, h)`` float32, 1 where a step was executed
    """
    return (th.arange(chunk_size, device=chunk_lengths.device) < chunk_lengths.unsqueeze(1)).float()


def masked_mean(x: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """
    :param x: ``(batch,)`` or ``(batch, h)``
    :param mask: ``None``, or what counts, of the shape of ``x``
    :return: Mean over what counts
    """
    return x.mean() if mask is None else (x * mask).sum() / mask.sum()


def clipped_surrogate_loss(
    ratio: th.Tensor, advantages: th.Tensor, clip_range: float, mask: th.Tensor | None = None
) -> th.Tensor:
    """
    PPO's policy loss (Schulman et al. 2017, equation 7), each chunk's advantage shared by its executed steps.

    :param ratio: Likelihood ratio, ``(batch,)`` a chunk or ``(batch, h)`` a primitive step
    :param advantages: ``(batch,)``
    :param clip_range: Epsilon
    :param mask: ``(batch, h)`` with a ratio per step: 1 where the step was executed
    :return: Scalar
    """
    if ratio.dim() == 2:
        advantages = advantages.unsqueeze(1)
    surrogate = advantages * ratio
    clipped = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -masked_mean(th.min(surrogate, clipped), mask)


def approximate_kl(log_ratio: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
    """
    Estimate of the KL divergence from the old to the new policy, http://joschu.net/blog/kl-approx.html, of a whole chunk.

    :param log_ratio: ``(batch,)`` a chunk or ``(batch, h)`` a primitive step
    :param mask: ``(batch, h)`` with ratios per step
    :return: Scalar: mean over chunks of the sum over a chunk's executed steps
    """
    kl = (th.exp(log_ratio) - 1) - log_ratio
    return kl.mean() if mask is None else (kl * mask).sum(dim=1).mean()


def bc_mse_loss(mean: th.Tensor, actions: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
    """
    Mean squared error of the policy's mean.

    :param mean: ``(batch, h, d)``, or ``(batch, d)`` without chunks
    :param actions: Demonstrated actions before clipping, of the same shape
    :param mask: ``(batch, h)``: 1 where the step was executed
    :return: Scalar: mean over executed steps and action dimensions
    """
    if mask is None:
        return F.mse_loss(mean, actions)
    return masked_mean((mean - actions).square().mean(dim=-1), mask)


def value_loss(values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, clip_range_vf: float | None = None) -> th.Tensor:
    """
    :param values: ``(batch,)``
    :param old_values: ``(batch,)``
    :param returns: ``(batch,)`` TD(lambda) targets
    :param clip_range_vf: Largest change from the old value, which depends on the reward scaling, or ``None``
    :return: Scalar: mean squared error
    """
    if clip_range_vf is not None:
        values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
    return F.mse_loss(returns, values)

"""The loss terms, as functions of tensors."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from ..common.chunk_mask import executed_mask, masked_mean
from ..common.ranks import Ranks
from ..policies.adapter import ActionEvaluation
from .rollout_buffer import ChunkRolloutBufferSamples


class PPOLoss(NamedTuple):
    """Terms of PPO's loss on a batch, and what is logged of it: scalars."""

    policy: th.Tensor
    value: th.Tensor
    entropy: th.Tensor
    approx_kl: th.Tensor
    clip_fraction: th.Tensor


def ppo_loss(
    evaluation: ActionEvaluation,
    batch: ChunkRolloutBufferSamples,
    clip_range: float,
    clip_range_vf: float | None = None,
    ratio_per_step: bool = True,
) -> PPOLoss:
    """
    :param evaluation: What the policy says of the batch's actions now
    :param batch: A minibatch, or a piece of one, its advantages normalised
    :param clip_range: Clip range of the ratio
    :param clip_range_vf: Clip range of the value, or ``None``
    :param ratio_per_step: Whether the likelihood ratio is per primitive step, where the policy keeps these apart
    :return: The terms of the loss
    """
    values, log_prob, entropy = evaluation
    if entropy is None:
        # Approximate entropy when no analytical form
        entropy = -log_prob
    old_log_prob, mask = batch.old_log_prob, None
    if log_prob.dim() == 2:
        mask = executed_mask(batch.chunk_lengths, log_prob.shape[1])
        if not ratio_per_step:
            log_prob, old_log_prob = (log_prob * mask).sum(dim=1), (old_log_prob * mask).sum(dim=1)
            entropy = (entropy * mask).sum(dim=1)
            mask = None
    log_ratio = log_prob - old_log_prob
    # ratio between old and new policy, should be one at the first iteration
    ratio = th.exp(log_ratio)
    with th.no_grad():
        approx_kl = approximate_kl(log_ratio, mask)
        clip_fraction = masked_mean((th.abs(ratio - 1) > clip_range).float(), mask)
    return PPOLoss(
        policy=clipped_surrogate_loss(ratio, batch.advantages, clip_range, mask),
        value=value_loss(values.flatten(), batch.old_values, batch.returns, clip_range_vf),
        entropy=-masked_mean(entropy, mask),
        approx_kl=approx_kl,
        clip_fraction=clip_fraction,
    )


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


def gradient_norms(
    losses: Sequence[th.Tensor], parameters: Iterable[th.nn.Parameter], ranks: Ranks | None = None
) -> list[float]:
    """
    :param losses: Scalars
    :param parameters: What is trained
    :param ranks: Over which the losses are sums, by default this one alone
    :return: Norm of each loss's gradient with respect to those parameters that all of them train
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [th.autograd.grad(loss, trained, allow_unused=True) for loss in losses]
    shared = [of_one for of_one in zip(*gradients, strict=True) if all(gradient is not None for gradient in of_one)]
    flat = [th.cat([gradient.flatten() for gradient in of_loss]) for of_loss in zip(*shared, strict=True)]
    return [(ranks or Ranks()).all_reduce(gradient).norm().item() for gradient in flat]

"""Which primitive steps of a chunk count: those that were executed."""

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
    return x.mean() if mask is None else (x * mask).sum() / mask.sum().clamp(min=1)  # of lost steps there are none


def masked_mse(prediction: th.Tensor, target: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
    """
    :param prediction: ``(batch, h, d)``, or ``(batch, d)`` without chunks
    :param target: Of the same shape
    :param mask: ``(batch, h)``: 1 where the step counts
    :return: Scalar: mean squared error over what counts
    """
    if mask is None:
        return F.mse_loss(prediction, target)
    return masked_mean((prediction - target).square().mean(dim=-1), mask)

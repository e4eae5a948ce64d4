"""Batches in pieces, for the accumulation of gradients, and how large a piece fits into memory."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th

from ..common.free_memory import free_memory
from ..common.random_states import forked_random
from ..common.tensor_memory import peak_memory
from ..imitation.demonstration_buffer import DemonstrationSamples
from ..policies.adapter import PolicyAdapter
from ..policies.encoded import EncodedObservations
from .rollout_buffer import ChunkRolloutBuffer, ChunkRolloutBufferSamples
from .update_memory import add_gradient, missing_optimizer_state

# Of memory that is free, what is not planned with: allocators can't use all of it, and operations need some by themselves
_RESERVE = 0.1

Samples = TypeVar("Samples", ChunkRolloutBufferSamples, DemonstrationSamples)


def split_batch(batch: Samples, size: int | None) -> Iterator[Samples]:
    """
    :param batch: A batch
    :param size: Largest piece, ``None`` for the whole
    :return: Iterator over pieces
    """
    n = len(batch.actions)
    if size is None or size >= n:
        yield batch
        return
    for start in range(0, n, size):
        part = slice(start, start + size)
        yield type(batch)(**{name: _part(field, part) for name, field in batch._asdict().items()})


def _part(field: Any, part: slice) -> Any:
    if isinstance(field, EncodedObservations):
        return field.map(lambda tensor: tensor[part])
    if isinstance(field, Mapping):
        return {key: value[part] for key, value in field.items()}
    return field[part]


def batch_share(piece: Samples, batch: Samples, by_steps: bool = False) -> float | th.Tensor:
    """
    :param piece: Part of a batch
    :param batch: The batch
    :param by_steps: Whether each executed primitive step counts the same, instead of each chunk
    :return: How much the piece's mean counts in the batch's mean
    """
    if piece is batch:
        return 1.0
    if by_steps:
        # A tensor, as its value would make a GPU wait; a lost worker's chunks have no steps
        return piece.chunk_lengths.sum() / batch.chunk_lengths.sum().clamp(min=1)
    return len(piece.actions) / len(batch.actions)


def plannable(free: int) -> int:
    """
    :param free: Bytes that are free
    :return: Bytes to plan with
    """
    return int(free * (1 - _RESERVE))


def largest_micro_batch(peak: Callable[[int], int], n_bytes: int, n_samples: int) -> int:
    """
    :param peak: What a piece takes at most, by its samples: it does not grow faster than they do
    :param n_bytes: What there is for it
    :param n_samples: Of the largest piece that ``peak`` can tell of
    :return: Samples of a piece that fits, 0 if none does; found by doubling, so that nothing is tried that may not fit. It can
        be larger than ``n_samples``, and smaller than the largest one, as what is the same for all counts as if it grew
    """
    size = 1
    while True:
        fitting = int(size * n_bytes / peak(size)) if n_bytes > 0 else 0
        if fitting < 2 * size or n_samples < 2 * size:
            return fitting
        size *= 2


def fitting_micro_batch(
    adapter: PolicyAdapter, rollout_buffer: ChunkRolloutBuffer, n_samples: int, imitates: bool, ratio_per_step: bool
) -> int:
    """
    Find the largest piece that fits into what is free, by the gradients of ever larger ones. Nothing changes.

    :param adapter: Of the policy, whose gradients are cleared
    :param rollout_buffer: A rollout
    :param n_samples: Of the whole batch
    :param imitates: Whether there is an imitation loss
    :param ratio_per_step: Whether likelihood ratios are per primitive step
    :return: Samples of a piece
    """
    policy = adapter.policy
    numpy_state = np.random.get_state()
    batch = next(rollout_buffer.get(n_samples))
    np.random.set_state(numpy_state)

    def add(size: int) -> None:
        add_gradient(adapter, next(split_batch(batch, size)), imitates, ratio_per_step)

    with forked_random(policy.device):
        add(1)  # from now on gradients are there
        free = free_memory(policy.device) - missing_optimizer_state(policy)
        if policy.device.type == "cpu":  # its allocator keeps what was freed in pieces, and others live there, too
            free //= 2
        n_known = min(len(batch.actions), n_samples)
        size = largest_micro_batch(lambda size: peak_memory(policy.device, lambda: add(size)), plannable(free), n_known)
    policy.optimizer.zero_grad()
    if size == 0:
        warnings.warn(
            f"what is free on {policy.device} is too little for the gradient of a single sample: take a smaller backbone, "
            "LoRA or gradient checkpointing, or freeze parts of it",
            stacklevel=2,
        )
    return min(max(size, 1), n_samples)

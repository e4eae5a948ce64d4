"""Batches in pieces, for the accumulation of gradients."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch as th

from ..imitation.demonstration_buffer import DemonstrationSamples
from ..policies.encoded import EncodedObservations
from .rollout_buffer import ChunkRolloutBufferSamples

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
        return piece.chunk_lengths.sum() / batch.chunk_lengths.sum()  # a tensor, as its value would make a GPU wait
    return len(piece.actions) / len(batch.actions)

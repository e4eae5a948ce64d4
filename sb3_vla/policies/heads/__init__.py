"""Heads that turn a backbone's features into a distribution over action chunks."""

from typing import Any

from gymnasium import spaces

from ...common.argument_checks import check_known
from .base import ActionHead, ChunkDistribution, ChunkSample
from .flow import FlowHead
from .gaussian import GaussianChunkDistribution, GaussianHead
from .token import TokenHead

__all__ = [
    "ActionHead",
    "ChunkDistribution",
    "ChunkSample",
    "FlowHead",
    "GaussianChunkDistribution",
    "GaussianHead",
    "TokenHead",
    "make_head",
]

HEADS: dict[str, type[ActionHead]] = {"flow": FlowHead, "gaussian": GaussianHead, "token": TokenHead}


def make_head(head: str | type[ActionHead], features_dim: int, action_space: spaces.Box, /, **kwargs: Any) -> ActionHead:
    """
    Build a head from what a user may write in ``policy_kwargs``.

    :param head: ``"gaussian"``, ``"token"``, ``"flow"``, or a subclass of :class:`ActionHead`
    :param features_dim: Length of the backbone's feature vectors
    :param action_space: Chunks, a bounded ``Box`` of shape ``(h, d)``
    :param kwargs: Passed on to the head
    :return: The head
    :raises ValueError: If there is no head of that name
    :raises TypeError: If ``head`` is neither a name nor a subclass of :class:`ActionHead`, or has no such argument
    """
    if isinstance(head, str):
        if head not in HEADS:
            raise ValueError(f"there is no head {head!r}: give one of {sorted(HEADS)}, or a subclass of sb3_vla.ActionHead")
        head = HEADS[head]
    elif not (isinstance(head, type) and issubclass(head, ActionHead)):
        raise TypeError(f"head must be a name out of {sorted(HEADS)} or a subclass of sb3_vla.ActionHead, got {head!r}")
    check_known("head_kwargs", kwargs, head, ("features_dim", "action_space"))
    return head(features_dim, action_space, **kwargs)

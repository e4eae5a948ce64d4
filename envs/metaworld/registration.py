"""The suite and Gymnasium ids for every task and benchmark."""

from __future__ import annotations

from ..registration import register_with_ids
from .suite import METAWORLD


def register_metaworld() -> None:
    """
    Register the suite, and ``MetaWorldVLA/<tasks>`` (:func:`make_vla_env`) and ``MetaWorldState/<tasks>``
    (:class:`MetaWorldEnv`) for every task and benchmark.
    """
    register_with_ids(METAWORLD, "MetaWorldVLA", {"MetaWorldState": "sb3_vla_envs.metaworld.env:MetaWorldEnv"})

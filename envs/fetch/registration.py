"""The suite and Gymnasium ids for every Fetch task."""

from __future__ import annotations

from ..registration import register_with_ids
from .suite import FETCH


def register_fetch() -> None:
    """
    Register the suite, and ``FetchVLA/<tasks>`` (:func:`make_vla_env`) and ``FetchState/<tasks>`` (:class:`FetchEnv`) for
    every task and for all of them together.
    """
    register_with_ids(FETCH, "FetchVLA", {"FetchState": "sb3_vla_envs.fetch.env:FetchEnv"})

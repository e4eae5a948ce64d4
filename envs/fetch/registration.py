"""The suite and Gymnasium ids for every Fetch task."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from ..suite import register_suite
from .suite import FETCH

_ENTRY_POINTS = {
    "FetchVLA": ("sb3_vla_envs.make:make_vla_env", {"suite": FETCH.name}),
    "FetchState": ("sb3_vla_envs.fetch.env:FetchEnv", {}),
}


def register_fetch() -> None:
    """
    Register the suite, and ``FetchVLA/<tasks>`` (:func:`make_vla_env`) and ``FetchState/<tasks>`` (:class:`FetchEnv`) for
    every task and for all of them together.
    """
    register_suite(FETCH)
    for namespace, (entry_point, kwargs) in _ENTRY_POINTS.items():
        for tasks in (*FETCH.groups, *FETCH.tasks):
            env_id = f"{namespace}/{tasks}"
            if env_id not in registry:  # the package may be reloaded
                register(env_id, entry_point=entry_point, kwargs={"tasks": tasks, **kwargs})

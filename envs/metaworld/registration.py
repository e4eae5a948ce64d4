"""The suite and Gymnasium ids for every task and benchmark."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from ..suite import register_suite
from .suite import METAWORLD

_ENTRY_POINTS = {
    "MetaWorldVLA": ("sb3_vla_envs.make:make_vla_env", {"suite": METAWORLD.name}),
    "MetaWorldState": ("sb3_vla_envs.metaworld.env:MetaWorldEnv", {}),
}


def register_metaworld() -> None:
    """
    Register the suite, and ``MetaWorldVLA/<tasks>`` (:func:`make_vla_env`) and ``MetaWorldState/<tasks>``
    (:class:`MetaWorldEnv`) for every task and benchmark.
    """
    register_suite(METAWORLD)
    for namespace, (entry_point, kwargs) in _ENTRY_POINTS.items():
        for tasks in (*METAWORLD.groups, *METAWORLD.tasks):
            env_id = f"{namespace}/{tasks}"
            if env_id not in registry:  # the package may be reloaded
                register(env_id, entry_point=entry_point, kwargs={"tasks": tasks, **kwargs})

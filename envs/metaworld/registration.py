"""Gymnasium ids for every task and benchmark."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from .tasks import BENCHMARKS, MT50

_ENTRY_POINTS = {
    "MetaWorldVLA": "sb3_vla_envs.metaworld.make:make_vla_env",
    "MetaWorldState": "sb3_vla_envs.metaworld.env:MetaWorldEnv",
}


def register_environments() -> None:
    """Register ``MetaWorldVLA/<tasks>`` (:func:`make_vla_env`) and ``MetaWorldState/<tasks>`` (:class:`MetaWorldEnv`)."""
    for namespace, entry_point in _ENTRY_POINTS.items():
        for tasks in (*BENCHMARKS, *MT50):
            env_id = f"{namespace}/{tasks}"
            if env_id not in registry:  # the package may be reloaded
                register(env_id, entry_point=entry_point, kwargs={"tasks": tasks})

"""Registering a suite together with Gymnasium ids for its tasks."""

from __future__ import annotations

from collections.abc import Mapping

from gymnasium.envs.registration import register, registry

from .suite import Suite, register_suite


def register_with_ids(suite: Suite, vla: str, simulation: Mapping[str, str]) -> None:
    """
    Register a suite, and ``<namespace>/<tasks>`` for each of its tasks and groups.

    :param suite: The suite
    :param vla: Namespace of :func:`~sb3_vla_envs.make_vla_env`'s environments
    :param simulation: Namespace of the simulation without wrappers, and its class as ``"module:name"``
    """
    register_suite(suite)
    kinds = {vla: ("sb3_vla_envs.make:make_vla_env", {"suite": suite.name})}
    kinds |= {namespace: (entry_point, {}) for namespace, entry_point in simulation.items()}
    for namespace, (entry_point, kwargs) in kinds.items():
        for tasks in (*suite.groups, *suite.tasks):
            env_id = f"{namespace}/{tasks}"
            if env_id not in registry:  # the package may be reloaded
                register(env_id, entry_point=entry_point, kwargs={"tasks": tasks, **kwargs})

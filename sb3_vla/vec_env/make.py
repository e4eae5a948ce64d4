"""Vectorised environments of a suite, for training."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_vla_envs import Suite, make_env_fns
from sb3_vla_envs.argument_checks import check_count

from ..common.launch import launched_as
from .shared_memory_vec_env import SharedMemoryVecEnv


def make_vla_vec_env(
    tasks: str | Sequence[str],
    n_envs: int = 16,
    *,
    seed: int = 0,
    suite: str | Suite | None = None,
    vec_env_cls: Callable[[Sequence[Any]], VecEnv] | None = None,
    **settings: Any,
) -> VecEnv:
    """
    Tasks of a suite as VLAPolicy sees them, many at a time, in a process for each CPU. Of several processes that ``torchrun``
    or ``accelerate launch`` has started, each gets so many of its own, and the tasks are spread over all of them.

    :param tasks: Task, group of tasks, comma-separated names or a sequence of them, spread over the environments
    :param n_envs: Number of environments; a single one runs in this process
    :param seed: Seeds each environment differently
    :param suite: Suite of the tasks, by default the one that knows them
    :param vec_env_cls: What runs them: by default processes of this machine; :class:`~sb3_vla.RayVecEnv` for a cluster
    :param settings: Settings of the environments, see :func:`sb3_vla_envs.make_vla_env`; and ``task_weights``, see
        :func:`sb3_vla_envs.make_env_fns`
    :return: The vectorised environment, with ``Monitor`` around each
    :raises TypeError: If a setting is unknown, or an argument of another type
    :raises ValueError: If a task is unknown, or an argument is out of range
    """
    check_count("n_envs", n_envs)
    rank, size = launched_as()
    env_fns = [_MonitoredEnv(env_fn) for env_fn in make_env_fns(tasks, n_envs * size, seed=seed, suite=suite, **settings)]
    env_fns = env_fns[rank * n_envs : (rank + 1) * n_envs]
    if vec_env_cls is not None:
        return vec_env_cls(env_fns)
    # Some tasks take twice the time of others
    return make_vec_env_from_fns(env_fns, probe_steps=5)


def make_vec_env_from_fns(env_fns: Sequence[Any], probe_steps: int = 0) -> VecEnv:
    """
    :param env_fns: Functions that each build an environment; they are called in the worker
    :param probe_steps: Steps that measure how costly an environment is, see :class:`SharedMemoryVecEnv`
    :return: A :class:`SharedMemoryVecEnv`, or a ``DummyVecEnv`` around a single environment
    """
    if len(env_fns) == 1:
        return DummyVecEnv(list(env_fns))
    preload_workers()
    return SharedMemoryVecEnv(env_fns, probe_steps=probe_steps)


def preload_workers() -> None:
    """
    Let worker processes fork from one that has imported all that ``from sb3_vla import ...`` in a script needs, instead of
    importing torch each. It starts no threads on import. Counts only before the first worker of the program starts.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["sb3_vla.api"])


class _MonitoredEnv:
    """Builds an environment inside ``Monitor`` (a class, so that it can be pickled)."""

    def __init__(self, env_fn: Any) -> None:
        self.env_fn = env_fn

    def __call__(self) -> Monitor:
        return Monitor(self.env_fn())

"""Factories: the whole stack of wrappers, and many of them for vectorised training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RenderCollection

from ..mujoco.camera import DEFAULT_CAMERAS, CameraLike
from ..mujoco.camera_observation import CameraObservation
from ..wrappers.chunked_action import ChunkedActionWrapper
from ..wrappers.instruction_observation import InstructionObservation
from .env import MetaWorldEnv
from .tasks import resolve_tasks

if TYPE_CHECKING:
    from ..mujoco.gl_context import Quality


def make_vla_env(
    tasks: str | Sequence[str] = "MT10",
    *,
    chunk_size: int = 8,
    n_action_steps: int | None = None,
    gamma: float = 0.99,
    cameras: Sequence[CameraLike] = DEFAULT_CAMERAS,
    quality: Quality = "fast",
    max_instruction_bytes: int = 64,
    render_mode: str | None = None,
    **metaworld_kwargs: Any,
) -> gym.Env:
    """
    MetaWorld as a vision-language-action policy sees it: pictures, proprioception and an instruction in, action chunks out.

    :param tasks: Task, benchmark, comma-separated names or a sequence of them, see :func:`resolve_tasks`
    :param chunk_size: Number of actions in a chunk
    :param n_action_steps: How many of them are executed, all by default
    :param gamma: Discount factor per step inside a chunk; must be that of the algorithm
    :param cameras: The views, see :class:`CameraObservation`
    :param quality: ``"fast"``, ``"plain"`` or ``"full"`` rendering, see :class:`SceneRenderer`
    :param max_instruction_bytes: Length of the instruction observation
    :param render_mode: ``None``; ``"rgb_array"``: ``render()`` gives the current frame; ``"rgb_array_list"``: it gives one
        frame for every primitive step since the last call, those inside chunks too
    :param metaworld_kwargs: Further arguments of :class:`MetaWorldEnv`
    :return: The environment
    :raises ValueError: If an argument is not one of those allowed
    """
    if render_mode not in (None, "rgb_array", "rgb_array_list"):
        raise ValueError(f"Unknown render_mode {render_mode!r}, allowed are None, 'rgb_array' and 'rgb_array_list'")
    policy_kwargs = dict(
        chunk_size=chunk_size,
        n_action_steps=n_action_steps,
        gamma=gamma,
        cameras=cameras,
        quality=quality,
        max_instruction_bytes=max_instruction_bytes,
    )
    env: gym.Env = MetaWorldEnv(tasks, render_mode=render_mode and "rgb_array", **metaworld_kwargs)
    # How it was made, as gymnasium.make notes it, too
    kwargs = {"tasks": tasks, **policy_kwargs, **metaworld_kwargs, "render_mode": render_mode}
    env.spec = EnvSpec("MetaWorldVLA/tasks", entry_point="sb3_vla_envs.metaworld.make:make_vla_env", kwargs=kwargs)
    if render_mode == "rgb_array_list":
        env = RenderCollection(env)
    return wrap_for_policy(env, **policy_kwargs)  # type: ignore[arg-type]


# gymnasium.make looks here for how an environment renders, to add a window to one that has pictures only
make_vla_env.metadata = {"render_modes": ["rgb_array", "rgb_array_list"]}  # type: ignore[attr-defined]


def wrap_for_policy(
    env: gym.Env,
    *,
    chunk_size: int = 8,
    n_action_steps: int | None = None,
    gamma: float = 0.99,
    cameras: Sequence[CameraLike] = DEFAULT_CAMERAS,
    quality: Quality = "fast",
    max_instruction_bytes: int = 64,
) -> gym.Env:
    """
    Put the wrappers of :func:`make_vla_env` around an environment, which may itself be wrapped already.

    :param env: A :class:`MetaWorldEnv`, or another with ``model``, ``data`` and ``instruction``
    :param chunk_size: Number of actions in a chunk
    :param n_action_steps: How many of them are executed, all by default
    :param gamma: Discount factor per step inside a chunk
    :param cameras: The views
    :param quality: ``"fast"``, ``"plain"`` or ``"full"`` rendering
    :param max_instruction_bytes: Length of the instruction observation
    :return: The environment
    """
    env = ChunkedActionWrapper(env, chunk_size, n_action_steps, gamma)
    env = CameraObservation(env, cameras, quality)  # outside of the chunks: one rendering a chunk
    return InstructionObservation(env, max_instruction_bytes)


def make_env_fns(tasks: str | Sequence[str], n_envs: int, *, seed: int = 0, **kwargs: Any) -> list[Callable[[], gym.Env]]:
    """
    Functions that each build one environment of a vectorised one, with the tasks spread over them.

    With at least as many environments as tasks, each has one task; otherwise each has several, none in two. The ids of
    tasks in ``privileged`` are those of the whole list everywhere. The functions can be pickled, and make simulator and
    OpenGL context where they are called: in the worker process.

    Example:
        >>> from sb3_vla import SharedMemoryVecEnv
        >>> venv = SharedMemoryVecEnv(make_env_fns("MT10", n_envs=20, seed=1))  # doctest: +SKIP

    :param tasks: Task, benchmark, comma-separated names or a sequence of them
    :param n_envs: Number of environments
    :param seed: Seeds each environment differently; seeding them by ``reset(seed=...)`` later overrules it
    :param kwargs: Further arguments of :func:`make_vla_env`
    :return: ``n_envs`` functions
    :raises ValueError: If there is an unknown task, or ``n_envs`` is less than 1
    """
    names = resolve_tasks(tasks)
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}")
    shares = [(names[i % len(names)],) if n_envs >= len(names) else names[i::n_envs] for i in range(n_envs)]
    kwargs = {"task_ids": names, **kwargs}
    return [partial(_make_seeded_env, share, (seed, index), kwargs) for index, share in enumerate(shares)]


def _make_seeded_env(tasks: tuple[str, ...], seed: tuple[int, int], kwargs: dict[str, Any]) -> gym.Env:
    env = make_vla_env(tasks, **kwargs)
    env.unwrapped.np_random = np.random.default_rng(seed)
    return env

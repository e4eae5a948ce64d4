"""Action chunks for any Gymnasium environment and any algorithm."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from ..argument_checks import FRACTION, check_chunk_size
from .episode_progress import EpisodeProgress
from .shallow_copy import NoShallowCopy


class ChunkedActionWrapper(NoShallowCopy, gym.Wrapper, RecordConstructorArgs):
    """
    Takes ``chunk_size`` actions at once and executes the first ``n_action_steps`` of them.

    Execution stops at the first step that terminates or truncates the episode. The reward of a chunk is
    ``sum_i gamma**i * r_i`` over the steps executed; the observation and the info are those of the last one, with
    ``chunk_length``, the number of steps executed, added to the info. Whoever discounts on must do so with
    ``gamma ** chunk_length`` (a semi-Markov decision process). A success (``is_success``) at any step of the chunk shows in
    its info, with ``steps_to_success``, the number of steps since the episode began, unless the environment itself says that.

    The action space becomes, for an original space

    - ``Box`` of shape ``s``: a ``Box`` of shape ``(chunk_size, *s)``
    - ``Discrete(n)``: ``MultiDiscrete([n] * chunk_size)``
    - ``MultiDiscrete(nvec)``: ``MultiDiscrete`` of ``chunk_size`` copies of ``nvec``, flat, one after the other
    - ``MultiBinary(n)``: ``MultiBinary(chunk_size * n)``

    Example:
        >>> import gymnasium as gym
        >>> from sb3_vla_envs import ChunkedActionWrapper
        >>> env = ChunkedActionWrapper(gym.make("CartPole-v1"), chunk_size=4)
        >>> env.action_space
        MultiDiscrete([2 2 2 2])
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step([0, 1, 0, 1])
        >>> reward, info["chunk_length"]
        (4.0, 4)

    :param env: The environment to wrap
    :param chunk_size: Number of actions in a chunk, h
    :param n_action_steps: How many actions of a chunk are executed before the next one is asked for, all by default
    :param gamma: Discount factor per step inside the chunk
    :raises TypeError: If an argument is of the wrong type or the action space is of another kind
    :raises ValueError: If an argument is out of range
    """

    def __init__(self, env: gym.Env, chunk_size: int, n_action_steps: int | None = None, gamma: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, chunk_size=chunk_size, n_action_steps=n_action_steps, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        check_chunk_size(chunk_size, n_action_steps)
        if env.has_wrapper_attr("chunk_gamma"):
            raise ValueError(
                f"the environment takes chunks of {env.get_wrapper_attr('chunk_size')} already: give chunk_size={chunk_size} "
                "to what made it (gym.make, make_vla_env) instead of wrapping it again"
            )
        FRACTION.check("gamma", gamma)
        self.chunk_size = int(chunk_size)
        self.n_action_steps = int(chunk_size if n_action_steps is None else n_action_steps)
        self.chunk_gamma = float(gamma)
        self._progress = EpisodeProgress()
        self.action_space, self._single_shape = _chunk_space(env.action_space, self.chunk_size)
        if env.render_mode == "rgb_array" and "render_fps" in env.metadata:
            # Whoever films takes one picture a chunk: without this, films would run n_action_steps times too fast
            self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / self.n_action_steps}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin an episode.

        :param seed: Of the wrapped environment
        :param options: Of the wrapped environment
        :return: Observation and info
        """
        self._progress = EpisodeProgress()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Execute a chunk.

        :param action: An element of the chunk's action space: shape ``(chunk_size, *shape)``, or flat for discrete ones
        :return: Last observation, discounted sum of rewards, terminated, truncated, last info with ``chunk_length``
        :raises ValueError: If the chunk has the wrong shape, or numbers between integers where actions are discrete
        """
        chunk = self._split(action)
        total, discount, executed, success = 0.0, 1.0, 0, False
        for single in chunk[: self.n_action_steps]:
            obs, reward, terminated, truncated, info = self.env.step(single)
            self._progress.add(info)
            success = success or bool(info.get("is_success", False))
            total += discount * float(reward)
            discount *= self.chunk_gamma
            executed += 1
            if terminated or truncated:
                break
        info = {**info, "chunk_length": executed}
        if success:
            info["is_success"] = True
            if info.get("steps_to_success") is None:
                info["steps_to_success"] = self._progress.steps_to_success
        return obs, total, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """
        :return: What the wrapper itself goes on from
        """
        return asdict(self._progress)

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What :meth:`get_state` returned
        """
        self._progress = EpisodeProgress(**state)

    def _split(self, action: Any) -> NDArray[Any]:
        """The chunk as an array of single actions, shape ``(chunk_size, *single_shape)``."""
        given = chunk = np.asarray(action)
        # Numbers between integers arrive as they would without chunks
        if not isinstance(self.action_space, spaces.Box) or np.can_cast(chunk.dtype, self.action_space.dtype, "same_kind"):
            chunk = chunk.astype(self.action_space.dtype, copy=False)
        if not isinstance(self.action_space, spaces.Box) and not np.array_equal(chunk, given):
            raise ValueError(f"Got the actions {given.tolist()}, but those of {self.action_space} are whole numbers")
        if chunk.shape != self.action_space.shape:
            raise ValueError(
                f"Got an action of shape {chunk.shape}, but a chunk of {self.chunk_size} actions has shape "
                f"{self.action_space.shape}: pass one whole chunk, as in env.action_space.sample()"
            )
        return chunk.reshape(self.chunk_size, *self._single_shape)


def _chunk_space(space: spaces.Space, chunk_size: int) -> tuple[spaces.Space, tuple[int, ...]]:
    """The space of a chunk and the shape of one action in it."""
    if isinstance(space, spaces.Box):
        low, high = (np.repeat(bound[np.newaxis], chunk_size, axis=0) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=space.dtype.type), space.shape
    if isinstance(space, spaces.Discrete):
        nvec, start = np.full(chunk_size, space.n), np.full(chunk_size, space.start)
        return spaces.MultiDiscrete(nvec, start=start, dtype=space.dtype.type), ()
    if isinstance(space, spaces.MultiDiscrete):
        # Flat, because Stable-Baselines3 supports no MultiDiscrete of more dimensions.
        nvec, start = np.tile(space.nvec.ravel(), chunk_size), np.tile(space.start.ravel(), chunk_size)
        return spaces.MultiDiscrete(nvec, start=start, dtype=space.dtype.type), space.shape
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(chunk_size * int(np.prod(space.shape))), space.shape  # flat for the same reason
    raise TypeError(f"Cannot make chunks of {space}: the action space must be a Box, Discrete, MultiDiscrete or MultiBinary")

"""Observations of any make as a flat dictionary under the keys that policies know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from .shallow_copy import NoShallowCopy


class ObservationKeys(NoShallowCopy, gym.ObservationWrapper, RecordConstructorArgs):
    """
    Renames what is observed, and leaves out what is not named. Numbers become float32, images stay as they are.

    Example:
        >>> import gymnasium as gym
        >>> from sb3_vla_envs import ObservationKeys
        >>> env = ObservationKeys(gym.make("CartPole-v1"))
        >>> env.observation_space["state"].shape
        (4,)

    :param env: The environment to wrap, with a ``Box`` or a dictionary of such, which may be nested
    :param keys: New names by old ones; those of nested dictionaries are joined, as in ``"pixels/top"``. By default a
        dictionary keeps its (joined) names, an image becomes ``image`` and any other array ``state``
    :raises TypeError: If something observed is no ``Box``
    :raises ValueError: If an old name is unknown, or a new one is given twice
    """

    def __init__(self, env: gym.Env, keys: Mapping[str, str] | None = None) -> None:
        RecordConstructorArgs.__init__(self, keys=None if keys is None else dict(keys))
        gym.ObservationWrapper.__init__(self, env)
        boxes = dict(_leaves("", env.observation_space))
        self.keys = _default_keys(boxes) if keys is None else dict(keys)
        unknown = [old for old in self.keys if old not in boxes]
        if unknown:
            turned = {new: old for old, new in self.keys.items()}
            is_turned = len(turned) == len(self.keys) and set(turned) <= set(boxes)
            hint = f": new names stand behind old ones, perhaps keys={turned}" if is_turned else ""
            raise ValueError(f"{env} observes no {', '.join(map(repr, unknown))}, only {', '.join(map(repr, boxes))}{hint}")
        if len(set(self.keys.values())) < len(self.keys):
            raise ValueError(f"Each key of an observation can be given once, got {self.keys}")
        for old in self.keys:
            if not isinstance(boxes[old], spaces.Box):
                raise TypeError(f"{env} observes {old or 'a'} {boxes[old]}, but what a policy observes must be a Box")
        self.observation_space = spaces.Dict({new: _with_dtype(boxes[old]) for old, new in self.keys.items()})

    def observation(self, observation: Any) -> dict[str, NDArray[Any]]:
        """
        Rename.

        :param observation: The wrapped environment's
        :return: What is named, by its new names
        """
        leaves = dict(_leaves("", observation))
        result = {}
        for old, new in self.keys.items():
            space = self.observation_space[new]  # type: ignore[index]
            result[new] = np.asarray(leaves[old], dtype=space.dtype).reshape(space.shape)
        return result


def _leaves(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """What is in nested dictionaries of spaces or observations, with joined names."""
    if not isinstance(tree, (dict, spaces.Dict)):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(f"{prefix}/{key}" if prefix else key, value)


def _default_keys(boxes: Mapping[str, spaces.Space]) -> dict[str, str]:
    if set(boxes) == {""}:
        return {"": "image" if _is_image(boxes[""]) else "state"}
    return {key: key for key in boxes}


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _with_dtype(space: spaces.Box) -> spaces.Box:
    if _is_image(space):
        return space
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

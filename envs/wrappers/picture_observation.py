"""What an environment draws as an observation, for environments without MuJoCo's cameras."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from ..argument_checks import check_count
from .shallow_copy import NoShallowCopy


class PictureObservation(NoShallowCopy, gym.ObservationWrapper, RecordConstructorArgs):
    """
    Adds ``image``, the picture that a :class:`MultiTaskEnv` draws of itself, to a dictionary observation. Wrap it around
    :class:`ChunkedActionWrapper`, not inside: then only the end of a chunk is drawn, not every step.

    :param env: The environment to wrap
    :param height: Of the picture in pixels, at most that of what is drawn
    :param width: Of the picture in pixels, at most that of what is drawn
    :raises TypeError: If the environment's observation is not a dictionary
    :raises ValueError: If a size is below 1
    """

    def __init__(self, env: gym.Env, height: int = 96, width: int = 96) -> None:
        RecordConstructorArgs.__init__(self, height=height, width=width)
        gym.ObservationWrapper.__init__(self, env)
        check_count("height", height)
        check_count("width", width)
        if not isinstance(env.observation_space, spaces.Dict):
            raise TypeError(f"PictureObservation adds to a Dict observation space, got {env.observation_space}")
        self.height = height
        self.width = width
        box = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": box, **env.observation_space.spaces})

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """
        Add the picture.

        :param observation: The wrapped environment's observation
        :return: The same with ``image``, ``(height, width, 3)`` uint8
        :raises ValueError: If the picture drawn is smaller
        """
        return {"image": shrink(self.env.get_wrapper_attr("picture")(), self.height, self.width), **observation}


def shrink(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """
    Make a picture smaller, each pixel the mean of those that it stands for.

    :param picture: Shape ``(H, W, 3)``
    :param height: At most H
    :param width: At most W
    :return: Shape ``(height, width, 3)``
    :raises ValueError: If the picture is smaller than that
    """
    if picture.shape[0] < height or picture.shape[1] < width:
        raise ValueError(
            f"The picture has {picture.shape[0]} x {picture.shape[1]} pixels, fewer than the {height} x {width} asked for: "
            "ask for a smaller one, or let the environment draw a larger one"
        )
    rows, columns = (np.arange(n + 1) * size // n for n, size in ((height, picture.shape[0]), (width, picture.shape[1])))
    sums = np.add.reduceat(picture, rows[:-1], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns[:-1], axis=1)
    areas = np.outer(np.diff(rows), np.diff(columns))[..., np.newaxis]
    return np.rint(sums / areas).astype(np.uint8)

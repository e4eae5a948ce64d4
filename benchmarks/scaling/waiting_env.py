"""An environment whose steps take as long as one wants, and look like those of a robot."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_vla_envs import ChunkedActionWrapper, encode_instruction


class WaitingEnv(gym.Env):
    """
    Keeps a core busy for some time a step, and shows two pictures.

    :param milliseconds: How long
    :param size: Pixels of a side of the pictures
    """

    def __init__(self, milliseconds: float, size: int = 96) -> None:
        self.seconds = milliseconds / 1000
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "image_wrist": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "state": spaces.Box(-np.inf, np.inf, (4,), np.float32),
                "instruction": spaces.Box(0, 255, (32,), np.uint8),
                "privileged": spaces.Box(-np.inf, np.inf, (8,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)
        self._picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        self._instruction = encode_instruction("wait", 32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        self.t += 1
        return self._observe(), 0.0, False, self.t >= 200, {"task": "wait", "is_success": False}

    def _observe(self) -> dict[str, np.ndarray]:
        state = np.full(4, self.t / 100, np.float32)
        return {
            **{"image": self._picture, "image_wrist": self._picture, "state": state, "instruction": self._instruction},
            "privileged": np.zeros(8, np.float32),
        }


def waiting_chunks(milliseconds: float) -> gym.Env:
    """
    :param milliseconds: Of a chunk of 8 steps
    :return: The environment
    """
    return ChunkedActionWrapper(WaitingEnv(milliseconds / 8), 8, gamma=0.99)

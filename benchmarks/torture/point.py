"""A suite of one small task, which starts in seconds and needs no simulator: bring a point to the middle."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_vla_envs import GymSuite, GymTask, register_suite


class PointEnv(gym.Env):
    """A point on a line, which is drawn, and moved by the action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # declared as an instance attribute by gym

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict({"state": spaces.Box(-2, 2, (1,), np.float32)})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = float(np.clip(self.place + 0.2 * action[0], -2, 2))
        return self._observation(), 0.0, False, False, {"is_success": abs(self.place) < 0.1}

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:, int((self.place + 2) * 7 / 4)] = 255
        return picture

    def _observation(self) -> dict[str, np.ndarray]:
        return {"state": np.array([self.place], np.float32)}


def expert(env: gym.Env) -> np.ndarray:
    """
    :param env: A :class:`PointEnv`
    :return: The way to the middle
    """
    return np.array([-5 * env.unwrapped.place])  # type: ignore[attr-defined]


gym.register("TorturePoint-v0", PointEnv)
register_suite(
    GymSuite(
        "point", {"point": GymTask("TorturePoint-v0", "go to the middle")}, expert=expert, horizon=12, picture_size=(8, 8)
    )
)

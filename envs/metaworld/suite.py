"""MetaWorld v3 as a suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from ..mujoco.camera import Camera
from ..suite import Suite
from ..task_env import ALL_SPLITS
from ..wrapping import WrappingSettings
from .instructions import INSTRUCTIONS
from .tasks import BENCHMARKS, MT50

# The scene camera is narrowed from 60 to 42 degrees: still the whole workspace, but small pucks and goal markers cover
# twice as many pixels. The wrist camera sees what the hand hides.
DEFAULT_CAMERAS: tuple[Camera, ...] = (Camera("corner4", 96, 96, fovy=42.0), Camera("gripperPOV", 64, 64))

# What each of them says of goals, horizon and number of episodes; success at any step ends an episode in all
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The 50 goals of metaworld.MT1(task, seed=42), and MetaWorld's own horizon
    "metaworld": {"split": "benchmark", "goal_seed": 42, "n_goals": 50, "horizon": 500},
    # lerobot-eval --env.type=metaworld --eval.n_episodes=10: src/lerobot/envs/configs.py, docs/source/metaworld.mdx; it draws
    # goals anew, for which those of the test split stand
    "lerobot": {"split": "test", "n_goals": 10, "horizon": 400},
    # rlinf/envs/metaworld/metaworld_env.py, whose reset takes 15 zero actions and one more for the first picture;
    # examples/embodiment/config/env/metaworld_50.yaml; of MT1's 50 goals it draws some, for which the first ten stand
    "rlinf": {"split": "benchmark", "goal_seed": 42, "n_goals": 10, "horizon": 100, "settle_steps": 16},
}


class MetaWorldSuite(Suite):
    """The 50 tasks of MetaWorld v3, a Sawyer arm at a table, each with a scripted expert."""

    name = "metaworld"
    default_tasks = ("window-open-v3", "drawer-close-v3", "button-press-topdown-v3")
    wrapping = WrappingSettings(cameras=DEFAULT_CAMERAS)
    groups = BENCHMARKS
    privileged_parts = {"object": (4, 5, 6), "goal": (36, 37, 38)}  # noqa: RUF012  # never changed
    goal_splits = ALL_SPLITS
    protocols = PROTOCOLS
    distributions = ("metaworld",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The 50 tasks."""
        return MT50

    def instructions(self, task: str) -> tuple[str, ...]:
        """
        :param task: A task
        :return: The ways of saying what is to be done, the first one the default
        """
        return INSTRUCTIONS[task]

    def has_expert(self, task: str) -> bool:
        """
        :param task: A task
        :return: True: MetaWorld has a scripted policy for each
        """
        return True

    def make_simulation(self, tasks: str | Sequence[str], render_mode: str | None = None, **simulation: Any) -> gym.Env:
        """
        :param tasks: Some tasks
        :param render_mode: ``None`` or ``"rgb_array"``
        :param simulation: Settings, see :class:`SimulationSettings`
        :return: A :class:`MetaWorldEnv`
        """
        from .env import MetaWorldEnv  # itself needs the suite

        return MetaWorldEnv(tasks, render_mode=render_mode, **simulation)


METAWORLD = MetaWorldSuite()

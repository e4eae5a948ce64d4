"""Gymnasium-Robotics' Fetch tasks as a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from ..mujoco.camera import Camera
from ..suite import Suite
from ..task_env import SimulationSettings
from ..wrapping import WrappingSettings
from .expert import has_expert
from .instructions import INSTRUCTIONS
from .tasks import TASKS

# Goals float in the air, where one picture cannot tell how far away they are: two views at right angles can.
DEFAULT_CAMERAS: tuple[Camera, ...] = (Camera("scene", 96, 96), Camera("side", 96, 96))


@dataclass(frozen=True, kw_only=True)
class FetchSettings(SimulationSettings):
    """
    How Fetch tasks are played: as tasks of any suite, with the benchmark's own horizon.

    :param horizon: Number of steps after which an episode is truncated
    """

    horizon: int = 50


class FetchSuite(Suite):
    """Gymnasium-Robotics' four tasks for a Fetch robot at a table, three of them with a scripted expert."""

    name = "fetch"
    default_tasks = ("FetchReach-v4",)  # which minutes of training suffice for
    simulation = FetchSettings
    # Short chunks, as a step moves the gripper by up to 3 cm
    wrapping = WrappingSettings(cameras=DEFAULT_CAMERAS, chunk_size=4)
    groups = {"Fetch": tuple(TASKS)}  # noqa: RUF012  # never changed
    privileged_parts = {"object": (25, 26, 27), "goal": (28, 29, 30)}  # noqa: RUF012  # never changed; reach's is the gripper
    distributions = ("gymnasium-robotics",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The four tasks."""
        return tuple(TASKS)

    def instructions(self, task: str) -> tuple[str, ...]:
        """
        :param task: A task
        :return: The ways of saying what is to be done, the first one the default
        """
        return INSTRUCTIONS[task]

    def has_expert(self, task: str) -> bool:
        """
        :param task: A task
        :return: Whether our scripted experts can do it
        """
        return has_expert(task)

    def make_simulation(self, tasks: str | Sequence[str], render_mode: str | None = None, **simulation: Any) -> gym.Env:
        """
        :param tasks: Some tasks
        :param render_mode: ``None`` or ``"rgb_array"``
        :param simulation: Settings, see :class:`FetchSettings`
        :return: A :class:`FetchEnv`
        """
        from .env import FetchEnv  # itself needs the suite

        return FetchEnv(tasks, render_mode=render_mode, **simulation)


FETCH = FetchSuite()

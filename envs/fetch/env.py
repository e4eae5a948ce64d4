"""Gymnasium-Robotics' Fetch tasks as one multi-task Gymnasium environment with seeded goals, instructions and success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..mujoco.camera import Camera
from ..mujoco.task_env import MujocoTaskEnv
from ..task_env import Observation, Outcome
from .expert import expert_action
from .goals import sample_fetch_goals
from .simulator import FetchSimulator, build_simulator
from .suite import FETCH
from .tasks import TASKS

_OBSERVATION = 25  # with an object; 10 without
_FINGERS = {True: slice(9, 11), False: slice(3, 5)}  # with and without an object
_WIDEST_OPENING = 0.1


class FetchEnv(MujocoTaskEnv[FetchSimulator]):
    """
    A choice of Fetch tasks, of which every reset draws one, with a goal of a seeded list (:func:`sample_fetch_goals`).

    Observation (``Dict``): ``state`` ``(4,)`` float32, gripper x, y, z in metres and opening from 0 to 1; if ``privileged``,
    ``privileged`` ``(31 + n,)`` float32, Gymnasium-Robotics' full observation (25 numbers, filled up with zeros where there
    is no object), achieved and desired goal, and which of the n tasks of ``task_ids`` it is.
    Action: ``Box(-1, 1, (4,))``, movement in x, y, z and of the fingers; a step takes 40 ms.
    Info, reset options and what else it has in common with other suites: see :class:`MultiTaskEnv`.

    :param tasks: Task, ``"Fetch"`` for all four, comma-separated names or a sequence of them, see :func:`resolve_tasks`
    :param render_mode: ``None`` or ``"rgb_array"``: pictures of shape ``(240, 240, 3)``
    :param settings: Of :class:`FetchSettings`; the dense reward is minus the distance to the goal
    :raises TypeError: If a setting is unknown or of another type
    :raises ValueError: If an argument is not one of those allowed
    :raises ImportError: If Gymnasium-Robotics is not installed
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012  # declared as an instance attribute by gym
    video_camera = Camera("scene", 240, 240)

    def __init__(self, tasks: str | Sequence[str] = "Fetch", *, render_mode: str | None = None, **settings: Any) -> None:
        observed = {"state": spaces.Box(-np.inf, np.inf, (4,), np.float32)}
        action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        super().__init__(FETCH, tasks, observed, action_space, _OBSERVATION + 6, render_mode, settings)
        self._seen: dict[str, NDArray[np.float64]]  # observation, achieved_goal, desired_goal

    def _begin(self) -> None:
        goals = sample_fetch_goals(self.task, self.goal_split, self.n_goals, self.goal_seed)
        self._seen = self._simulator.begin(goals[self.goal_index])

    def _simulate(self, action: NDArray[np.float32]) -> Outcome:
        self._seen, dense, _, _, result = self._simulator.step(action)
        return Outcome(bool(result["is_success"]), float(dense))

    def _get_episode(self) -> dict[str, Any]:
        return {**super()._get_episode(), "seen": {key: value.copy() for key, value in self._seen.items()}}

    def _set_episode(self, episode: dict[str, Any]) -> None:
        super()._set_episode(episode)
        self._seen = {key: value.copy() for key, value in episode["seen"].items()}

    def _observe(self) -> Observation:
        observation = self._seen["observation"]
        opening = observation[_FINGERS[TASKS[self.task].has_object]].sum() / _WIDEST_OPENING
        return {"state": np.append(observation[:3], opening).astype(np.float32)}

    def _privileged_state(self) -> NDArray[np.float64]:
        observation = self._seen["observation"]
        padding = np.zeros(_OBSERVATION - len(observation))
        parts = (observation, padding, self._seen["achieved_goal"], self._seen["desired_goal"])
        return np.concatenate(parts)

    def _expert_action(self) -> NDArray[np.float64]:
        return expert_action(self.task, self._seen)

    def _build_simulator(self) -> FetchSimulator:
        return build_simulator(self.task)

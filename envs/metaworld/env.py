"""MetaWorld's tasks as one multi-task Gymnasium environment that seeds, resets and ends episodes properly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..mujoco.camera import Camera
from ..mujoco.task_env import MujocoTaskEnv
from ..task_env import Observation, Outcome
from .goals import sample_goals
from .simulator import build_expert, build_simulator
from .suite import METAWORLD

if TYPE_CHECKING:
    from metaworld.policies.policy import Policy
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

_FULL_OBSERVATION = 39
_PROPRIOCEPTION = 4  # the first numbers of MetaWorld's observation: gripper x, y, z and opening


class MetaWorldEnv(MujocoTaskEnv["SawyerXYZEnv"]):
    """
    A choice of MetaWorld v3 tasks, of which every reset draws one, with a goal of a seeded list (:func:`sample_goals`).

    Observation (``Dict``): ``state`` ``(4,)`` float32, gripper x, y, z and opening; if ``privileged``, ``privileged``
    ``(39 + n,)`` float32, MetaWorld's full observation with the goal, and which of the n tasks of ``task_ids`` it is.
    Action: ``Box(-1, 1, (4,))``, movement in x, y, z and gripper effort; a step takes 12.5 ms.
    Info, reset options and what else it has in common with other suites: see :class:`MultiTaskEnv`.

    :param tasks: Task, benchmark, comma-separated names or a sequence of them, see :func:`resolve_tasks`
    :param render_mode: ``None`` or ``"rgb_array"``: pictures of shape ``(240, 240, 3)``
    :param settings: Of :class:`SimulationSettings`; the dense reward is MetaWorld's own
    :raises TypeError: If a setting is unknown or of another type
    :raises ValueError: If an argument is not one of those allowed
    :raises ImportError: If MetaWorld is not installed
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012  # declared as an instance attribute by gym
    video_camera = Camera("corner4", 240, 240, fovy=42.0)

    def __init__(self, tasks: str | Sequence[str] = "MT10", *, render_mode: str | None = None, **settings: Any) -> None:
        observed = {"state": spaces.Box(-np.inf, np.inf, (_PROPRIOCEPTION,), np.float32)}
        action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        super().__init__(METAWORLD, tasks, observed, action_space, _FULL_OBSERVATION, render_mode, settings)
        self._expert: Policy
        self._full_observation: NDArray[Any]  # shape (39,)

    def _begin(self) -> None:
        import mujoco

        self._expert = build_expert(self.task)
        simulator = self._simulator
        simulator.max_path_length = self.horizon + self.settle_steps  # it refuses to step past its own limit of 500
        goals = sample_goals(self.task, self.goal_split, self.n_goals, self.goal_seed)
        simulator._last_rand_vec = goals[self.goal_index].copy()
        simulator.reset()
        # window-close-v3 moves its window after positions were last computed: without this, the first observation and the
        # first picture would show it 20 cm away from where it is.
        mujoco.mj_forward(simulator.model, simulator.data)
        simulator._prev_obs = simulator._get_curr_obs_combined_no_goal()
        space = simulator.sawyer_observation_space
        self._full_observation = np.clip(simulator._get_obs(), space.low, space.high)  # as its step() does

    def _simulate(self, action: NDArray[np.float32]) -> Outcome:
        self._full_observation, dense, _, _, result = self._simulator.step(action)
        return Outcome(bool(result["success"]), dense)

    def _get_episode(self) -> dict[str, Any]:
        return {**super()._get_episode(), "observation": self._full_observation.copy()}

    def _set_episode(self, episode: dict[str, Any]) -> None:
        super()._set_episode(episode)
        self._full_observation = episode["observation"].copy()

    def _observe(self) -> Observation:
        return {"state": self._full_observation[:_PROPRIOCEPTION].astype(np.float32)}

    def _privileged_state(self) -> NDArray[np.float64]:
        return self._full_observation

    def _expert_action(self) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every action that it knows will be clipped
            return self._expert.get_action(self._full_observation)

    def _build_simulator(self) -> SawyerXYZEnv:
        return build_simulator(self.task)

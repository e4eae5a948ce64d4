"""MetaWorld's tasks as one multi-task Gymnasium environment that seeds, resets and ends episodes properly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..mujoco.camera import Camera
from .goals import SPLITS, GoalSplit, sample_goals
from .instructions import INSTRUCTIONS
from .simulator import build_expert, build_simulator
from .tasks import resolve_tasks

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    import mujoco

    from ..mujoco.rendering import SceneRenderer

_FULL_OBSERVATION = 39
_PROPRIOCEPTION = 4  # the first numbers of MetaWorld's observation: gripper x, y, z and opening
_VIDEO_CAMERA = Camera("corner4", 240, 240, fovy=42.0)


class MetaWorldEnv(gym.Env):
    """
    A choice of MetaWorld v3 tasks, of which every reset draws one, with a goal of a seeded list.

    Observation (``Dict``): ``state`` ``(4,)`` float32, gripper x, y, z and opening; if ``privileged``, ``privileged``
    ``(39 + n,)`` float32, MetaWorld's full observation with the goal, and which of the n tasks of ``task_ids`` it is.
    Action: ``Box(-1, 1, (4,))``, movement in x, y, z and gripper effort.

    Info, after every reset and step: ``task``, ``goal_index``, ``is_success`` (whether the episode has succeeded so far)
    and, once it has, ``steps_to_success``.

    ``reset(seed=...)`` restarts everything random and every sequence; ``reset(options={"task": ..., "goal_index": ...})``
    picks a task, a goal or both by hand.

    :param tasks: Task, benchmark, comma-separated names or a sequence of them, see :func:`resolve_tasks`
    :param task_order: ``"uniform"``: each reset draws a task; ``"round_robin"``: one after the other
    :param goal_split: ``"train"`` or ``"test"``: two sets of goals with nothing in common
    :param n_goals: Length of the list of goals of each task
    :param goal_seed: Which list of goals, see :func:`sample_goals`
    :param goal_order: ``"uniform"``: each reset draws a goal; ``"sequential"``: 0, 1, 2, ... for each task, as in evaluation
    :param reward: ``"sparse"``: 1 at the first success of an episode, else 0; ``"dense"``: MetaWorld's own
    :param terminate_on_success: Whether the first success ends the episode
    :param horizon: Number of steps after which an episode is truncated
    :param paraphrases: Whether each reset draws one of the task's wordings, or always takes the first
    :param privileged: Whether to observe ``privileged``, for a critic
    :param task_ids: The tasks among which ``privileged`` tells which one it is, ``tasks`` by default; give the whole list
        to environments that share a policy and each have a part of it
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: If an argument is not one of those allowed
    :raises ImportError: If MetaWorld is not installed
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012  # declared as an instance attribute by gym

    def __init__(
        self,
        tasks: str | Sequence[str] = "MT10",
        task_order: Literal["uniform", "round_robin"] = "uniform",
        goal_split: GoalSplit = "train",
        n_goals: int = 50,
        goal_seed: int = 0,
        goal_order: Literal["uniform", "sequential"] = "uniform",
        reward: Literal["sparse", "dense"] = "sparse",
        terminate_on_success: bool = True,
        horizon: int = 500,
        paraphrases: bool = False,
        privileged: bool = True,
        task_ids: Sequence[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.tasks = resolve_tasks(tasks)
        self.task_ids = self.tasks if task_ids is None else resolve_tasks(task_ids)
        if not set(self.tasks) <= set(self.task_ids):
            raise ValueError(f"task_ids must hold all tasks, missing are {sorted(set(self.tasks) - set(self.task_ids))}")
        _check_choice("task_order", task_order, ("uniform", "round_robin"))
        _check_choice("goal_split", goal_split, SPLITS)
        _check_choice("goal_order", goal_order, ("uniform", "sequential"))
        _check_choice("reward", reward, ("sparse", "dense"))
        _check_choice("render_mode", render_mode, (None, "rgb_array"))
        _check_positive("n_goals", n_goals)
        _check_positive("horizon", horizon)
        self.task_order = task_order
        self.goal_split: GoalSplit = goal_split
        self.n_goals = n_goals
        self.goal_seed = goal_seed
        self.goal_order = goal_order
        self.reward = reward
        self.terminate_on_success = terminate_on_success
        self.horizon = horizon
        self.paraphrases = paraphrases
        self.privileged = privileged
        self.render_mode = render_mode

        observed: dict[str, spaces.Space] = {"state": spaces.Box(-np.inf, np.inf, (_PROPRIOCEPTION,), np.float32)}
        if privileged:
            size = _FULL_OBSERVATION + len(self.task_ids)
            observed["privileged"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = spaces.Dict(observed)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

        self.task = self.tasks[0]
        self.instruction = INSTRUCTIONS[self.task][0]
        self.goal_index = 0
        self._simulators: dict[str, SawyerXYZEnv] = {}
        self._renderers: dict[str, SceneRenderer] = {}
        self._full_observation: NDArray[np.float64] | None = None
        self._restart_sequences()

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every instruction that this environment may give."""
        return tuple(text for task in self.tasks for text in INSTRUCTIONS[task][: None if self.paraphrases else 1])

    @property
    def model(self) -> mujoco.MjModel:
        """The MuJoCo model of the current task."""
        model: mujoco.MjModel = self._simulator.model
        return model

    @property
    def data(self) -> mujoco.MjData:
        """The MuJoCo state of the current task."""
        data: mujoco.MjData = self._simulator.data
        return data

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """
        Begin an episode.

        :param seed: Restarts the random numbers and the sequences of tasks and goals
        :param options: ``task`` and ``goal_index`` pick these by hand, each optional
        :return: Observation and info
        :raises ValueError: If ``options`` has other keys, or a task or goal that this environment does not have
        """
        super().reset(seed=seed)
        if seed is not None:
            self._restart_sequences()
        options = options or {}
        if not set(options) <= {"task", "goal_index"}:
            raise ValueError(
                f"Unknown reset options {sorted(set(options) - {'task', 'goal_index'})}: allowed are task, goal_index"
            )
        self.task = self._next_task() if options.get("task") is None else self._checked_task(options["task"])
        self.goal_index = self._next_goal() if options.get("goal_index") is None else self._checked_goal(options["goal_index"])
        wordings = INSTRUCTIONS[self.task]
        self.instruction = wordings[self.np_random.integers(len(wordings))] if self.paraphrases else wordings[0]
        self._steps = 0
        self._steps_to_success: int | None = None
        self._expert = build_expert(self.task)
        self._full_observation = self._reset_simulator()
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """
        Take one step of 12.5 ms.

        :param action: Movement in x, y, z and gripper effort, shape ``(4,)``, clipped to [-1, 1]
        :return: Observation, reward, terminated, truncated, info
        :raises gymnasium.error.ResetNeeded: Before the first reset
        """
        if self._full_observation is None:
            raise gym.error.ResetNeeded("Call reset() before the first step()")
        action = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        self._full_observation, dense, _, _, result = self._simulator.step(action)
        self._steps += 1
        first_success = bool(result["success"]) and self._steps_to_success is None
        if first_success:
            self._steps_to_success = self._steps
        reward = float(first_success) if self.reward == "sparse" else float(dense)
        terminated = self.terminate_on_success and self._steps_to_success is not None
        truncated = not terminated and self._steps >= self.horizon
        return self._observation(), reward, terminated, truncated, self._info()

    def expert_action(self) -> NDArray[np.float32]:
        """
        What MetaWorld's scripted policy does in the current state.

        :return: The action, shape ``(4,)``, clipped to [-1, 1]
        :raises gymnasium.error.ResetNeeded: Before the first reset
        """
        if self._full_observation is None:
            raise gym.error.ResetNeeded("Call reset() before expert_action()")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every action that it knows will be clipped
            action = self._expert.get_action(self._full_observation)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """
        Draw the scene for a human.

        :return: Upright RGB picture, shape ``(240, 240, 3)``, uint8, or ``None`` without a render mode
        :raises RuntimeError: If no OpenGL library is installed
        """
        if self.render_mode is None:
            return None
        if self.task not in self._renderers:
            from ..mujoco.rendering import SceneRenderer  # needs OpenGL, which environments without pictures do not

            self._renderers[self.task] = SceneRenderer(self.model, [_VIDEO_CAMERA], "plain")
        return self._renderers[self.task].render(self.data)

    def close(self) -> None:
        """Release the simulators."""
        for simulator in self._simulators.values():
            simulator.close()
        self._simulators.clear()
        self._renderers.clear()
        self._full_observation = None

    @property
    def _simulator(self) -> SawyerXYZEnv:
        if self.task not in self._simulators:
            simulator = build_simulator(self.task)
            simulator.max_path_length = self.horizon  # it refuses to step past its own limit of 500
            self._simulators[self.task] = simulator
        return self._simulators[self.task]

    def _reset_simulator(self) -> NDArray[np.float64]:
        """Reset the current task's simulator to the current goal and return the full observation, shape (39,)."""
        import mujoco

        simulator = self._simulator
        simulator._last_rand_vec = sample_goals(self.task, self.goal_split, self.n_goals, self.goal_seed)[
            self.goal_index
        ].copy()
        simulator.reset()
        # window-close-v3 moves its window after positions were last computed: without this, the first observation and the
        # first picture would show it 20 cm away from where it is.
        mujoco.mj_forward(simulator.model, simulator.data)
        simulator._prev_obs = simulator._get_curr_obs_combined_no_goal()
        space = simulator.sawyer_observation_space
        observation: NDArray[np.float64] = np.clip(simulator._get_obs(), space.low, space.high)  # as its step() does
        return observation

    def _restart_sequences(self) -> None:
        self._n_tasks_drawn = 0
        self._n_goals_drawn = dict.fromkeys(self.tasks, 0)

    def _next_task(self) -> str:
        if self.task_order == "uniform":
            return self.tasks[self.np_random.integers(len(self.tasks))]
        self._n_tasks_drawn += 1
        return self.tasks[(self._n_tasks_drawn - 1) % len(self.tasks)]

    def _next_goal(self) -> int:
        if self.goal_order == "uniform":
            return int(self.np_random.integers(self.n_goals))
        self._n_goals_drawn[self.task] += 1
        return (self._n_goals_drawn[self.task] - 1) % self.n_goals

    def _checked_task(self, task: str) -> str:
        if task not in self.tasks:
            raise ValueError(f"This environment does not have the task {task!r}, only {', '.join(self.tasks)}")
        return task

    def _checked_goal(self, goal_index: int) -> int:
        if not 0 <= goal_index < self.n_goals:
            raise ValueError(f"goal_index must be in 0 .. {self.n_goals - 1} (n_goals={self.n_goals}), got {goal_index}")
        return int(goal_index)

    def _observation(self) -> dict[str, NDArray[np.float32]]:
        assert self._full_observation is not None
        full = self._full_observation.astype(np.float32)
        observation = {"state": full[:_PROPRIOCEPTION].copy()}
        if self.privileged:
            which = np.zeros(len(self.task_ids), dtype=np.float32)
            which[self.task_ids.index(self.task)] = 1.0
            observation["privileged"] = np.concatenate([full, which])
        return observation

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "task": self.task,
            "goal_index": self.goal_index,
            "is_success": self._steps_to_success is not None,
        }
        if self._steps_to_success is not None:
            info["steps_to_success"] = self._steps_to_success
        return info


def _check_choice(name: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        raise ValueError(f"Unknown {name} {value!r}, allowed are {', '.join(map(repr, allowed))}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")

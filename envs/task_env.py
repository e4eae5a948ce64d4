"""What the environments of all suites share: tasks, goals, instructions, success, and how episodes begin and end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .argument_checks import FLAG, check_choice, check_count

if TYPE_CHECKING:
    from .suite import Suite

GoalSplit = Literal["train", "test", "benchmark"]
# Every suite has these two; "benchmark" only one whose benchmark has goals of its own
SPLITS: tuple[GoalSplit, ...] = ("train", "test")
ALL_SPLITS: tuple[GoalSplit, ...] = (*SPLITS, "benchmark")
# Marks settings that do not matter to a model in use
TRAINING_ONLY = {"training_only": True}

# What tells an episode from others, beside the simulation's own state
_OF_AN_EPISODE = ("task", "goal_index", "instruction", "_steps", "_steps_to_success")

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """
    How tasks are played, the same in every suite. A suite may have a subclass, with other defaults or more settings.

    :param task_order: ``"uniform"``: each reset draws a task; ``"round_robin"``: one after the other
    :param goal_split: ``"train"`` or ``"test"``: two sets of goals with nothing in common; in some suites also
        ``"benchmark"``: the goals of the suite's own benchmark, which know nothing of the other two
    :param n_goals: Length of the list of goals of each task
    :param goal_seed: Which list of goals
    :param goal_order: ``"uniform"``: each reset draws a goal; ``"sequential"``: 0, 1, 2, ... for each task, as in evaluation
    :param reward: ``"sparse"``: 1 at the first success of an episode, else 0; ``"dense"``: the simulator's own
    :param terminate_on_success: Whether the first success ends the episode
    :param horizon: Number of steps after which an episode is truncated
    :param settle_steps: Steps with a zero action at the beginning of an episode, which the policy does not see and nothing
        counts
    :param paraphrases: Whether each reset draws one of the task's wordings, or always takes the first
    :param privileged: Whether to observe ``privileged``, for a critic, where the suite knows anything to put there
    :param task_ids: The tasks among which ``privileged`` tells which one it is, by default those of the environment; give the
        whole list to environments that share a policy and each have a part of it
    :raises TypeError: If a setting is of another type
    :raises ValueError: If a setting is not one of those allowed
    """

    task_order: Literal["uniform", "round_robin"] = field(default="uniform", metadata=TRAINING_ONLY)
    goal_split: GoalSplit = "train"
    n_goals: int = 50
    goal_seed: int = 0
    goal_order: Literal["uniform", "sequential"] = field(default="uniform", metadata=TRAINING_ONLY)
    reward: Literal["sparse", "dense"] = "sparse"
    terminate_on_success: bool = True
    horizon: int = 500
    settle_steps: int = 0
    paraphrases: bool = False
    privileged: bool = field(default=True, metadata=TRAINING_ONLY)
    task_ids: Sequence[str] | None = field(default=None, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_choice("task_order", self.task_order, ("uniform", "round_robin"))
        check_choice("goal_split", self.goal_split, ALL_SPLITS)
        check_count("n_goals", self.n_goals)
        check_count("goal_seed", self.goal_seed, least=0)
        check_choice("goal_order", self.goal_order, ("uniform", "sequential"))
        check_choice("reward", self.reward, ("sparse", "dense"))
        FLAG.check("terminate_on_success", self.terminate_on_success)
        check_count("horizon", self.horizon)
        check_count("settle_steps", self.settle_steps, least=0)
        FLAG.check("paraphrases", self.paraphrases)
        FLAG.check("privileged", self.privileged)


class Outcome(NamedTuple):
    """
    What a primitive step led to.

    :param success: Whether the task is done now
    :param reward: The simulator's own, dense one
    :param terminated: Whether the simulation has come to an end by itself
    :param truncated: Whether it refuses to go on for another reason
    """

    success: bool
    reward: float
    terminated: bool = False
    truncated: bool = False


class MultiTaskEnv(gym.Env):
    """
    A choice of a suite's tasks, of which every reset draws one, with a goal of a seeded list.

    Info, after every reset and step: ``task``, ``goal_index``, ``is_success`` (whether the episode has succeeded so far)
    and, once it has, ``steps_to_success``.

    ``reset(seed=...)`` restarts everything random and every sequence; ``reset(options={"task": ..., "goal_index": ...})``
    picks a task, a goal or both by hand. Each of the settings is an attribute of its name, too.

    A subclass implements :meth:`_begin`, :meth:`_advance`, :meth:`_observe` and :meth:`picture`, and where there are such
    :meth:`_privileged_state` and :meth:`_expert_action`; where an episode can go on in another process, :meth:`_get_episode`
    and :meth:`_set_episode`.

    :param suite: The suite
    :param tasks: Some of its tasks, see :meth:`Suite.resolve_tasks`
    :param observed: Spaces of what :meth:`_observe` gives, by key
    :param action_space: Of a primitive step
    :param privileged_size: Length of :meth:`_privileged_state`; with 0 there is no ``privileged``, whatever the setting says
    :param render_mode: ``None`` or ``"rgb_array"``
    :param settings: Of the suite's :class:`SimulationSettings`
    :raises TypeError: If a setting is unknown or of another type
    :raises ValueError: If an argument is not one of those allowed
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # declared as an instance attribute by gym

    # The settings, which may be changed between episodes
    task_order: str
    goal_split: GoalSplit
    n_goals: int
    goal_seed: int
    goal_order: str
    reward: str
    terminate_on_success: bool
    horizon: int
    settle_steps: int
    paraphrases: bool
    privileged: bool

    def __init__(
        self,
        suite: Suite,
        tasks: str | Sequence[str],
        observed: Mapping[str, spaces.Space],
        action_space: spaces.Space,
        privileged_size: int,
        render_mode: str | None,
        settings: Mapping[str, Any],
    ) -> None:
        check_choice("render_mode", render_mode, (None, "rgb_array"))
        self.suite = suite
        self.render_mode = render_mode
        self.settings = suite.simulation(**settings)
        vars(self).update(vars(self.settings))
        check_choice(f"goal_split of the suite {suite.name!r}", self.goal_split, suite.goal_splits)
        if self.settle_steps and not isinstance(action_space, spaces.Box):
            raise ValueError(f"settle_steps={self.settle_steps} needs actions with a zero, but they are {action_space}")
        self.tasks = suite.resolve_tasks(tasks)
        self.task_ids = self.tasks if self.settings.task_ids is None else suite.resolve_tasks(self.settings.task_ids)
        if not set(self.tasks) <= set(self.task_ids):
            raise ValueError(f"task_ids must hold all tasks, missing are {sorted(set(self.tasks) - set(self.task_ids))}")
        observed = dict(observed)
        # Which task it is alone would be all that a critic sees, in place of what the policy does
        self.privileged = self.privileged and privileged_size > 0
        if self.privileged:
            size = privileged_size + len(self.task_ids)
            observed["privileged"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = spaces.Dict(observed)
        self.action_space = action_space
        self._bounds = (action_space.low, action_space.high) if isinstance(action_space, spaces.Box) else None

        self.task = self.tasks[0]
        self.instruction = suite.instructions(self.task)[0]
        self.goal_index = 0
        self._is_running = False
        self._restart_sequences()

    @abstractmethod
    def _begin(self) -> None:
        """Begin an episode of ``self.task`` with the goal ``self.goal_index``."""

    @abstractmethod
    def _advance(self, action: Any) -> Outcome:
        """
        Take a primitive step.

        :param action: Of the action space's type; a ``Box``'s finite and within its bounds
        :return: What it led to
        """

    @abstractmethod
    def _observe(self) -> Observation:
        """
        :return: What the policy may see now, without ``privileged``
        """

    @abstractmethod
    def picture(self) -> NDArray[np.uint8]:
        """
        Draw the scene for a human, whatever the render mode.

        :return: Upright RGB picture, shape ``(height, width, 3)``, uint8, always of one size
        """

    def _privileged_state(self) -> NDArray[np.floating[Any]]:
        """
        :return: What only a critic may know now, shape ``(privileged_size,)``; it becomes float32, and which task it is will
            be added
        """
        return np.zeros(0, np.float32)

    def _expert_action(self) -> NDArray[Any]:
        """
        :return: What an expert does now; it may be out of bounds
        :raises NotImplementedError: If there is no expert
        """
        raise NotImplementedError(f"The suite {self.suite.name!r} has no expert for the task {self.task!r}")

    def _get_episode(self) -> dict[str, Any]:
        """
        :return: What the simulation goes on from in the episode under way, as :meth:`get_state` has it
        :raises NotImplementedError: If it can't tell
        """
        raise NotImplementedError(f"The suite {self.suite.name!r} can't tell the state of its simulations")

    def _set_episode(self, episode: dict[str, Any]) -> None:
        """
        Go on with an episode of ``self.task`` with the goal ``self.goal_index``.

        :param episode: What :meth:`_get_episode` returned
        """
        raise NotImplementedError(f"The suite {self.suite.name!r} can't go on with an episode")

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every instruction that this environment may give."""
        n_wordings = None if self.paraphrases else 1
        return tuple(text for task in self.tasks for text in self.suite.instructions(task)[:n_wordings])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Begin an episode.

        :param seed: Restarts the random numbers and the sequences of tasks and goals
        :param options: ``task`` and ``goal_index`` pick these by hand, each optional
        :return: Observation and info
        :raises ValueError: If ``options`` has other keys, or a task or goal that this environment does not have
        :raises RuntimeError: If the episode ends while it settles
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
        wordings = self.suite.instructions(self.task)
        self.instruction = wordings[self.np_random.integers(len(wordings))] if self.paraphrases else wordings[0]
        self._steps = 0
        self._steps_to_success: int | None = None
        self._tell_task()
        self._begin()
        for step in range(self.settle_steps):
            outcome = self._advance(self._clipped(np.zeros(self.action_space.shape)))
            if outcome.terminated or outcome.truncated:
                raise RuntimeError(
                    f"an episode of {self.task!r} ended in step {step + 1} of settle_steps={self.settle_steps}, before it "
                    "began: give fewer"
                )
        self._is_running = True
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        Take a primitive step.

        :param action: Of the action space; a ``Box``'s is clipped to its bounds
        :return: Observation, reward, terminated, truncated, info
        :raises gymnasium.error.ResetNeeded: Before the first reset
        :raises ValueError: If the action is not finite or of another shape
        """
        if not self._is_running:
            raise gym.error.ResetNeeded("Call reset() before the first step()")
        outcome = self._advance(action if self._bounds is None else self._clipped(action))
        self._steps += 1
        first_success = outcome.success and self._steps_to_success is None
        if first_success:
            self._steps_to_success = self._steps
        reward = float(first_success) if self.reward == "sparse" else float(outcome.reward)
        terminated = outcome.terminated or (self.terminate_on_success and self._steps_to_success is not None)
        truncated = not terminated and (outcome.truncated or self._steps >= self.horizon)
        return self._observation(), reward, terminated, truncated, self._info()

    def expert_action(self) -> NDArray[Any]:
        """
        What the suite's expert does in the current state.

        :return: The action, clipped to the action space's bounds
        :raises gymnasium.error.ResetNeeded: Before the first reset
        :raises NotImplementedError: If there is no expert
        """
        if not self._is_running:
            raise gym.error.ResetNeeded("Call reset() before expert_action()")
        action = self._expert_action()
        if self._bounds is None:
            return np.asarray(action, dtype=self.action_space.dtype)
        return np.clip(action, *self._bounds).astype(self.action_space.dtype)

    def get_state(self) -> dict[str, Any]:
        """
        What the environment goes on from, bit for bit: random numbers, sequences of tasks and goals, the episode under way.

        :return: Numbers, texts, arrays, and dictionaries of these
        :raises NotImplementedError: If the suite's simulations can't tell their state
        """
        sequences = {"n_tasks_drawn": self._n_tasks_drawn, "n_goals_drawn": dict(self._n_goals_drawn)}
        state = {"random": self.np_random.bit_generator.state, **sequences, "is_running": self._is_running}
        if self._is_running:
            state.update({name: getattr(self, name) for name in _OF_AN_EPISODE}, episode=self._get_episode())
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        :param state: What :meth:`get_state` returned, of an environment that was made with the same arguments
        :raises NotImplementedError: If the suite's simulations can't go on from a state
        """
        self.np_random.bit_generator.state = state["random"]
        self._n_tasks_drawn, self._n_goals_drawn = state["n_tasks_drawn"], dict(state["n_goals_drawn"])
        self._is_running = state["is_running"]
        if self._is_running:
            vars(self).update({name: state[name] for name in _OF_AN_EPISODE})
            self._tell_task()
            self._set_episode(state["episode"])

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """
        Draw the scene for a human.

        :return: Upright RGB picture, or ``None`` without a render mode
        :raises RuntimeError: If it needs an OpenGL library and none is installed
        """
        return None if self.render_mode is None else self.picture()

    def close(self) -> None:
        """Let go of the simulation."""
        self._is_running = False

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} can be neither copied nor pickled, since its simulator cannot: make another one with the "
            "same arguments (sb3_vla_envs.make_env_fns gives functions that can be pickled), and reset it with the same seed"
        )

    def _tell_task(self) -> None:
        self._which_task = np.zeros(len(self.task_ids), np.float32)
        self._which_task[self.task_ids.index(self.task)] = 1.0

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
        n_goals = self.n_goals
        check_count("goal_index", goal_index, least=0)
        if not 0 <= goal_index < n_goals:
            raise ValueError(f"goal_index must be in 0 .. {n_goals - 1} (n_goals={n_goals}), got {goal_index}")
        return int(goal_index)

    def _clipped(self, action: Any) -> NDArray[Any]:
        action = np.asarray(action, dtype=self.action_space.dtype)
        if action.shape != self.action_space.shape:
            raise ValueError(f"Got an action of shape {action.shape}, those of {self.task!r} have {self.action_space.shape}")
        if not all(map(isfinite, action.ravel().tolist())):  # of a few numbers, a fifth of the time of np.isfinite
            raise ValueError(
                f"The action in step {self._steps + 1} of an episode of {self.task!r} is not finite: {action.tolist()}. "
                "Perhaps the policy's weights are no longer finite"
            )
        low, high = self._bounds  # type: ignore[misc]
        return np.minimum(np.maximum(action, low), high)  # np.clip takes three times as long

    def _observation(self) -> Observation:
        observation = self._observe()
        if self.privileged:
            observation["privileged"] = np.concatenate((self._privileged_state(), self._which_task), dtype=np.float32)
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

"""Any registered Gymnasium environments as a suite."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .argument_checks import check_count
from .suite import Suite
from .task_env import SPLITS, MultiTaskEnv, Observation, Outcome, SimulationSettings
from .wrappers.observation_keys import ObservationKeys
from .wrappers.picture_observation import PictureObservation
from .wrapping import WrappingSettings

#: Whether a step is a success: its observation, reward, ``terminated`` and info
Success = Callable[[Any, float, bool, dict[str, Any]], bool]
#: What to do now in an (unwrapped) environment
Expert = Callable[[gym.Env], Any]


@dataclass(frozen=True)
class GymTask:
    """
    A task of a :class:`GymSuite`.

    :param env_id: Registered id of its environment, also ``"module:id"``
    :param instructions: What is to be done, as a text or as several ways of saying it, the first one the default; they become
        a tuple
    :param kwargs: Arguments of the environment
    :raises ValueError: If there is no instruction, or one that is empty or no text
    """

    env_id: str
    instructions: str | Sequence[str]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = (self.instructions,) if isinstance(self.instructions, str) else self.instructions
        wordings = tuple(given) if isinstance(given, Sequence) else ()
        if not wordings or not all(isinstance(text, str) and text.strip() for text in wordings):
            raise ValueError(
                f"The task in {self.env_id!r} needs at least one instruction, a text or a sequence of texts that are not "
                f'empty, got {self.instructions!r}: write GymTask({self.env_id!r}, "push the block")'
            )
        object.__setattr__(self, "instructions", wordings)


class GymSuite(Suite):
    """
    A suite of registered Gymnasium environments: one a task, all with the same spaces.

    What the policy observes follows from ``keys``; where there is no picture among it, it sees what ``render()`` draws. A
    key ``privileged`` is for the critic alone, which without one sees what the policy does. Each goal is a seed of the
    environment's reset, the goals of training odd ones and those of tests even ones.

    Example:
        >>> from sb3_vla_envs import GymSuite, GymTask, make_vla_env
        >>> hill = GymTask("MountainCarContinuous-v0", "drive up the hill")
        >>> suite = GymSuite("cars", {"hill": hill}, success=lambda obs, reward, terminated, info: terminated)
        >>> env = make_vla_env("hill", suite=suite, chunk_size=4)  # doctest: +SKIP
        >>> sorted(env.observation_space), env.action_space.shape  # doctest: +SKIP
        (['image', 'instruction', 'state'], (4, 1))

    :param name: Name of the suite
    :param tasks: The tasks by their names
    :param keys: New names by old ones of what is observed, see :class:`ObservationKeys`: ``image``, ``image_<camera>``,
        ``state`` and ``privileged`` are what a policy knows
    :param success: Key of the info that says whether a step is a success, or a function of the step's observation, reward,
        ``terminated`` and info
    :param expert: Gives the action to take in an (unwrapped) environment, for demonstrations
    :param horizon: Number of steps after which an episode is truncated, in place of the environment's own limit
    :param picture_size: Height and width of the picture, where it is drawn by ``render()``
    :param wrapping: What stands between simulation and policy by default; with ``cameras`` pictures are drawn by those, for
        environments with MuJoCo's ``model`` and ``data``
    :raises TypeError: If ``tasks`` is no mapping of names to :class:`GymTask`
    :raises ValueError: If there is no task
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, GymTask],
        *,
        keys: Mapping[str, str] | None = None,
        success: str | Success = "is_success",
        expert: Expert | None = None,
        horizon: int = 500,
        picture_size: tuple[int, int] = (96, 96),
        wrapping: WrappingSettings | None = None,
    ) -> None:
        if not isinstance(tasks, Mapping) or not all(isinstance(task, GymTask) for task in tasks.values()):
            raise TypeError(
                f"The suite {name!r} needs its tasks as a mapping of names to GymTask, got {tasks!r}: write "
                f'GymSuite({name!r}, {{"push": GymTask("Push-v0", "push the block")}})'
            )
        if not tasks:
            raise ValueError(f"The suite {name!r} needs at least one task")
        check_count("horizon", horizon)
        self.name = name
        self.gym_tasks = dict(tasks)
        self.default_tasks = tuple(tasks)
        self.groups = {} if name in tasks else {name: tuple(tasks)}
        self.keys = keys
        self.success = success
        self.expert = expert
        self.horizon = horizon
        self.picture_size = picture_size
        self.wrapping = WrappingSettings() if wrapping is None else wrapping

    @property
    def simulation(self) -> type[SimulationSettings]:  # type: ignore[override]
        """Settings with the suite's own horizon."""
        return _settings_with(self.horizon)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task."""
        return tuple(self.gym_tasks)

    def instructions(self, task: str) -> tuple[str, ...]:
        """
        :param task: A task
        :return: The ways of saying what is to be done, the first one the default
        """
        return tuple(self.gym_tasks[task].instructions)

    def has_expert(self, task: str) -> bool:
        """
        :param task: A task
        :return: Whether the suite was given an expert
        """
        return self.expert is not None

    def make_simulation(self, tasks: str | Sequence[str], render_mode: str | None = None, **simulation: Any) -> gym.Env:
        """
        :param tasks: Some tasks
        :param render_mode: ``None`` or ``"rgb_array"``
        :param simulation: Settings, see :class:`SimulationSettings`
        :return: A :class:`GymTaskEnv`
        """
        return GymTaskEnv(self, tasks, render_mode=render_mode, **simulation)

    def add_pictures(self, env: gym.Env, settings: WrappingSettings) -> gym.Env:
        """
        :param env: An environment of chunks
        :param settings: Of its wrapping
        :return: The same with pictures in its observation: its own, or what cameras or ``render()`` draw
        """
        observed = env.observation_space.spaces  # type: ignore[attr-defined]
        if settings.cameras is not None or any(key.split("_")[0] == "image" for key in observed):
            return super().add_pictures(env, settings)
        return PictureObservation(env, *self.picture_size)


class GymTaskEnv(MultiTaskEnv):
    """
    Tasks of a :class:`GymSuite`, of which every reset draws one, with a seed of a list.

    :param suite: The suite
    :param tasks: Some of its tasks
    :param render_mode: ``None`` or ``"rgb_array"``
    :param settings: Of :class:`SimulationSettings`; the dense reward is the environment's own
    :raises TypeError: If a setting is unknown or of another type, or something observed is no ``Box``
    :raises ValueError: If an argument is not one of those allowed, or the tasks' spaces differ
    """

    suite: GymSuite

    def __init__(
        self, suite: GymSuite, tasks: str | Sequence[str], *, render_mode: str | None = None, **settings: Any
    ) -> None:
        self._envs = {task: _make(suite, task) for task in suite.resolve_tasks(tasks)}
        first, *others = self._envs.values()
        for task, env in zip(list(self._envs)[1:], others, strict=True):
            if (env.observation_space, env.action_space) != (first.observation_space, first.action_space):
                raise ValueError(
                    f"All tasks of an environment must have the same spaces: {task!r} has {env.observation_space} and "
                    f"{env.action_space}, {next(iter(self._envs))!r} has {first.observation_space} and {first.action_space}"
                )
        observed: dict[str, spaces.Space] = dict(first.observation_space.spaces)  # type: ignore[attr-defined]
        privileged = observed.pop("privileged", None)
        privileged_size = 0 if privileged is None else spaces.flatdim(privileged)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": first.metadata.get("render_fps", 30)}
        super().__init__(suite, tasks, observed, first.action_space, privileged_size, render_mode, settings)
        self._seen: Observation
        self._reports_success = False

    @property
    def task_env(self) -> gym.Env:
        """The Gymnasium environment of the current task."""
        return self._envs[self.task]

    @property
    def model(self) -> Any:
        """MuJoCo's model, where the environment has one."""
        return self.task_env.unwrapped.model  # type: ignore[attr-defined]

    @property
    def data(self) -> Any:
        """MuJoCo's state, where the environment has one."""
        return self.task_env.unwrapped.data  # type: ignore[attr-defined]

    def picture(self) -> NDArray[np.uint8]:
        """
        Draw the scene for a human, whatever the render mode.

        :return: What the environment draws, RGB, uint8
        """
        return np.asarray(self.task_env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs.values():
            env.close()
        super().close()

    def _begin(self) -> None:
        self._seen, _ = self.task_env.reset(seed=self._goal_seed())
        self._reports_success = False

    def _advance(self, action: Any) -> Outcome:
        self._seen, reward, terminated, truncated, info = self.task_env.step(action)
        is_last = terminated or truncated or self._steps + 1 >= self.horizon
        success = self._is_success(float(reward), terminated, info, is_last)
        return Outcome(success, float(reward), terminated, truncated)

    def _observe(self) -> Observation:
        return {key: value for key, value in self._seen.items() if key != "privileged"}

    def _privileged_state(self) -> NDArray[np.float32]:
        return self._seen["privileged"].ravel()

    def _expert_action(self) -> NDArray[Any]:
        if self.suite.expert is None:
            return super()._expert_action()
        action = np.asarray(self.suite.expert(self.task_env.unwrapped))
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"The expert of the suite {self.suite.name!r} gave an action of shape {action.shape} in the task "
                f"{self.task!r}, but actions have the shape {self.action_space.shape}: let it return one primitive action, "
                "not a chunk or a batch"
            )
        return action

    def _goal_seed(self) -> int:
        """The seed of the current goal: which split it is of shows in its last bit, the other 30 are drawn."""
        entropy = (zlib.crc32(self.task.encode()), self.goal_seed, self.goal_index)
        drawn = int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 2
        return 2 * drawn + (self.goal_split == SPLITS[0])

    def _is_success(self, reward: float, terminated: bool, info: dict[str, Any], is_last: bool) -> bool:
        success = self.suite.success
        if callable(success):
            return bool(success(self._seen, reward, terminated, info))
        self._reports_success = self._reports_success or success in info
        if is_last and not self._reports_success:
            raise ValueError(
                f"No info of an episode of {self.task!r} says {success!r}, the last has {sorted(info)}: give the suite "
                f"{self.suite.name!r} another key, or a function: success=lambda obs, reward, terminated, info: terminated"
            )
        return bool(info.get(success, False))


@cache  # not kept by the suite, which may go to another process, where a class made on the way is unknown
def _settings_with(horizon: int) -> type[SimulationSettings]:
    settings = [("horizon", int, horizon)]
    return make_dataclass("GymSettings", settings, bases=(SimulationSettings,), frozen=True, kw_only=True)


def _make(suite: GymSuite, task: str) -> gym.Env:
    made = suite.gym_tasks[task]
    # Its own time limit would hide the horizon
    env = gym.make(made.env_id, render_mode="rgb_array", max_episode_steps=-1, **made.kwargs)
    return ObservationKeys(env, suite.keys)

"""Where tasks come from: what a suite of tasks is, and which there are."""

from __future__ import annotations

import difflib
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RenderCollection
from numpy.typing import NDArray

from .argument_checks import check_choice
from .mujoco.camera_observation import CameraObservation
from .task_env import SPLITS, GoalSplit, SimulationSettings
from .wrappers.chunked_action import ChunkedActionWrapper
from .wrappers.instruction_observation import InstructionObservation
from .wrapping import WrappingSettings

_RENDER_MODES = (None, "rgb_array", "rgb_array_list")


class Suite(ABC):
    """
    A family of tasks for one kind of robot: their names and instructions, how to make environments of them, and an expert
    where there is one. Making a suite and asking it for names and instructions imports no simulator.

    A subclass sets the attributes below, and implements :attr:`tasks`, :meth:`instructions` and :meth:`make_simulation`.
    """

    #: What ``--suite`` and ``suite:`` in a YAML file say
    name: str
    #: What a quickstart trains on
    default_tasks: tuple[str, ...]
    #: What it takes to make a simulation, with the suite's own defaults
    simulation: type[SimulationSettings] = SimulationSettings
    #: The suite's own defaults for what stands between simulation and policy, such as its cameras
    wrapping: WrappingSettings = WrappingSettings()
    #: Names for several tasks together
    groups: Mapping[str, tuple[str, ...]] = {}  # never changed
    #: Names for what a policy must find in the pictures, as indices into ``privileged``; see ``sb3-vla probe``
    privileged_parts: Mapping[str, tuple[int, ...]] = {}  # never changed
    #: Which goals there are
    goal_splits: tuple[GoalSplit, ...] = SPLITS
    #: How others evaluate on it, by name: arguments of ``sb3_vla.evaluate_on_tasks``; see ``sb3-vla eval --protocol``
    protocols: Mapping[str, Mapping[str, Any]] = {}  # never changed
    #: Distributions that its simulations come from, whose versions a result depends on
    distributions: tuple[str, ...] = ()
    #: The module that registers the suite, where it had to be named to find it
    module: str | None = None

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Every task."""

    @abstractmethod
    def instructions(self, task: str) -> tuple[str, ...]:
        """
        :param task: A task
        :return: The ways of saying what is to be done, the first one the default
        """

    @abstractmethod
    def make_simulation(self, tasks: str | Sequence[str], render_mode: str | None = None, **simulation: Any) -> gym.Env:
        """
        :param tasks: Some tasks, see :meth:`resolve_tasks`
        :param render_mode: ``None`` or ``"rgb_array"``
        :param simulation: Settings, see :attr:`simulation`
        :return: An environment of primitive steps, a :class:`MultiTaskEnv`
        """

    @property
    def address(self) -> str:
        """What :func:`get_suite` takes to find this suite, in another process too."""
        return self.name if self.module is None else f"{self.module}:{self.name}"

    def resolve_tasks(self, tasks: str | Sequence[str]) -> tuple[str, ...]:
        """
        Turn any way of naming tasks into a tuple of task names, without duplicates and in the order given.

        :param tasks: A task, a group (see :attr:`groups`), several of them separated by commas, or a sequence of such names
        :return: The task names
        :raises TypeError: If ``tasks`` is neither a string nor a sequence of strings
        :raises ValueError: If there is no task, or one that the suite does not have
        """
        resolved: dict[str, None] = {}
        for name in _names(tasks):
            if name not in self.groups and name not in self.tasks:
                raise ValueError(_unknown_task(name, [self]))
            resolved.update(dict.fromkeys(self.groups.get(name, (name,))))
        return tuple(resolved)

    def group_name(self, tasks: str | Sequence[str]) -> str | None:
        """
        :param tasks: Some tasks, see :meth:`resolve_tasks`
        :return: A single task's own name, or that of the group that holds exactly these, or ``None``
        """
        names = self.resolve_tasks(tasks)
        if len(names) == 1:
            return names[0]
        return next((group for group, members in self.groups.items() if set(members) == set(names)), None)

    def has_expert(self, task: str) -> bool:
        """
        :param task: A task
        :return: Whether :meth:`expert_action` knows what to do in it
        """
        return False

    def expert_action(self, env: gym.Env) -> NDArray[Any]:
        """
        :param env: An environment of this suite in use, wrapped or not
        :return: What the expert does in its current state: a primitive action within the bounds of the simulation's
        """
        action: NDArray[Any] = env.unwrapped.expert_action()  # type: ignore[attr-defined]
        return action

    def wrap(self, env: gym.Env, **wrapping: Any) -> gym.Env:
        """
        Put around a simulation, which may itself be wrapped already, what stands between it and a policy.

        :param env: What :meth:`make_simulation` made
        :param wrapping: Settings, see :class:`WrappingSettings`
        :return: The environment that a policy sees
        """
        settings = self._wrapping(wrapping)
        env = ChunkedActionWrapper(env, settings.chunk_size, settings.n_action_steps, settings.gamma)
        env = self.add_pictures(env, settings)  # outside of the chunks: one rendering a chunk
        return InstructionObservation(env, settings.max_instruction_bytes)

    def add_pictures(self, env: gym.Env, settings: WrappingSettings) -> gym.Env:
        """
        :param env: An environment of chunks
        :param settings: Of its wrapping
        :return: The same with pictures in its observation
        """
        return env if settings.cameras is None else CameraObservation(env, settings.cameras, settings.quality)

    def make_env(self, tasks: str | Sequence[str], *, render_mode: str | None = None, **settings: Any) -> gym.Env:
        """
        Tasks as a vision-language-action policy sees them: see :func:`make_vla_env`.

        :param tasks: Some tasks, see :meth:`resolve_tasks`
        :param render_mode: ``None``, ``"rgb_array"`` or ``"rgb_array_list"``
        :param settings: Of simulation and wrapping
        :return: The environment
        :raises TypeError: If a setting is unknown or of another type
        :raises ValueError: If an argument is not one of those allowed
        """
        check_choice("render_mode", render_mode, _RENDER_MODES)
        simulation, wrapping = self.split_settings(settings)
        env = self.make_simulation(tasks, render_mode=render_mode and "rgb_array", **simulation)
        # How it was made, as gymnasium.make notes it, too
        wrapped = {field.name: getattr(self._wrapping(wrapping), field.name) for field in fields(WrappingSettings)}
        suite = self.address if is_registered(self) else self
        kwargs = {"tasks": tasks, "suite": suite, **wrapped, **simulation, "render_mode": render_mode}
        env.spec = EnvSpec("VLA/tasks", entry_point="sb3_vla_envs.make:make_vla_env", kwargs=kwargs)
        if render_mode == "rgb_array_list":
            env = RenderCollection(env)
        return self.wrap(env, **wrapping)

    def split_settings(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Sort settings, and check them.

        :param settings: Of simulation and wrapping, by name
        :return: Those of the simulation, those of the wrapping
        :raises TypeError: If one is unknown or of another type
        :raises ValueError: If one is not one of those allowed
        """
        known = self._settings()
        unknown = [name for name in settings if name not in known]
        if unknown:
            matches = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, matches))}?" if matches else f"there are {', '.join(known)}"
            raise TypeError(f"The suite {self.name!r} has no setting {unknown[0]!r}; {hint}")
        wrapping_names = {field.name for field in fields(WrappingSettings)}
        simulation = {name: value for name, value in settings.items() if name not in wrapping_names}
        wrapping = {name: value for name, value in settings.items() if name in wrapping_names}
        self.simulation(**simulation)
        self._wrapping(wrapping)
        return simulation, wrapping

    def acting_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """
        :param settings: Of simulation and wrapping, by name
        :return: Those that matter to a model in use; not the discount, a critic's inputs or the order of episodes, say
        """
        known = self._settings()
        return {name: value for name, value in settings.items() if not known[name].metadata.get("training_only", False)}

    def _settings(self) -> dict[str, Field[Any]]:
        """All settings by name."""
        return {field.name: field for field in (*fields(self.simulation), *fields(WrappingSettings))}

    def _wrapping(self, wrapping: Mapping[str, Any]) -> WrappingSettings:
        """The settings over the suite's own; no cameras means the suite's."""
        given = {name: value for name, value in wrapping.items() if name != "cameras" or value is not None}
        return replace(self.wrapping, **given)

    def __repr__(self) -> str:
        return f"<suite {self.address!r}, {len(self.tasks)} tasks>"


_SUITES: dict[str, Suite] = {}


def register_suite(suite: Suite) -> None:
    """
    Let :func:`get_suite` and :func:`find_suite` know a suite. One of the same name is replaced.

    :param suite: The suite
    :raises TypeError: If it is none
    :raises ValueError: If its name holds a colon or a comma, or is empty
    """
    if not isinstance(suite, Suite):
        raise TypeError(f"register_suite takes a Suite, such as a GymSuite, got {suite!r} of type {type(suite).__name__}")
    if not suite.name or set(suite.name) & set(":,"):
        raise ValueError(f"A suite's name must not be empty and hold no colon or comma, got {suite.name!r}")
    _SUITES[suite.name] = suite


def registered_suites() -> tuple[Suite, ...]:
    """
    :return: All suites that are registered
    """
    return tuple(_SUITES.values())


def is_registered(suite: Suite) -> bool:
    """
    :param suite: A suite
    :return: Whether it is the one that :func:`get_suite` gives by its name
    """
    return _SUITES.get(suite.name) is suite


def get_suite(name: str) -> Suite:
    """
    :param name: Name of a suite, or ``"module:name"`` for one that importing the module registers
    :return: The suite
    :raises TypeError: If it is no name
    :raises ValueError: If there is no such module or suite
    """
    if not isinstance(name, str):
        raise TypeError(f"suite must be the name of one, got {name!r:.200}")
    module, _, suite_name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module.split(".")[0] and error.name != module:
                raise
            raise ValueError(
                f"There is no module {module!r}, which {name!r} says registers the suite: run from its folder with "
                "`python -m`, or put the folder on PYTHONPATH"
            ) from error
    if suite_name not in _SUITES:
        raise ValueError(
            f"There is no suite {suite_name!r}, only {', '.join(map(repr, _SUITES))}; for one of your own, which importing a "
            "module registers, give 'module:name'"
        )
    suite = _SUITES[suite_name]
    if module:
        suite.module = module
    return suite


def check_suite_in_file(name: str, file: str, given: str | Suite | None = None) -> None:
    """
    See that nothing is imported because a file says so.

    :param name: Name of a suite, as :func:`get_suite` takes it, in a file
    :param file: The file
    :param given: What the user has said himself
    :raises ValueError: If the name says a module that is not imported yet, and the user does not say the same
    """
    module = name.rpartition(":")[0]
    if module and name != given and module not in sys.modules:
        raise ValueError(
            f"{file!r} names the suite {name!r}, for which the module {module!r} would run: if you trust it, name the suite "
            f"yourself, too: --suite {name}, in Python suite={name!r}"
        )


def find_suite(tasks: str | Sequence[str], suite: str | Suite | None = None) -> Suite:
    """
    :param tasks: Some tasks or groups, see :meth:`Suite.resolve_tasks`
    :param suite: The suite or its name, if known
    :return: That suite, or the one among those registered that has all these tasks
    :raises TypeError: If it is neither a suite nor a name, or the tasks are no names
    :raises ValueError: If there is none, or more than one
    """
    if isinstance(suite, Suite):
        return suite
    if suite is not None:
        return get_suite(suite)
    names = _names(tasks)
    known = {name: [suite for suite in _SUITES.values() if name in (*suite.groups, *suite.tasks)] for name in names}
    for name, suites in known.items():
        if not suites:
            raise ValueError(_unknown_task(name, _SUITES.values()))
    fitting = [suite for suite in _SUITES.values() if all(suite in suites for suites in known.values())]
    if len(fitting) > 1:
        raise ValueError(f"More than one suite has {', '.join(names)}: say which, suite={_or(s.name for s in fitting)}")
    if not fitting:
        owners = ", ".join(f"{name} ({_or(suite.name for suite in suites)})" for name, suites in known.items())
        raise ValueError(f"No suite has all of these tasks together: {owners}. Name tasks of one suite")
    return fitting[0]


def resolve_tasks(tasks: str | Sequence[str], suite: str | Suite | None = None) -> tuple[str, ...]:
    """
    Turn any way of naming tasks into a tuple of task names, without duplicates and in the order given.

    :param tasks: A task (``"window-open-v3"``), a group (``"MT10"``), several of them separated by commas, or a sequence of
        such names
    :param suite: The suite or its name; by default the one that has them
    :return: The task names
    :raises TypeError: If ``tasks`` is neither a string nor a sequence of strings
    :raises ValueError: If there is no task, or an unknown one
    """
    return find_suite(tasks, suite).resolve_tasks(tasks)


def _names(tasks: str | Sequence[str]) -> list[str]:
    """The names of tasks and groups, one by one."""
    names: list[str] = []
    if not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a name or a sequence of names, got {tasks!r:.200}")
    for entry in [tasks] if isinstance(tasks, str) else tasks:
        if not isinstance(entry, str):
            raise TypeError(f"tasks must be named by strings, got {entry!r} of type {type(entry).__name__}")
        names.extend(name.strip() for name in entry.split(",") if name.strip())
    if not names:
        example = next(iter(_SUITES.values())).default_tasks[0]
        raise ValueError(f"No task given (got {tasks!r}): name at least one, for example {example!r}")
    return names


def _unknown_task(name: str, suites: Iterable[Suite]) -> str:
    suites = list(suites)
    matches = difflib.get_close_matches(name, [known for s in suites for known in (*s.groups, *s.tasks)], n=3, cutoff=0.5)
    hint = f"did you mean {_or(matches)}? " if matches else ""
    there_are = "; ".join(
        f"the suite {s.name!r} has {', '.join([f'{len(s.tasks)} tasks such as {s.tasks[0]!r}', *map(repr, s.groups)])}"
        for s in suites
    )
    return f"Unknown task {name!r}; {hint}{there_are[0].upper()}{there_are[1:]}"


def _or(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))

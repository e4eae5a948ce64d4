"""The configuration of a run: the defaults, a suite's over them, a user's file over both, command-line arguments over all."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch as th
import yaml

from sb3_vla_envs import collect_demonstrations, read_lerobot
from sb3_vla_envs.argument_checks import Limits, check_choice
from sb3_vla_envs.suite import check_suite_in_file, find_suite, get_suite
from sb3_vla_envs.task_env import ALL_SPLITS, SimulationSettings
from sb3_vla_envs.wrapping import WrappingSettings

from ..common.schedule_text import with_schedule
from ..evaluation.evaluate import evaluate_on_tasks
from ..imitation.sft import SFT_LIMITS, fine_tune
from ..policies.heads import HEADS
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .settings import (
    arguments_of,
    check_section,
    check_unchanged,
    check_value,
    deep_update,
    make_section,
    plain,
    setting,
)

# Arguments of several functions that the configuration says once, above its sections or in the section `wrapping`
_SAID_ONCE = ("suite", "tasks", "seed", "device", "gamma", "chunk_size", "n_action_steps")

PolicySettings: Any = arguments_of(VLAPolicy, without=(*_SAID_ONCE, "use_sde", "normalized_keys"))
SFTSettings: Any = arguments_of(
    fine_tune,
    without=(*_SAID_ONCE, "auxiliary_episodes", "checkpoint"),
    limits=SFT_LIMITS,
    changes_on_resume=("progress", "checkpoint_every"),
)
_DemosArguments: Any = arguments_of(collect_demonstrations, without=_SAID_ONCE, at_least={"action_noise": 0, "n_workers": 1})
_LeRobotArguments: Any = arguments_of(
    read_lerobot,
    without=("instructions", "every_step"),
    limits={"fps": Limits(above=0)},
)
EvalSettings: Any = arguments_of(
    evaluate_on_tasks,
    without=(*_SAID_ONCE, "ranks"),
    at_least={"n_goals": 1, "n_envs": 1},
    limits={"split": Limits(choices=ALL_SPLITS)},
)
_PPOArguments: Any = arguments_of(
    PPOSelfBC,
    without=(*_SAID_ONCE, "tensorboard_log"),
    at_least={"bc_weight": 0, "stats_window_size": 1},
    # One sample alone has no standardised advantage
    limits={**PPOSelfBC.argument_limits, "batch_size": Limits(at_least=2)},
)


@dataclass(frozen=True, kw_only=True)
class DemosSettings(_DemosArguments):
    """
    Arguments of :func:`sb3_vla_envs.collect_demonstrations`.

    :param n_per_task: How many successful episodes of each task
    """

    n_per_task: int = setting(at_least=1)


@dataclass(frozen=True, kw_only=True)
class LeRobotSettings(_LeRobotArguments):
    """
    Arguments of :func:`sb3_vla_envs.read_lerobot`; its ``tasks`` are beside the suite's own instructions, and ``fps`` is by
    default that of the environment. And one of :func:`sb3_vla_envs.write_lerobot`:

    :param use_videos: Whether pictures become videos
    """

    use_videos: bool = setting(default=True)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(_PPOArguments):
    """
    Arguments of :class:`~sb3_vla.PPOSelfBC`, and how long it trains. A learning rate or clip range ``lin_7e-5`` falls linearly
    from that number to 0, as in the zoo, and ``noise_scale: lin_1_0.3`` from the first number to the second.

    :param total_timesteps: Chunks to train for
    :param n_envs: Number of environments, of each process where several train one model
    :param task_weights: For some of the tasks, how many environments they get for each one of the others
    :param vec_env: Where the environments run: ``"processes"`` of this machine, or ``"ray"``, the nodes of the Ray cluster
        that the environment variable ``RAY_ADDRESS`` names
    :param horizon: Primitive steps after which an episode of the training is truncated, by default ``simulation.horizon``,
        which is that of evaluations: a short one plays more episodes of what does not succeed yet
    :param checkpoint_every: Timesteps between two checkpoints
    :param validate_every: Timesteps between two evaluations on goals for that alone, the best of which says which model is
        kept as ``best_model.zip``; by default there are none
    :param n_validation_goals: Goals of each task in such an evaluation
    """

    total_timesteps: int = setting(at_least=1, changes_on_resume=True)
    n_envs: int = setting(at_least=1)
    task_weights: Mapping[str, int] | None = setting(default=None)
    vec_env: str = setting(limits=Limits(choices=("processes", "ray")), changes_on_resume=True, default="processes")
    horizon: int | None = setting(at_least=1, default=None)
    checkpoint_every: int = setting(at_least=1, changes_on_resume=True)
    validate_every: int | None = setting(at_least=1, changes_on_resume=True, default=None)
    n_validation_goals: int = setting(at_least=1, default=10)

    def model_arguments(self) -> dict[str, Any]:
        """:return: Those of PPOSelfBC"""
        return {each.name: with_schedule(getattr(self, each.name)) for each in fields(_PPOArguments)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    Everything that determines a run. See ``sb3_vla/runs/defaults.yml``.

    :param suite: Name of the suite, see :func:`sb3_vla_envs.suite.get_suite`
    :param tasks: Names of its tasks
    :param seed: Seed of everything random
    :param device: Where the model learns: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param simulation: How the tasks are played
    :param wrapping: What stands between the simulation and the policy
    :param policy: Arguments of :class:`~sb3_vla.VLAPolicy`
    :param demos: How demonstrations are collected
    :param lerobot: How LeRobot datasets are read and written
    :param sft: Arguments of :func:`~sb3_vla.fine_tune`
    :param train: How PPOSelfBC post-trains
    :param eval: Arguments of :func:`~sb3_vla.evaluate_on_tasks`
    :raises ValueError: If a setting would break what a run promises
    """

    suite: str
    tasks: tuple[str, ...]
    seed: int = setting(at_least=0)
    device: str = setting(changes_on_resume=True)
    simulation: SimulationSettings
    wrapping: WrappingSettings
    policy: PolicySettings
    demos: DemosSettings
    lerobot: LeRobotSettings
    sft: SFTSettings
    train: TrainSettings
    eval: EvalSettings = field(metadata={"changes_on_resume": True})

    def __post_init__(self) -> None:
        _check_device(self.device)
        check_section("train.policy_kwargs", PolicySettings, self.train.policy_kwargs or {})
        head = HEADS.get(self.policy.head)
        if head is not None:
            check_choice("sft.loss", self.sft.loss, ("auto", *head.imitation_losses))
        if self.simulation.goal_split != "train":
            raise ValueError(
                f"simulation.goal_split must be 'train', got {self.simulation.goal_split!r}: a run trains on those goals, and "
                "is evaluated on those of eval.split"
            )

    def policy_in_training(self) -> dict[str, Any]:
        """:return: Arguments of the policy that becomes of :attr:`policy` where :attr:`train` goes on from it"""
        return deep_update(vars(self.policy), self.train.policy_kwargs or {})

    def env_settings(self) -> dict[str, Any]:
        """:return: Settings of :func:`sb3_vla_envs.make_vla_env`, without those left to it by ``None``"""
        settings = {**vars(self.simulation), **vars(self.wrapping)}
        return {name: value for name, value in settings.items() if value is not None}

    def training_env_settings(self) -> dict[str, Any]:
        """:return: The same in training"""
        own = {} if self.train.horizon is None else {"horizon": self.train.horizon}
        return {**self.env_settings(), **own}

    def acting_settings(self) -> dict[str, Any]:
        """:return: Those of them that matter to a model in use; an evaluation has a split and a number of goals of its own"""
        settings = get_suite(self.suite).acting_settings(self.env_settings())
        return {name: value for name, value in settings.items() if name not in ("goal_split", "n_goals")}

    def to_dict(self) -> dict[str, Any]:
        """:return: The same in plain numbers, strings, lists and dictionaries, which :func:`load_config` reads again"""
        return plain(self)

    def check_resumes(self, began: "Config") -> None:
        """
        :param began: Configuration that a run began with, which is to go on with this one
        :raises ValueError: If they differ in what a run can't change on its way
        """
        check_unchanged(self, began)


def _check_device(name: str) -> None:
    """
    Of the name alone: a configuration may be read on another machine than that of its run.

    :param name: The setting ``device``
    :raises ValueError: If PyTorch knows no such device
    """
    try:
        th.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(
            f"device must be 'auto' or one of PyTorch's such as 'cpu', 'cuda' or 'cuda:0', got {name!r}"
        ) from error


_FIELDS = {each.name: each for each in fields(Config)}
# The sections that are the same in every suite
_SECTIONS = {
    "policy": PolicySettings,
    "demos": DemosSettings,
    "lerobot": LeRobotSettings,
    "sft": SFTSettings,
    "train": TrainSettings,
    "eval": EvalSettings,
}
# What may be said of each setting above the sections, and of each section as a whole
_TYPES: dict[str, Any] = {"suite": str, "tasks": str | Sequence[str], "seed": int, "device": str}
_TYPES |= dict.fromkeys(("simulation", "wrapping", *_SECTIONS), Mapping)


def load_config(
    path: str | os.PathLike[str] | None = None,
    suite: str | None = None,
    tasks: str | Sequence[str] | None = None,
    **overrides: Any,
) -> Config:
    """
    :param path: YAML file with settings to change, e.g. the ``config.yaml`` of a run
    :param suite: Name of the suite; by default that of the file, or else the one that has the tasks
    :param tasks: Task, group of tasks, comma-separated names or a sequence of them; by default those of the file, or else the
        suite's default tasks
    :param overrides: Settings that go over those of the file, sections as dictionaries; ``None`` counts as not given
    :return: The configuration
    :raises ValueError: If the file is no YAML mapping, or there is no such setting, or it must not have that value, or the
        file names a suite by a module that would have to be imported, and ``suite`` does not
    """
    arguments = {"suite": suite, "tasks": tasks, **overrides}
    layers = [("", {key: _given(value) for key, value in arguments.items()})]
    if path is not None:
        layers.insert(0, (f"{str(path)!r}: ", _read(path)))
    for source, layer in layers:
        with _named_after(source):
            _check_names(layer)
    if path is not None and layers[0][1].get("suite") is not None:
        check_suite_in_file(layers[0][1]["suite"], str(path), suite)
    chosen = {key: layer[key] for _, layer in layers for key in ("suite", "tasks") if layer.get(key) is not None}
    settings = _packaged("defaults.yml")
    if "tasks" in chosen:
        found = find_suite(chosen["tasks"], chosen.get("suite"))
    else:
        found = get_suite(chosen.get("suite", settings["suite"]))
    sections = {**_SECTIONS, "simulation": found.simulation, "wrapping": type(found.wrapping)}
    settings |= {"suite": found.address, "tasks": found.default_tasks}
    settings["wrapping"] = {**vars(found.wrapping), **settings["wrapping"]}
    for source, layer in [("", _packaged(f"defaults_{found.name}.yml")), *layers]:
        with _named_after(source):
            for name, section in sections.items():
                check_section(name, section, layer.get(name) or {})
        settings = _merge(settings, layer)
    settings["tasks"] = tuple(found.resolve_tasks(settings["tasks"]))
    return Config(**settings | {name: make_section(name, section, settings[name]) for name, section in sections.items()})


def load_run_config(path: str | os.PathLike[str], **overrides: Any) -> Config:
    """
    :param path: File that a run wrote, with every setting
    :param overrides: See :func:`load_config`
    :return: The configuration
    :raises ValueError: If it can't be loaded, or lacks settings: half a file can be whole YAML
    """
    settings = _read(path)
    missing = [name for name in _TYPES if name not in settings]
    if missing:
        raise ValueError(
            f"{str(path)!r} lacks {', '.join(missing)}, and a run writes all of its settings: it may be truncated. A run's "
            "config.yaml and began.yaml are alike, but for what you have changed since"
        )
    return load_config(path, **overrides)


class _Loader(yaml.SafeLoader):
    """Reads ``1e-4`` as a number, as YAML 1.2 does; PyYAML's own loaders want ``1.0e-4``."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _packaged(name: str) -> dict[str, Any]:
    """
    :param name: Of a file beside this one
    :return: Its content, nothing if there is no such file
    """
    file = resources.files(__package__).joinpath(name)
    return yaml.load(file.read_text(encoding="utf-8"), _Loader) if file.is_file() else {}


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    :param path: YAML file with settings, or what a run wrote: its command, and its settings under the key ``config``
    :return: The settings
    :raises ValueError: If it is no YAML mapping
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a YAML file: {error}") from error
    if isinstance(content, dict) and "config" in content and content.keys() <= {"command", "config"}:
        content = content["config"]
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a mapping with some of {', '.join(_TYPES)}")
    return content


def _given(value: Any) -> Any:
    """:return: The value; of a section, the settings that are not ``None``"""
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, Mapping) else value


@contextmanager
def _named_after(source: str) -> Iterator[None]:
    """
    :param source: What errors shall begin with
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}{error}") from error


def _check_names(settings: Mapping[str, Any]) -> None:
    """
    :param settings: Some settings; an empty one changes nothing
    :raises ValueError: If there is no such setting or section, or one of the settings above the sections must not be so
    """
    for name, value in settings.items():
        if name not in _TYPES:
            raise ValueError(f"there is no setting {name!r}; there are {', '.join(_TYPES)}")
        if value is not None:
            check_value(name, value, _TYPES[name], _FIELDS[name].metadata.get("limits"))


def _merge(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: Nested mappings
    :param changes: What replaces some of their values; an empty section or setting above the sections changes nothing, and
        another ``head``, say, leaves nothing of ``head_kwargs``
    :return: New nested dictionaries
    """
    given = {key: value for key, value in changes.items() if value is not None}
    for name, section in given.items():
        if isinstance(section, Mapping):  # the arguments of a head are not those of another
            old = settings[name]
            other = [f"{key}_kwargs" for key, value in section.items() if key in old and value != old[key]]
            settings = {**settings, name: {**old, **{key: None for key in other if key in old}}}
    return deep_update(settings, given)

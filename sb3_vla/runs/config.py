"""One configuration for all commands: the defaults, a user's file over them, command-line arguments over both."""

import copy
import inspect
import os
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sb3_vla_envs import MetaWorldEnv, collect_demonstrations, make_vla_env

from ..evaluation.evaluation import evaluate_on_metaworld
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..imitation.sft import fine_tune
from ..policies.vla_policy import VLAPolicy

# What takes the settings of each section
_TAKERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "env": (make_vla_env, MetaWorldEnv),
    "policy": (VLAPolicy,),
    "demos": (collect_demonstrations,),
    "sft": (fine_tune,),
    "train": (PPOSelfBC,),
    "eval": (evaluate_on_metaworld,),
}
# Arguments of these that a section must not give: others give them, or a run depends on their being what they are
_NOT_SETTINGS: dict[str, set[str]] = {
    "env": {"tasks", "goal_split", "render_mode"},
    "policy": {"observation_space", "action_space", "lr_schedule", "use_sde"},
    "demos": {"tasks", "seed"},
    "sft": {"policy", "demonstrations", "seed"},
    "train": {"policy", "env", "gamma", "tensorboard_log", "seed", "device", "_init_setup_model"},
    "eval": {"model", "tasks", "vec_env_cls", "seed", "horizon", "goal_seed", "n_action_steps"},
}


class _Loader(yaml.SafeLoader):
    """Reads ``1e-4`` as a number, as YAML 1.2 does; PyYAML's own loaders want ``1.0e-4``."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def load_config(path: str | os.PathLike[str] | None = None, **overrides: Any) -> dict[str, Any]:
    """
    :param path: YAML file with some of the keys of ``sb3_vla/defaults.yml``, or ``None``; a section may also hold any other
        argument of what it configures
    :param overrides: Values that go over those of the file, sections as dictionaries; ``None`` counts as not given
    :return: The configuration
    :raises ValueError: if the file is no YAML mapping, or has a section or a key that does not exist
    """
    config = yaml.safe_load(resources.files(__package__).joinpath("defaults.yml").read_text(encoding="utf-8"))
    if path is not None:
        # A run's own config.yaml can be given again
        content = _read(path, sorted(config))
        config = _merge(config, content.get("config", content), str(path))
    given = {
        key: {name: item for name, item in value.items() if item is not None} if isinstance(value, Mapping) else value
        for key, value in overrides.items()
    }
    return _merge(config, given, "the arguments")


def _read(path: str | os.PathLike[str], keys: list[str]) -> dict[str, Any]:
    """
    :param path: YAML file
    :param keys: What it may hold, for the error message
    :return: Its content
    :raises ValueError: if it is no YAML mapping
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a YAML file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config", content), dict):
        raise ValueError(f"{str(path)!r} must hold a mapping with some of the keys {keys}")
    return content


def _merge(config: dict[str, Any], changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    """
    :param config: What there is
    :param changes: What replaces some of it; mappings are merged; an empty section changes nothing
    :param source: Where the changes come from, for the error message
    :return: A new configuration
    :raises ValueError: if there is no such section or setting, or a section is not a mapping
    """
    config = copy.deepcopy(config)
    for key, value in changes.items():
        if key not in config:
            raise ValueError(f"{source}: there is no setting {key!r}; there are {sorted(config)}")
        if value is None:
            continue
        if isinstance(config[key], dict):
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {key!r} must be a mapping, got {value!r}")
            allowed = _settings(key) | set(config[key])
            for name in value:
                if name not in allowed:
                    raise ValueError(f"{source}: section {key!r} has no setting {name!r}; it takes {sorted(allowed)}")
            config[key] = _deep_update(config[key], value)
        else:
            config[key] = copy.deepcopy(value)
    return config


def _deep_update(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: Nested mappings
    :param changes: What replaces some of their values
    :return: New nested dictionaries
    """
    merged = dict(settings)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _deep_update(old, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged


def _settings(section: str) -> set[str]:
    """
    :param section: Name of a section
    :return: The arguments by name of what it configures
    """
    parameters = [p for taker in _TAKERS[section] for p in inspect.signature(taker).parameters.values()]
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - _NOT_SETTINGS[section]

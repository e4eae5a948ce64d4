"""One configuration for all commands: the defaults, a user's file over them, command-line arguments over both."""

import copy
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


def load_config(path: str | os.PathLike[str] | None = None, **overrides: Any) -> dict[str, Any]:
    """
    :param path: YAML file with some of the keys of ``sb3_vla/defaults.yml``, or ``None``
    :param overrides: Values that go over those of the file, sections as dictionaries; ``None`` counts as not given
    :return: The configuration
    :raises ValueError: if the file is no YAML mapping, or has a section or a key that does not exist
    """
    config = yaml.safe_load(resources.files(__package__).joinpath("defaults.yml").read_text(encoding="utf-8"))
    if path is not None:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{str(path)!r} is not a YAML file: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{str(path)!r} must hold a mapping with some of the keys {sorted(config)}")
        # A run's own config.yaml can be given again
        config = _merge(config, content.get("config", content), str(path))
    return _merge(config, overrides, "the arguments")


def _merge(config: dict[str, Any], changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    """
    :param config: What there is
    :param changes: What replaces some of it; sections are merged one level deep
    :param source: Where the changes come from, for the error message
    :return: A new configuration
    :raises ValueError: if there is no such section, or a section is not a mapping
    """
    config = copy.deepcopy(config)
    for key, value in changes.items():
        if key not in config:
            raise ValueError(f"{source}: there is no setting {key!r}; there are {sorted(config)}")
        if isinstance(config[key], dict):
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {key!r} must be a mapping, got {value!r}")
            config[key] |= {name: copy.deepcopy(item) for name, item in value.items() if item is not None}
        elif value is not None:
            config[key] = copy.deepcopy(value)
    return config

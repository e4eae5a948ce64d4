"""What the user gave to a command: its configuration, and where it shall write."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from sb3_vla_envs.durable_files import check_writable, sweep

from ...common.folder_lock import locked
from ...common.run_folder import RunFolder
from ..checks import check_acting
from ..config import Config, load_config, load_run_config
from ..models import load_model


def load(arguments: Namespace, **sections: dict[str, Any]) -> Config:
    """
    :param arguments: Of a command that has a configuration
    :param sections: Settings given as arguments, by section
    :return: The configuration
    """
    settings: dict[str, Any] = {"seed": arguments.seed, "device": arguments.device, **sections}
    return load_config(arguments.config, arguments.suite, arguments.tasks, **settings)


def create_run(arguments: Namespace, config: Config) -> RunFolder:
    """
    :param arguments: Of a command that begins a run, which locks its folder until it ends
    :param config: Its configuration
    :return: The run's folder
    """
    arguments.held.enter_context(locked(arguments.out))
    folder = RunFolder.create(arguments.out, arguments.command_line, config.to_dict())
    print(f"Writing to {folder.path}")
    return folder


def open_run(arguments: Namespace) -> tuple[RunFolder, Config]:
    """
    :param arguments: Of a command that goes on with a run, which locks its folder until it ends
    :return: The run's folder and configuration
    """
    folder = RunFolder.open(arguments.resume)
    arguments.held.enter_context(locked(folder.path))
    sweep(folder.path)
    return folder, load_run_config(folder.config_file, device=arguments.device)


def load_to_act(arguments: Namespace, **sections: dict[str, Any]) -> tuple[Config, Any]:
    """
    :param arguments: Of a command that takes a model
    :param sections: Settings given as arguments
    :return: Configuration, and the model, which fits it
    """
    own_config = Path(arguments.model).with_name("config.yaml")
    if arguments.config is None and own_config.is_file():
        arguments.config = own_config
    config = load(arguments, **sections)
    model = load_model(arguments.model, config.device, arguments.trust)
    check_acting(config, model)
    return config, model


def check_new_file(path: str | None) -> None:
    """
    See that a file can be written, before the work that makes it.

    :param path: File to write, or ``None``
    :raises FileExistsError: If there is one
    :raises OSError: If it can't be written there
    """
    if path is None:
        return
    if Path(path).exists():
        raise FileExistsError(f"{path!r} exists already: give another file")
    check_writable(Path(path).parent)

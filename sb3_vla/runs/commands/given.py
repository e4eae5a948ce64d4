"""What the user gave to a command: its configuration, and where it shall write."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import get_device

from sb3_vla_envs.durable_files import check_writable, sweep

from ...common.folder_lock import locked
from ...common.ranks import Ranks, check_alike, join_ranks
from ...common.run_folder import RunFolder
from ...common.trusted_names import trust_by_name
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
    folder = RunFolder(arguments.out)

    def begin() -> None:
        arguments.held.enter_context(locked(arguments.out))
        RunFolder.create(arguments.out, arguments.command_line, config.to_dict())

    meet(config).first_does(begin)
    print(f"Writing to {folder.path}")
    return folder


def open_run(arguments: Namespace) -> tuple[RunFolder, Config]:
    """
    :param arguments: Of a command that goes on with a run, which locks its folder until it ends
    :return: The run's folder and configuration
    """
    folder = RunFolder.open(arguments.resume)
    config = load_run_config(folder.config_file, suite=arguments.suite, device=arguments.device)

    def begin() -> None:
        arguments.held.enter_context(locked(folder.path))
        sweep(folder.path)

    meet(config).first_does(begin)
    return folder, config


def meet(config: Config) -> Ranks:
    """
    :param config: Configuration
    :return: The ranks, all of which have it
    :raises ValueError: If another one has another
    :raises ImportError: If there are several, but Accelerate is not installed
    """
    ranks = join_ranks(get_device(config.device))
    settings = config.to_dict()
    sections = {name: value for name, value in settings.items() if isinstance(value, dict)}
    flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    check_alike(ranks, "configuration", {**{name: settings[name] for name in settings.keys() - sections.keys()}, **flat})
    return ranks


def trusts_pickle(arguments: Namespace) -> bool:
    """
    :param arguments: Of a command that loads a model
    :return: Whether it may be a pickled one; the classes named beside that are trusted from now on
    """
    for name in arguments.trust:
        if name != "pickle":
            trust_by_name(name)
    return "pickle" in arguments.trust


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
    model = load_model(arguments.model, config.device, trusts_pickle(arguments))
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

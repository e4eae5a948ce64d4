"""``sb3-vla sft``: fine-tune a new policy, or go on with it."""

from argparse import Namespace

from sb3_vla_envs import Demonstration, load_demonstrations

from ..checks import check_resuming_sft, check_training
from ..config import Config
from ..pipeline import run_sft
from . import Work
from .given import create_run, load, open_run
from .resuming import going_on, is_resumed

# What a run that goes on needs once more
_GIVEN_AGAIN = ("demos", "auxiliary")


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    return _resume(arguments) if is_resumed(arguments, _GIVEN_AGAIN) else _fine_tune_anew(arguments)


def _fine_tune_anew(arguments: Namespace) -> Work:
    config = load(arguments, sft={"n_epochs": arguments.epochs})
    demonstrations, episodes = _read(arguments, config)
    folder = create_run(arguments, config)

    def work() -> None:
        with going_on(arguments, folder, _GIVEN_AGAIN):
            run_sft(config, demonstrations, folder, episodes)
        print(f"Wrote {folder.sft_model}")

    return work


def _resume(arguments: Namespace) -> Work:
    folder, config = open_run(arguments)
    demonstrations, episodes = _read(arguments, config)
    check_resuming_sft(config, folder, demonstrations, episodes)

    def work() -> None:
        if folder.sft_model.exists():
            folder.sft_checkpoint.unlink(missing_ok=True)
            print(f"{folder.sft_model} is there already: this fine-tuning is complete")
            return
        print(f"Going on from {folder.sft_checkpoint}" if folder.sft_checkpoint.exists() else "Beginning anew")
        with going_on(arguments, folder, _GIVEN_AGAIN):
            run_sft(config, demonstrations, folder, episodes)
        print(f"Wrote {folder.sft_model}")

    return work


def _read(arguments: Namespace, config: Config) -> tuple[list[Demonstration], list[Demonstration]]:
    """
    :param arguments: Of the command
    :param config: Configuration
    :return: Demonstrations, and episodes that teach the auxiliary targets, too
    :raises ValueError: If they don't fit the configuration
    """
    demonstrations = load_demonstrations(arguments.demos)
    episodes = load_demonstrations(arguments.auxiliary) if arguments.auxiliary else []
    if episodes and not config.sft.auxiliary_targets:
        raise ValueError("--auxiliary teaches sft.auxiliary_targets: name some, e.g. {privileged: [4, 5, 6]}")
    check_training(config, demonstrations=demonstrations)
    return demonstrations, episodes

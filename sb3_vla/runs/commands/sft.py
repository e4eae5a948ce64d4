"""``sb3-vla sft``: fine-tune a new policy."""

from argparse import Namespace

from sb3_vla_envs import load_demonstrations

from ..checks import check_training
from ..pipeline import run_sft
from . import Work
from .given import create_run, load


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    config = load(arguments, sft={"n_epochs": arguments.epochs})
    demonstrations = load_demonstrations(arguments.demos)
    episodes = load_demonstrations(arguments.auxiliary) if arguments.auxiliary else []
    if episodes and not config.sft.auxiliary_targets:
        raise ValueError("--auxiliary teaches sft.auxiliary_targets: name some, e.g. {privileged: [4, 5, 6]}")
    check_training(config, demonstrations=demonstrations)
    folder = create_run(arguments, config)

    def work() -> None:
        run_sft(config, demonstrations, folder.sft_model, episodes)
        print(f"Wrote {folder.sft_model}")

    return work

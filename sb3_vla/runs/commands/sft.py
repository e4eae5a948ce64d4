"""``sb3-vla sft``: fine-tune a new policy, or go on with it."""

from argparse import Namespace

from sb3_vla_envs import load_demonstrations

from ..checks import check_resuming_sft, check_training
from ..pipeline import run_sft
from . import Work
from .given import create_run, load, open_run
from .resuming import going_on, is_resumed


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    given_again = ("demos", "auxiliary")
    resumed = is_resumed(arguments, given_again)
    if resumed:
        folder, config = open_run(arguments)
    else:
        config = load(arguments, sft={"n_epochs": arguments.epochs})
    demonstrations = load_demonstrations(arguments.demos)
    episodes = load_demonstrations(arguments.auxiliary) if arguments.auxiliary else []
    if resumed:
        check_resuming_sft(config, folder, demonstrations, episodes)
    if episodes and not config.sft.auxiliary_targets:
        raise ValueError("--auxiliary teaches sft.auxiliary_targets: name some, e.g. {privileged: [4, 5, 6]}")
    check_training(config, demonstrations=demonstrations)
    if not resumed:
        folder = create_run(arguments, config)

    def work() -> None:
        if folder.sft_model.exists():
            folder.sft_checkpoint.unlink(missing_ok=True)
            print(f"{folder.sft_model} is there already: this fine-tuning is complete")
            return
        if folder.sft_checkpoint.exists():
            print(f"Going on from {folder.sft_checkpoint}")
        with going_on(arguments, folder, given_again):
            run_sft(config, demonstrations, folder, episodes)
        print(f"Wrote {folder.sft_model}")

    return work

"""``sb3-vla sft``: fine-tune a new policy, or go on with it."""

from argparse import Namespace

from sb3_vla_envs import load_demonstrations

from ...imitation.sft_checkpoint import WrongCheckpoint
from ..checks import check_resuming_sft, check_training
from ..pipeline import run_sft
from . import Failure, Work
from .given import create_run, load, open_run
from .resuming import going_on, is_resumed


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    given_again = ("demos", "auxiliary")
    if resumed := is_resumed(arguments, given_again):
        folder, config = open_run(arguments)
        check_resuming_sft(config, folder)
    else:
        config = load(arguments, sft={"n_epochs": arguments.epochs})
    demonstrations = load_demonstrations(arguments.demos)
    episodes = load_demonstrations(arguments.auxiliary) if arguments.auxiliary else []
    if episodes and not config.sft.auxiliary_targets:
        raise ValueError("--auxiliary teaches sft.auxiliary_targets: name some, e.g. {privileged: [4, 5, 6]}")
    check_training(config, demonstrations=demonstrations)
    if not resumed:
        folder = create_run(arguments, config)

    def work() -> None:
        if folder.sft_model.exists():
            print(f"{folder.sft_model} is there already: this fine-tuning is complete")
            return
        with going_on(arguments, folder, given_again):
            try:
                run_sft(config, demonstrations, folder, episodes)
            except WrongCheckpoint as error:
                raise Failure(str(error)) from error
        print(f"Wrote {folder.sft_model}")

    return work

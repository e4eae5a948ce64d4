"""``sb3-vla quickstart``: all stages of a run."""

from argparse import Namespace

from sb3_vla_envs import ExpertFailure

from ..checks import check_experts, check_quickstart_resuming, check_training
from ..quickstart import quickstart
from . import Failure, Work
from .given import create_run, load, open_run
from .resuming import going_on, is_resumed


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    if is_resumed(arguments):
        folder, config = open_run(arguments)
        check_quickstart_resuming(config, folder)
    else:
        config = load(arguments)
        check_experts(config)
        check_training(config, goes_on=True)
        folder = create_run(arguments, config)

    def work() -> None:
        with going_on(arguments, folder):
            try:
                quickstart(config, folder)
            except ExpertFailure as error:
                raise Failure(str(error)) from error
        print(f"\nModels, results.json, curves.png, comparison.png, gifs/ and a TensorBoard log are in {folder.path}")

    return work

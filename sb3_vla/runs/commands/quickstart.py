"""``sb3-vla quickstart``: all stages of a run."""

from argparse import Namespace

from ...common.run_folder import RunFolder
from ..checks import check_experts, check_resuming, check_training
from ..config import load_config
from ..quickstart import quickstart
from . import Work
from .given import create_run, load
from .resuming import going_on, is_resumed


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    if is_resumed(arguments):
        folder = RunFolder.open(arguments.resume)
        config = load_config(folder.config_file, device=arguments.device)
        if folder.has_checkpoints:
            check_resuming(config, folder)
        else:
            config.check_resumes(load_config(folder.began_file))
    else:
        config = load(arguments)
        check_experts(config)
        check_training(config)
        folder = create_run(arguments, config)

    def work() -> None:
        with going_on(arguments, folder):
            quickstart(config, folder)
        print(f"\nModels, results.json, curves.png, comparison.png, gifs/ and a TensorBoard log are in {folder.path}")

    return work

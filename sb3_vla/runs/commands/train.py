"""``sb3-vla train``: post-train a policy, or go on with it."""

from argparse import Namespace

from sb3_vla_envs import load_demonstrations

from ..checks import check_resuming, check_training
from ..models import load_model
from ..training import post_train, resume_training
from . import Work
from .given import create_run, load, meet, open_run, trusts_pickle
from .resuming import going_on, is_resumed


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    return _resume(arguments) if is_resumed(arguments) else _train_anew(arguments)


def _train_anew(arguments: Namespace) -> Work:
    config = load(arguments, train={"total_timesteps": arguments.timesteps})
    meet(config)
    demonstrations = load_demonstrations(arguments.demos) if arguments.demos else []
    trust_pickle = trusts_pickle(arguments)
    check_training(config, arguments.init, demonstrations, trust_pickle)
    folder = create_run(arguments, config)

    def work() -> None:
        with going_on(arguments, folder):
            post_train(config, folder, arguments.init, demonstrations, trust_pickle=trust_pickle)
        print(f"Wrote {folder.model} and {folder.curves}")

    return work


def _resume(arguments: Namespace) -> Work:
    trusts_pickle(arguments)
    folder, config = open_run(arguments)
    checkpoint = check_resuming(config, folder)
    load_model(checkpoint / "model.zip", config.device)  # whose classes may have to be trusted

    def work() -> None:
        print(f"Going on from {checkpoint}")
        with going_on(arguments, folder):
            resume_training(config, folder, checkpoint)
        print(f"Wrote {folder.model} and {folder.curves}")

    return work

"""``sb3-vla memory``: what post-training will take, before it begins."""

from argparse import Namespace

from ..memory import DEVICES, estimator_of, table
from . import Work
from .given import load


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    if arguments.cameras is not None and arguments.cameras < 1:
        raise ValueError(f"--cameras must be at least 1, got {arguments.cameras}")
    lora = None if arguments.lora_rank is None else {"r": arguments.lora_rank}
    train = {name: getattr(arguments, name) for name in ("n_envs", "batch_size", "micro_batch_size")}
    config = load(arguments, policy={"backbone": arguments.backbone, "head": arguments.head, "lora": lora}, train=train)
    estimator = estimator_of(config, arguments.cameras)

    def work() -> None:
        size = config.train.micro_batch_size
        if isinstance(size, int) and size < estimator.n_samples:
            print(f"{size} of {estimator.n_samples} samples of a minibatch and its demonstrations at a time:")
        else:
            size = None
            print(f"All {estimator.n_samples} samples of a minibatch and its demonstrations at once:")
        print(table(estimator.estimate(size)))
        sizes = {gb: estimator.largest_micro_batch(gb * 2**30) for gb in DEVICES}
        fitting = ", ".join(f"{n or 'not even 1'} in {gb} GiB" for gb, n in sizes.items())
        print(f"Samples at a time (train.micro_batch_size) that fit, with a tenth to spare: {fitting}")

    return work

"""``sb3-vla record``: film a model."""

from argparse import Namespace
from pathlib import Path

from sb3_vla_envs.durable_files import check_writable

from ...evaluation.gif import gif_paths
from ..checks import check_goals
from ..pipeline import record_model
from . import Work
from .given import load_to_act


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    if arguments.goal < 0:
        raise ValueError(f"--goal must be at least 0, got {arguments.goal}")
    config, model = load_to_act(arguments)
    check_goals(config, "test", arguments.goal + 1)
    prefix = Path(arguments.model).stem
    gif_paths(config.tasks, arguments.out, prefix, config.suite)
    check_writable(arguments.out)

    def work() -> None:
        paths = record_model(config, model, arguments.out, prefix, arguments.goal)
        print("Wrote " + ", ".join(str(path) for path in paths))

    return work

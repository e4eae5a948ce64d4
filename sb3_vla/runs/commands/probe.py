"""``sb3-vla probe``: what a model's features know."""

from argparse import Namespace

from sb3_vla_envs.suite import get_suite

from ..checks import check_experts, check_goals
from ..pipeline import probe_model
from . import Work
from .given import check_new_file, load_to_act


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    check_new_file(arguments.out)
    if arguments.episodes < 5:
        raise ValueError(f"--episodes must be at least 5, got {arguments.episodes}")
    config, model = load_to_act(arguments)
    check_experts(config)
    check_goals(config, config.eval.split, config.simulation.n_goals)
    if not get_suite(config.suite).privileged_parts:
        raise ValueError(f"the suite {config.suite!r} does not say what there is to be found (Suite.privileged_parts)")

    def work() -> None:
        result = probe_model(config, model, arguments.episodes)
        print(result.table())
        if arguments.out:
            result.save(arguments.out)

    return work

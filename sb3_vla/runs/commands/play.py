"""``sb3-vla play``: a model's own episodes."""

from argparse import Namespace

from ..checks import check_goals
from ..pipeline import collect_own_episodes
from . import Work
from .given import check_new_file, load_to_act


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    check_new_file(arguments.out)
    if arguments.n_per_task < 1:
        raise ValueError(f"--n-per-task must be at least 1, got {arguments.n_per_task}")
    config, model = load_to_act(arguments)
    check_goals(config, config.simulation.goal_split, arguments.n_per_task)

    def work() -> None:
        episodes = collect_own_episodes(config, model, arguments.out, arguments.n_per_task)
        print(f"Wrote {len(episodes)} episodes to {arguments.out}")

    return work

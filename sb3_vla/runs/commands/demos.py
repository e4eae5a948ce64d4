"""``sb3-vla demos``: demonstrations of the suite's expert, and from and to LeRobot datasets."""

from argparse import Namespace
from collections import Counter

from sb3_vla_envs import ExpertFailure, load_demonstrations, save_demonstrations

from ..checks import check_acting, check_experts
from ..lerobot_datasets import export_lerobot, import_lerobot
from ..pipeline import collect
from . import Failure, Work
from .given import check_new_file, load


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    if arguments.to_lerobot is not None or arguments.demos is not None:
        return _to_lerobot(arguments)
    if arguments.out is None:
        raise ValueError("say where to write: --out FILE, or --demos FILE --to-lerobot FOLDER")
    if arguments.from_lerobot is not None:
        return _from_lerobot(arguments)
    config = load(arguments, demos={"n_per_task": arguments.n_per_task})
    check_experts(config)
    check_acting(config)
    check_new_file(arguments.out)

    def work() -> None:
        try:
            demonstrations = collect(config, arguments.out)
        except ExpertFailure as failure:
            kept = failure.demonstrations
            if kept:
                save_demonstrations(arguments.out, kept)
            told = f". The {len(kept)} demonstrations collected are in {arguments.out}" if kept else ""
            raise Failure(f"{failure}{told}") from failure
        print(f"Wrote {len(demonstrations)} demonstrations to {arguments.out}")

    return work


# The files of others are checked as they are read: all that takes long belongs to the checks here


def _from_lerobot(arguments: Namespace) -> Work:
    if arguments.n_per_task is not None:
        raise ValueError("--from-lerobot reads all episodes of the tasks: leave out --n-per-task")
    check_new_file(arguments.out)
    config = load(arguments)
    demonstrations = import_lerobot(config, arguments.from_lerobot, arguments.out)
    counts = Counter(demo.task for demo in demonstrations)
    by_task = ", ".join(f"{counts[task]} of {task}" for task in config.tasks)
    return lambda: print(f"Wrote {len(demonstrations)} demonstrations to {arguments.out}: {by_task}")


def _to_lerobot(arguments: Namespace) -> Work:
    others = [name for name in ("out", "from_lerobot", "n_per_task") if getattr(arguments, name) is not None]
    if others or arguments.to_lerobot is None or arguments.demos is None:
        raise ValueError("--demos FILE --to-lerobot FOLDER belong together, without --out, --from-lerobot and --n-per-task")
    demonstrations = load_demonstrations(arguments.demos)
    export_lerobot(load(arguments), demonstrations, arguments.to_lerobot)
    return lambda: print(f"Wrote {len(demonstrations)} episodes to {arguments.to_lerobot}")

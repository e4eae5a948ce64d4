"""The commands of ``sb3-vla`` and their options. Nothing is imported here that takes time."""

import argparse
from typing import Any

from ..common.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """
    :return: The parser of all commands
    """
    parser = argparse.ArgumentParser(
        prog="sb3-vla",
        description="Post-train a vision-language-action policy on the tasks of a suite: collect demonstrations, fine-tune on "
        "them (sft), post-train with reinforcement learning (train), evaluate, film and publish (push) it.",
    )
    parser.add_argument("--version", action="version", version=f"sb3-vla {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_command(commands, "config", "print every setting and its value, as YAML")

    demos = _add_command(commands, "demos", "collect demonstrations of the suite's expert, or convert LeRobot's")
    demos.add_argument("--out", type=_path, metavar="FILE", help="where to write them (.npz)")
    demos.add_argument("--n-per-task", type=int, metavar="N", help="successful episodes of each task (demos.n_per_task)")
    demos.add_argument("--from-lerobot", type=_path, metavar="FOLDER", help="read them from this LeRobot dataset instead")
    demos.add_argument("--to-lerobot", type=_path, metavar="FOLDER", help="instead of --out: write --demos as such a dataset")
    demos.add_argument("--demos", type=_path, metavar="FILE", help="for --to-lerobot: what `sb3-vla demos` or `play` wrote")

    sft = _add_command(commands, "sft", "fine-tune a new policy on demonstrations")
    sft.add_argument("--demos", type=_path, required=True, metavar="FILE", help="what `sb3-vla demos` wrote")
    sft.add_argument(
        "--auxiliary", type=_path, metavar="FILE", help="what `sb3-vla play` wrote: teaches sft.auxiliary_targets, too"
    )
    sft.add_argument("--out", type=_path, metavar="FOLDER", help="new run: its folder, new or empty; gets sft_model.zip")
    sft.add_argument("--epochs", type=int, metavar="N", help="passes over the demonstrations (sft.n_epochs)")
    sft.add_argument(
        "--resume", type=_path, metavar="FOLDER", help="instead of --out: go on with this run, from the same demonstrations"
    )

    train = _add_command(commands, "train", "post-train a policy with PPOSelfBC")
    train.add_argument(
        "--out", type=_path, metavar="FOLDER", help="new run: its folder, new or empty; gets model.zip, curves.png and logs"
    )
    train.add_argument(
        "--init", type=_path, metavar="MODEL", help="model to start from, e.g. FOLDER/sft_model.zip; default: a new policy"
    )
    _add_trust(train)
    train.add_argument("--demos", type=_path, metavar="FILE", help="demonstrations that the buffer holds at the start")
    train.add_argument("--timesteps", type=int, metavar="N", help="chunks to train for (train.total_timesteps)")
    train.add_argument(
        "--resume", type=_path, metavar="FOLDER", help="instead of --out: continue this run from its last checkpoint"
    )

    of_model = "YAML file with settings to change; default: the config.yaml beside the model, if there is one"
    evaluate = _add_command(commands, "eval", "evaluate a model on goals that training never saw", of_model)
    evaluate.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(evaluate)
    evaluate.add_argument("--out", type=_path, metavar="FILE", help="where to write the episodes and their summary (.json)")
    evaluate.add_argument("--n-goals", type=int, metavar="N", help="goals of each task, one episode each (eval.n_goals)")
    evaluate.add_argument("--protocol", metavar="NAME", help="evaluate as others do, e.g. lerobot: goals, horizon and so on")

    look = _add_command(commands, "probe", "say what a model's features know of object and goal", of_model)
    look.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(look)
    look.add_argument("--out", type=_path, metavar="FILE", help="where to write the figures (.json)")
    look.add_argument("--episodes", type=int, default=50, metavar="N", help="of each task, twice (default 50)")

    play = _add_command(commands, "play", "let a model act on goals of training, and keep all that it sees", of_model)
    play.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(play)
    play.add_argument("--out", type=_path, required=True, metavar="FILE", help="where to write the episodes (.npz)")
    play.add_argument("--n-per-task", type=int, default=100, metavar="N", help="episodes of each task (default 100)")

    record = _add_command(commands, "record", "film a model, one GIF a task", of_model)
    record.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(record)
    record.add_argument("--out", type=_path, required=True, metavar="FOLDER", help="where to write the GIFs")
    record.add_argument("--goal", type=int, default=0, metavar="I", help="number of the test goal (default 0)")

    quick = _add_command(commands, "quickstart", "all of the above on a few tasks, SFT against post-trained")
    quick.add_argument("--out", type=_path, metavar="FOLDER", help="new run: its folder, new or empty")
    quick.add_argument(
        "--resume", type=_path, metavar="FOLDER", help="instead of --out: go on with this run from the stage where it was"
    )

    memory = _add_command(commands, "memory", "say how much memory post-training will take, without the weights")
    memory.add_argument("--backbone", metavar="NAME", help="name or path of a checkpoint (policy.backbone)")
    memory.add_argument("--head", metavar="NAME", help="gaussian, token or flow (policy.head)")
    memory.add_argument("--lora-rank", type=int, metavar="R", help="of adapters (policy.lora.r)")
    memory.add_argument("--cameras", type=int, metavar="N", help="cameras like the first one (default: those of the suite)")
    memory.add_argument("--n-envs", type=int, metavar="N", help="environments (train.n_envs)")
    memory.add_argument("--batch-size", type=int, metavar="N", help="samples of a minibatch (train.batch_size)")
    memory.add_argument("--micro-batch-size", type=int, metavar="N", help="at a time (train.micro_batch_size)")

    report = _add_command(commands, "report", "make one page about runs: results, curves, films, settings", None)
    report.add_argument("runs", type=_path, nargs="+", metavar="RUN", help="run folders, complete or still going")
    report.add_argument("--out", type=_path, required=True, metavar="FILE", help="the page (.html); replaces a report")
    report.add_argument("--watch", type=int, metavar="SECONDS", help="write it again so often, until all runs are complete")

    _add_command(commands, "doctor", "say what this machine and its software are, and what of it will hurt", None)

    push = _add_command(commands, "push", "upload a run's model, with a model card, to the Hugging Face Hub", None)
    push.add_argument("run_folder", type=_path, metavar="RUN_FOLDER", help="what `sb3-vla quickstart`, `train` or `sft` wrote")
    _add_suite(push)
    _add_trust(push)
    push.add_argument("--repo-id", required=True, metavar="USER/NAME", help="repository on the Hub, made if there is none")
    push.add_argument(
        "--local", type=_path, metavar="FOLDER", help="only write into this folder, new or empty, what would be uploaded"
    )
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--license", metavar="NAME", help="licence of the model, e.g. mit, for the model card")
    push.add_argument("--with-demos", action="store_true", help="publish the run's demonstration buffer too")
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="WHAT",
        help="MODULE:NAME of a class of your own that the model names, such as a backbone; or pickle: load a pickled model, "
        "too, which can run anything. May be given more than once",
    )


def _add_suite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="suite of tasks, or MODULE:NAME for one that importing a module registers, which has to be said again for its "
        "runs and models (default: the one that has the tasks)",
    )


def _path(text: str) -> str:
    """
    :param text: An argument
    :return: The same
    :raises argparse.ArgumentTypeError: If no file can be called so
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: give the name of a file or folder")
    return text


def _add_command(
    commands: Any,
    name: str,
    help_text: str,
    config_help: str | None = "YAML file with settings to change, e.g. the config.yaml of a run",
) -> argparse.ArgumentParser:
    description = help_text[0].upper() + help_text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=description)
    if config_help is None:  # it has no configuration
        return parser
    parser.add_argument("--config", type=_path, metavar="FILE", help=config_help)
    _add_suite(parser)
    parser.add_argument(
        "--tasks", metavar="NAMES", help="tasks or groups of tasks, separated by commas (default: the suite's default tasks)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or auto (default)")
    return parser

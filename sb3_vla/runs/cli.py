"""The command line: ``sb3-vla config | demos | sft | train | eval | probe | play | record | quickstart | push``."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sb3_vla_envs.durable_files import check_writable
from sb3_vla_envs.suite import get_suite

from ..common.ranks import LostRank
from ..common.run_folder import RunFolder
from .config import Config, load_config
from .interruption import Interrupted, stopping_at_once
from .several_ranks import check_command, first_rank_speaks, meet, where

# A command checks what it was given and returns the work to do
Work = Callable[[], None]
Command = Callable[[argparse.Namespace], Work]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command. Mistakes in what the user gave end in one line on standard error; an error in the work itself, which has
    passed all checks, shows where it arose.

    :param argv: Arguments, by default those of the process
    :return: Exit status: 0, 1 if another rank is lost, 2 after a mistake, 128 and the signal's number after an interruption
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    arguments.command_line = shlex.join(["sb3-vla", *argv])
    try:
        with stopping_at_once():
            try:
                check_command(arguments.command)
                with first_rank_speaks():
                    work = arguments.run(arguments)
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                print(f"sb3-vla {arguments.command}{where()}: {' '.join(str(error).split())}", file=sys.stderr)
                return 2
            with first_rank_speaks():
                work()
    except Interrupted as error:
        print(f"sb3-vla {arguments.command}{where()}: {error}", file=sys.stderr)
        return error.exit_status
    except LostRank as error:
        print(f"sb3-vla {arguments.command}{where()}: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """
    :return: The parser of all commands
    """
    parser = argparse.ArgumentParser(
        prog="sb3-vla",
        description="Post-train a vision-language-action policy on the tasks of a suite: collect demonstrations, fine-tune on "
        "them (sft), post-train with reinforcement learning (train), evaluate, film and publish (push) it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_command(commands, "config", _config, "print every setting and its value, as YAML")

    demos = _add_command(commands, "demos", _demos, "collect demonstrations of the suite's expert, or convert LeRobot's")
    demos.add_argument("--out", type=_path, metavar="FILE", help="where to write them (.npz)")
    demos.add_argument("--n-per-task", type=int, metavar="N", help="successful episodes of each task (demos.n_per_task)")
    demos.add_argument("--from-lerobot", type=_path, metavar="FOLDER", help="read them from this LeRobot dataset instead")
    demos.add_argument("--to-lerobot", type=_path, metavar="FOLDER", help="instead of --out: write --demos as such a dataset")
    demos.add_argument("--demos", type=_path, metavar="FILE", help="for --to-lerobot: what `sb3-vla demos` or `play` wrote")

    sft = _add_command(commands, "sft", _sft, "fine-tune a new policy on demonstrations")
    sft.add_argument("--demos", type=_path, required=True, metavar="FILE", help="what `sb3-vla demos` wrote")
    sft.add_argument(
        "--auxiliary", type=_path, metavar="FILE", help="what `sb3-vla play` wrote: teaches sft.auxiliary_targets, too"
    )
    sft.add_argument("--out", type=_path, required=True, metavar="FOLDER", help="run folder, new or empty; gets sft_model.zip")
    sft.add_argument("--epochs", type=int, metavar="N", help="passes over the demonstrations (sft.n_epochs)")

    train = _add_command(commands, "train", _train, "post-train a policy with PPOSelfBC")
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
    evaluate = _add_command(commands, "eval", _eval, "evaluate a model on goals that training never saw", of_model)
    evaluate.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(evaluate)
    evaluate.add_argument("--out", type=_path, metavar="FILE", help="where to write the episodes and their summary (.json)")
    evaluate.add_argument("--n-goals", type=int, metavar="N", help="goals of each task, one episode each (eval.n_goals)")
    evaluate.add_argument("--protocol", metavar="NAME", help="evaluate as others do, e.g. lerobot: goals, horizon and so on")

    look = _add_command(commands, "probe", _probe, "say what a model's features know of object and goal", of_model)
    look.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(look)
    look.add_argument("--out", type=_path, metavar="FILE", help="where to write the figures (.json)")
    look.add_argument("--episodes", type=int, default=50, metavar="N", help="of each task, twice (default 50)")

    play = _add_command(commands, "play", _play, "let a model act on goals of training, and keep all that it sees", of_model)
    play.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(play)
    play.add_argument("--out", type=_path, required=True, metavar="FILE", help="where to write the episodes (.npz)")
    play.add_argument("--n-per-task", type=int, default=100, metavar="N", help="episodes of each task (default 100)")

    record = _add_command(commands, "record", _record, "film a model, one GIF a task", of_model)
    record.add_argument("model", type=_path, metavar="MODEL", help="model.zip or sft_model.zip")
    _add_trust(record)
    record.add_argument("--out", type=_path, required=True, metavar="FOLDER", help="where to write the GIFs")
    record.add_argument("--goal", type=int, default=0, metavar="I", help="number of the test goal (default 0)")

    quick = _add_command(commands, "quickstart", _quickstart, "all of the above on a few tasks, SFT against post-trained")
    quick.add_argument("--out", type=_path, metavar="FOLDER", help="new run: its folder, new or empty")
    quick.add_argument(
        "--resume", type=_path, metavar="FOLDER", help="instead of --out: go on with this run from the stage where it was"
    )

    push = _add_command(commands, "push", _push, "upload a run's model, with a model card, to the Hugging Face Hub", None)
    push.add_argument("run_folder", type=_path, metavar="RUN_FOLDER", help="what `sb3-vla quickstart`, `train` or `sft` wrote")
    push.add_argument("--repo-id", required=True, metavar="USER/NAME", help="repository on the Hub, made if there is none")
    push.add_argument(
        "--local", type=_path, metavar="FOLDER", help="only write into this folder, new or empty, what would be uploaded"
    )
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--license", metavar="NAME", help="licence of the model, e.g. mit, for the model card")
    push.add_argument("--with-demos", action="store_true", help="publish the run's demonstration buffer too")
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="load a pickled model too, which can run anything")


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
    run: Command,
    help_text: str,
    config_help: str | None = "YAML file with settings to change, e.g. the config.yaml of a run",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.set_defaults(run=run)
    if config_help is None:  # it has no configuration
        return parser
    parser.add_argument("--config", type=_path, metavar="FILE", help=config_help)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="suite of tasks, or MODULE:NAME for one that importing a module registers (default: the one that has the tasks)",
    )
    parser.add_argument(
        "--tasks", metavar="NAMES", help="tasks or groups of tasks, separated by commas (default: the suite's default tasks)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or auto (default)")
    return parser


def _load(arguments: argparse.Namespace, **sections: dict[str, Any]) -> Config:
    """
    :param arguments: Of a command that has a configuration
    :param sections: Settings given as arguments, by section
    :return: The configuration
    """
    settings: dict[str, Any] = {"seed": arguments.seed, "device": arguments.device, **sections}
    return load_config(arguments.config, arguments.suite, arguments.tasks, **settings)


def _create_run(arguments: argparse.Namespace, config: Config) -> RunFolder:
    folder = RunFolder(arguments.out)
    meet(config).first_does(lambda: RunFolder.create(arguments.out, arguments.command_line, config.to_dict()))
    print(f"Writing to {folder.path}")
    return folder


def _load_to_act(arguments: argparse.Namespace, **sections: dict[str, Any]) -> tuple[Config, Any]:
    """
    :param arguments: Of ``eval`` or ``record``
    :param sections: Settings given as arguments
    :return: Configuration, and the model, which fits it
    """
    from .checks import check_acting
    from .models import load_model

    own_config = Path(arguments.model).with_name("config.yaml")
    if arguments.config is None and own_config.is_file():
        arguments.config = own_config
    config = _load(arguments, **sections)
    model = load_model(arguments.model, config.device, arguments.trust)
    check_acting(config, model)
    return config, model


def _check_new_file(path: str | None) -> None:
    """
    See that a file can be written, before the work that makes it.

    :param path: File to write, or ``None``
    :raises FileExistsError: If there is one
    :raises OSError: If it can't be written there
    """
    if path is None:
        return
    if Path(path).exists():
        raise FileExistsError(f"{path!r} exists already: give another file, or remove it")
    check_writable(Path(path).parent)


def _config(arguments: argparse.Namespace) -> Work:
    text = yaml.safe_dump(_load(arguments).to_dict(), sort_keys=False, allow_unicode=True)
    return lambda: print(text, end="")


def _demos(arguments: argparse.Namespace) -> Work:
    from .checks import check_acting, check_experts
    from .pipeline import collect

    if arguments.to_lerobot is not None or arguments.demos is not None:
        return _to_lerobot(arguments)
    if arguments.out is None:
        raise ValueError("say where to write: --out FILE, or --demos FILE --to-lerobot FOLDER")
    if arguments.from_lerobot is not None:
        return _from_lerobot(arguments)
    config = _load(arguments, demos={"n_per_task": arguments.n_per_task})
    check_experts(config)
    check_acting(config)
    _check_new_file(arguments.out)

    def work() -> None:
        demonstrations = collect(config, arguments.out)
        print(f"Wrote {len(demonstrations)} demonstrations to {arguments.out}")

    return work


# The files of others are checked as they are read: all that takes long belongs to the checks here


def _from_lerobot(arguments: argparse.Namespace) -> Work:
    from .lerobot_datasets import import_lerobot

    if arguments.n_per_task is not None:
        raise ValueError("--from-lerobot reads all episodes of the tasks: leave out --n-per-task")
    _check_new_file(arguments.out)
    config = _load(arguments)
    demonstrations = import_lerobot(config, arguments.from_lerobot, arguments.out)
    counts = Counter(demo.task for demo in demonstrations)
    by_task = ", ".join(f"{counts[task]} of {task}" for task in config.tasks)
    return lambda: print(f"Wrote {len(demonstrations)} demonstrations to {arguments.out}: {by_task}")


def _to_lerobot(arguments: argparse.Namespace) -> Work:
    from sb3_vla_envs import load_demonstrations

    from .lerobot_datasets import export_lerobot

    others = [name for name in ("out", "from_lerobot", "n_per_task") if getattr(arguments, name) is not None]
    if others or arguments.to_lerobot is None or arguments.demos is None:
        raise ValueError("--demos FILE --to-lerobot FOLDER belong together, without --out, --from-lerobot and --n-per-task")
    demonstrations = load_demonstrations(arguments.demos)
    export_lerobot(_load(arguments), demonstrations, arguments.to_lerobot)
    return lambda: print(f"Wrote {len(demonstrations)} episodes to {arguments.to_lerobot}")


def _sft(arguments: argparse.Namespace) -> Work:
    from sb3_vla_envs import load_demonstrations

    from .checks import check_training
    from .pipeline import run_sft

    config = _load(arguments, sft={"n_epochs": arguments.epochs})
    demonstrations = load_demonstrations(arguments.demos)
    episodes = load_demonstrations(arguments.auxiliary) if arguments.auxiliary else []
    if episodes and not config.sft.auxiliary_targets:
        raise ValueError("--auxiliary teaches sft.auxiliary_targets: name some, e.g. {privileged: [4, 5, 6]}")
    check_training(config, demonstrations=demonstrations)
    folder = _create_run(arguments, config)

    def work() -> None:
        run_sft(config, demonstrations, folder.sft_model, episodes)
        print(f"Wrote {folder.sft_model}")

    return work


def _train(arguments: argparse.Namespace) -> Work:
    return _resume(arguments) if _is_resumed(arguments) else _train_anew(arguments)


def _is_resumed(arguments: argparse.Namespace) -> bool:
    """
    :param arguments: Of ``train`` or ``quickstart``
    :return: Whether a run is to go on
    :raises ValueError: If neither or both of ``--out`` and ``--resume`` are given, or more with the latter
    """
    if (arguments.out is None) == (arguments.resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to continue one")
    own = ("config", "suite", "tasks", "seed", "init", "demos", "timesteps")
    given = [name for name in own if getattr(arguments, name, None) is not None]
    if arguments.resume is not None and given:
        raise ValueError(
            f"--resume continues a run with its own configuration: leave out --{' --'.join(given)}. What a run may change on "
            "its way, such as train.total_timesteps, is changed in its config.yaml"
        )
    return arguments.resume is not None


@contextmanager
def _going_on(arguments: argparse.Namespace, folder: RunFolder) -> Iterator[None]:
    """
    Within it, who stops a run is told how to go on with it.

    :param arguments: Of ``train`` or ``quickstart``
    :param folder: The run's folder
    """
    try:
        yield
    except (Interrupted, LostRank):
        print(f"To go on: sb3-vla {arguments.command} --resume {shlex.quote(str(folder.path))}", file=sys.stderr)
        raise


def _train_anew(arguments: argparse.Namespace) -> Work:
    from sb3_vla_envs import load_demonstrations

    from .checks import check_training
    from .training import post_train

    config = _load(arguments, train={"total_timesteps": arguments.timesteps})
    meet(config)
    demonstrations = load_demonstrations(arguments.demos) if arguments.demos else []
    check_training(config, arguments.init, demonstrations, arguments.trust)
    folder = _create_run(arguments, config)

    def work() -> None:
        with _going_on(arguments, folder):
            post_train(config, folder, arguments.init, demonstrations, trust_pickle=arguments.trust)
        print(f"Wrote {folder.model} and {folder.curves}")

    return work


def _resume(arguments: argparse.Namespace) -> Work:
    from .checks import check_resuming
    from .training import resume_training

    folder = RunFolder.open(arguments.resume)
    config = load_config(folder.config_file, device=arguments.device)
    meet(config)
    checkpoint = check_resuming(config, folder)

    def work() -> None:
        print(f"Going on from {checkpoint}")
        with _going_on(arguments, folder):
            resume_training(config, folder, checkpoint)
        print(f"Wrote {folder.model} and {folder.curves}")

    return work


def _eval(arguments: argparse.Namespace) -> Work:
    from .pipeline import evaluate_model

    _check_new_file(arguments.out)
    config, model = _load_to_act(arguments, eval={"n_goals": arguments.n_goals})
    ranks = meet(config)
    protocol = _protocol(config, arguments.protocol)
    if arguments.n_goals is not None:
        protocol["n_goals"] = arguments.n_goals

    def work() -> None:
        result = evaluate_model(config, model, **protocol)
        print(result.table())  # before it is saved: a disk may be full
        if arguments.out and ranks.is_first:
            result.save(arguments.out)

    return work


def _protocol(config: Config, name: str | None) -> dict[str, Any]:
    """
    :param config: Configuration
    :param name: Of one of its suite's protocols, or ``None``
    :return: What it changes of an evaluation
    :raises ValueError: If the suite has no such protocol
    """
    protocols = get_suite(config.suite).protocols
    if name is not None and name not in protocols:
        raise ValueError(f"the suite {config.suite!r} has no protocol {name!r}, only {sorted(protocols)}")
    return {} if name is None else {**protocols[name]}


def _probe(arguments: argparse.Namespace) -> Work:
    from .checks import check_experts
    from .pipeline import probe_model

    _check_new_file(arguments.out)
    if arguments.episodes < 5:
        raise ValueError(f"--episodes must be at least 5, got {arguments.episodes}")
    config, model = _load_to_act(arguments)
    check_experts(config)
    if not get_suite(config.suite).privileged_parts:
        raise ValueError(f"the suite {config.suite!r} does not say what there is to be found (Suite.privileged_parts)")

    def work() -> None:
        result = probe_model(config, model, arguments.episodes)
        print(result.table())
        if arguments.out:
            result.save(arguments.out)

    return work


def _play(arguments: argparse.Namespace) -> Work:
    from .pipeline import collect_own_episodes

    _check_new_file(arguments.out)
    if arguments.n_per_task < 1:
        raise ValueError(f"--n-per-task must be at least 1, got {arguments.n_per_task}")
    config, model = _load_to_act(arguments)

    def work() -> None:
        episodes = collect_own_episodes(config, model, arguments.out, arguments.n_per_task)
        print(f"Wrote {len(episodes)} episodes to {arguments.out}")

    return work


def _record(arguments: argparse.Namespace) -> Work:
    from ..evaluation.gif import gif_paths
    from .pipeline import record_model

    if arguments.goal < 0:
        raise ValueError(f"--goal must be at least 0, got {arguments.goal}")
    config, model = _load_to_act(arguments)
    prefix = Path(arguments.model).stem
    gif_paths(config.tasks, arguments.out, prefix)

    def work() -> None:
        paths = record_model(config, model, arguments.out, prefix, arguments.goal)
        print("Wrote " + ", ".join(str(path) for path in paths))

    return work


def _quickstart(arguments: argparse.Namespace) -> Work:
    from .checks import check_experts, check_resuming, check_training
    from .quickstart import quickstart

    if _is_resumed(arguments):
        folder = RunFolder.open(arguments.resume)
        config = load_config(folder.config_file, device=arguments.device)
        if folder.has_checkpoints:
            check_resuming(config, folder)
        else:
            config.check_resumes(load_config(folder.began_file))
    else:
        config = _load(arguments)
        check_experts(config)
        check_training(config)
        folder = _create_run(arguments, config)

    def work() -> None:
        with _going_on(arguments, folder):
            quickstart(config, folder)
        print(f"\nModels, results.json, curves.png, comparison.png, gifs/ and a TensorBoard log are in {folder.path}")

    return work


def _push(arguments: argparse.Namespace) -> Work:
    from ..hub.model_folder import check_new_folder, save_for_hub
    from ..hub.upload import check_repo_id, create_repo, push_to_hub
    from .publish import read_run

    check_repo_id(arguments.repo_id)
    contents, missing = read_run(arguments.run_folder, arguments.with_demos)
    if arguments.local is None:
        create_repo(arguments.repo_id, private=arguments.private)
    else:
        check_new_folder(arguments.local)
    metadata = {"license": arguments.license} if arguments.license else {}

    def work() -> None:
        with TemporaryDirectory() as temporary_folder:
            folder = arguments.local or temporary_folder
            files = save_for_hub(folder=folder, repo_id=arguments.repo_id, metadata=metadata, **contents)
            if arguments.local is None:
                where = push_to_hub(folder, arguments.repo_id)
            else:
                where = f"{folder}; to upload it: hf upload {arguments.repo_id} {folder}"
        for line in missing:
            print(f"Left out, as the run has no {line}")
        print(f"Wrote {', '.join(files)} to {where}")

    return work

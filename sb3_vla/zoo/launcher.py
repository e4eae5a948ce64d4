"""
The zoo's commands with PPOSelfBC and our environments.

The zoo fixes its choices of algorithms when its command lines are built, before any plugin is loaded, so they are added to
its tables here, in place, and then its own scripts run unchanged. What they take from other modules and what does not work for
new algorithms, chunks, environment ids with a slash or a machine without a screen is replaced while they run (rl_zoo3 2.9.2).
"""

import argparse
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym

import sb3_vla_envs  # noqa: F401  # registers the environments

from ..callbacks.success_eval_callback import SuccessEvalCallback
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import preload_workers

try:
    import huggingface_hub
    import requests
    import rl_zoo3.exp_manager
    import rl_zoo3.utils
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
except ImportError as error:
    raise ImportError('the zoo needs more packages: pip install "sb3-vla[zoo]"') from error

from .experiment_manager import ChunkExperimentManager, TrialSuccessCallback
from .hyperparams import NAME, convert_ppo_self_bc_params, sample_ppo_self_bc_params
from .watching import watched

COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "benchmark": "rl_zoo3.benchmark",
    "plot_train": "rl_zoo3.plots.plot_train",
    "all_plots": "rl_zoo3.plots.all_plots",
    "push_to_hub": "rl_zoo3.push_to_hub",
    "load_from_hub": "rl_zoo3.load_from_hub",
}


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run one of the zoo's commands.

    :param argv: Command and its arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_vla.zoo",
        description="rl-baselines3-zoo with --algo ppo_self_bc, action chunks and MetaWorld from pixels and language.",
        epilog="COMMAND --help lists the zoo's arguments.",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as the zoo takes them")
    args = parser.parse_args(argv)
    register()
    preload_workers()
    with ExitStack() as stack:
        for replacement in _replacements(args.command, args.arguments):
            stack.enter_context(replacement)
        # run_module warns of what the zoo has imported itself
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        runpy.run_module(COMMANDS[args.command], run_name="__main__")


def register() -> None:
    """Make PPOSelfBC known to rl_zoo3 in this process, under the name ``ppo_self_bc``."""
    ALGOS[NAME] = PPOSelfBC
    HYPERPARAMS_SAMPLER[NAME] = sample_ppo_self_bc_params
    HYPERPARAMS_CONVERTER[NAME] = convert_ppo_self_bc_params


def _replacements(command: str, arguments: Sequence[str]) -> Iterator[Any]:
    """
    :param command: Which of the zoo's
    :param arguments: Its arguments
    :return: Context managers, within which the command works
    """
    is_plot = COMMANDS[command].startswith("rl_zoo3.plots.")
    # Plots look for folders
    names = [_folder_name(argument) if is_plot else argument for argument in arguments]
    yield _replaced(sys, "argv", [f"sb3_vla.zoo {command}", *names])
    yield _replaced(rl_zoo3.exp_manager, "ExperimentManager", ChunkExperimentManager)
    # "Best" is by success, and then by steps
    yield _replaced(rl_zoo3.exp_manager, "EvalCallback", SuccessEvalCallback)
    yield _replaced(rl_zoo3.exp_manager, "TrialEvalCallback", TrialSuccessCallback)
    if command in ("enjoy", "record_video", "push_to_hub"):
        report = command != "push_to_hub" and _verbosity(arguments) > 0
        create_test_env = watched(rl_zoo3.utils.create_test_env, in_a_window=command == "enjoy", report=report)
        yield _replaced(rl_zoo3, "create_test_env", create_test_env)
        yield _replaced(rl_zoo3.utils, "create_test_env", create_test_env)
    if command in ("record_training", "benchmark"):
        yield _replaced(subprocess, "call", _call_here(subprocess.call))
        yield _replaced(rl_zoo3.utils, "get_trained_models", _with_folder_names(rl_zoo3.utils.get_trained_models))
    if command in ("record_training", "push_to_hub") and shutil.which("ffmpeg") is None:
        yield _ffmpeg_on_path()
    if command == "push_to_hub":
        packaging = importlib.import_module("huggingface_sb3.push_to_hub")  # the package has a function of that name, too
        if not hasattr(packaging, "generate_metadata"):
            # rl_zoo3 2.9.2 imports it, but in the one release of sb3-team-hf-integration it has another name and result
            packaging.generate_metadata = lambda *args: packaging._generate_metadata(*args).to_dict()  # type: ignore[attr-defined]
        yield _replaced(huggingface_hub, "HfApi", _with_this_launcher(huggingface_hub.HfApi))
    if command == "load_from_hub":
        # What it catches where a model has no VecNormalize statistics; huggingface_hub has left requests since
        yield _replaced(requests.exceptions, "HTTPError", HfHubHTTPError)
    if is_plot:
        from matplotlib import pyplot as plt

        yield _replaced(plt, "show", _show_or_save(plt.show))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _verbosity(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", type=int, default=1)
    return int(parser.parse_known_args(arguments)[0].verbose)


def _folder_name(name: str) -> str:
    """The zoo's folder of an environment, whose id may have a slash; other names stay."""
    return str(EnvironmentName(name)) if name in gym.registry else name


def _with_folder_names(get_trained_models: Callable[[str], dict[Any, tuple[str, str]]]) -> Callable[[str], Any]:
    # The zoo's benchmark makes paths of the environment ids
    return lambda folder: {key: (algo, _folder_name(env)) for key, (algo, env) in get_trained_models(folder).items()}


def _call_here(call: Callable[..., int]) -> Callable[..., int]:
    """
    The zoo's scripts call each other as ``python -m rl_zoo3.record_video`` or ``python enjoy.py``, which know neither our
    algorithm nor which Python this is.

    :param call: ``subprocess.call``
    :return: The same, but the zoo's scripts run in this process, by this launcher
    """
    env_ids = {str(EnvironmentName(env_id)): env_id for env_id in gym.registry}

    def call_here(command: Any, *args: Any, **kwargs: Any) -> int:
        if command[0] != "python":
            return call(command, *args, **kwargs)
        script, *arguments = command[2:] if command[1] == "-m" else command[1:]
        name = script.removeprefix("rl_zoo3.").removesuffix(".py")
        try:
            main([name, *(env_ids.get(argument, argument) for argument in arguments)])
        except (Exception, SystemExit):
            traceback.print_exc()
            return 1
        return 0

    return call_here


@contextmanager
def _ffmpeg_on_path() -> Iterator[None]:
    """Let the zoo's shell commands find the ffmpeg that came with moviepy, and a font for it, where none is installed."""
    import imageio_ffmpeg
    import matplotlib

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), Path(folder) / "ffmpeg")
        # Its folder has a font of last resort, too, that would be taken
        os.symlink(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", Path(folder) / "DejaVuSans.ttf")
        fonts = Path(folder) / "fonts.conf"
        fonts.write_text(f"<fontconfig><dir>{folder}</dir></fontconfig>", encoding="utf-8")
        stack.callback(os.environ.update, {"PATH": os.environ["PATH"]})
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        if "FONTCONFIG_FILE" not in os.environ:
            stack.callback(os.environ.pop, "FONTCONFIG_FILE")
            os.environ["FONTCONFIG_FILE"] = str(fonts)
        yield


def _with_this_launcher(api: type[huggingface_hub.HfApi]) -> type[huggingface_hub.HfApi]:
    """
    :param api: The Hub's client
    :return: The same, which uploads the zoo's model card with this launcher's commands
    """

    class Hub(api):  # type: ignore[valid-type, misc]
        def upload_folder(self, *, folder_path: str | Path, **kwargs: Any) -> Any:
            card = Path(folder_path) / "README.md"
            text = card.read_text(encoding="utf-8")
            text = text.replace("pip install rl_zoo3", 'pip install "sb3-vla[zoo]"')
            text = text.replace("python -m rl_zoo3.", "python -m sb3_vla.zoo ")
            # huggingface_sb3 refuses to load pickles otherwise
            trusting = "TRUST_REMOTE_CODE=True python -m sb3_vla.zoo load_from_hub"
            card.write_text(text.replace("python -m sb3_vla.zoo load_from_hub", trusting), encoding="utf-8")
            return super().upload_folder(folder_path=folder_path, **kwargs)

    return Hub


def _show_or_save(show: Callable[..., None]) -> Callable[..., None]:
    """
    :param show: Matplotlib's
    :return: A function that shows figures where there is a screen, and elsewhere saves them in the working directory
    """

    def show_or_save(*args: Any, **kwargs: Any) -> None:
        from matplotlib import pyplot as plt

        if plt.get_backend().lower() != "agg":
            show(*args, **kwargs)
            return
        for number in plt.get_fignums():
            figure = plt.figure(number)
            path = Path(f"{figure.get_label() or f'figure_{number}'}.png".replace(" ", "_").replace("/", "-"))
            figure.savefig(path, dpi=150)
            print(f"There is no screen: saved the figure to {path}")
            if not any(axes.lines for axes in figure.axes):
                print("It is empty: plot_train smooths over 100 episodes, and shows nothing of fewer; try -w 10")

    return show_or_save

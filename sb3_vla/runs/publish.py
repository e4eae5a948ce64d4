"""What of a run folder goes to the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from ..common.run_folder import RunFolder
from ..evaluation.result import EvaluationResult
from ..hub.model_folder import check_portable, check_results
from .checkpoint import newest_checkpoint
from .config import load_config
from .models import load_model
from .results import load_results


def read_run(
    path: str | Path, demonstrations: bool = False, trust_pickle: bool = False, suite: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """
    Find what :func:`~sb3_vla.save_for_hub` takes in a run folder of ``sb3-vla quickstart``, ``train`` or ``sft``. Its
    ``results.json`` is what ``quickstart`` or ``sb3-vla eval RUN/model.zip --out RUN/results.json`` wrote there, and its films
    are what ``quickstart`` or ``sb3-vla record RUN/model.zip --out RUN/gifs`` did.

    :param path: The run folder
    :param demonstrations: Whether to publish the demonstration buffer of the last checkpoint
    :param trust_pickle: Whether the model may be a pickled file, which can run anything
    :param suite: The run's suite, if it is one of a module that is not imported yet
    :return: Arguments of :func:`~sb3_vla.save_for_hub`, and a line on each thing that is not there
    :raises FileNotFoundError: If there is no run, no model, or no demonstration buffer where it is asked for
    :raises ValueError: If a file is not what its name says
    """
    run = RunFolder.open(path)
    is_post_trained = run.model.is_file()
    model_path = run.model if is_post_trained else run.sft_model
    if not model_path.is_file():
        raise FileNotFoundError(f"'{path}' holds no model.zip or sft_model.zip: let the training come to its end first")
    config = load_config(run.config_file, suite)
    result, baseline = _results(run, is_post_trained)
    buffer = _find_buffer(run) if demonstrations else None
    videos = _find_videos(run.gifs, is_post_trained)
    missing = []
    if result is None:
        hint = f"sb3-vla eval {model_path} --out {run.results}"
        missing.append(f"results.json: the card has no results ({hint})")
    if not videos:
        missing.append(f"gifs/: the card has no films (sb3-vla record {model_path} --out {run.gifs})")
    if not run.curves.is_file():
        missing.append("curves.png: the card has no learning curves")
    model = load_model(model_path, "cpu", trust_pickle)
    check_portable(model)
    try:
        check_results(model, result, baseline)
    except ValueError as error:
        raise ValueError(f"'{run.results}': {error}") from error
    arguments = {
        "model": model,
        "tasks": config.tasks,
        "suite": config.suite,
        "env_kwargs": config.acting_settings(),
        "result": result,
        "baseline": baseline,
        "videos": videos,
        "run": run.path,
        "demonstrations": buffer,
    }
    return arguments, missing


def _results(run: RunFolder, is_post_trained: bool) -> tuple[EvaluationResult | None, EvaluationResult | None]:
    """
    :param run: The run, whose ``results.json`` ``sb3-vla eval`` or ``sb3-vla quickstart`` wrote
    :param is_post_trained: Whether the model is
    :return: Evaluations of the model and, of a quickstart's, of the SFT model that its training began with
    :raises ValueError: If a quickstart has not evaluated its model yet
    """
    results = load_results(run)
    if not results.keys() & {"SFT", "post-trained"}:
        return results.get(""), None
    if not is_post_trained:
        return results.get("SFT"), None
    if "post-trained" not in results:
        raise ValueError(f"'{run.path}' has not evaluated its model yet: sb3-vla quickstart --resume {run.path}")
    return results["post-trained"], results.get("SFT")


def _find_buffer(run: RunFolder) -> Path:
    """
    :param run: The run
    :return: The demonstration buffer of its newest checkpoint
    """
    if not any(run.checkpoints.glob("*[0-9]/replay_buffer.npz")):
        raise FileNotFoundError(f"there is no demonstration buffer in '{run.checkpoints}' to publish")
    return newest_checkpoint(run.checkpoints) / "replay_buffer.npz"


def _find_videos(folder: Path, is_post_trained: bool) -> list[Path]:
    """
    :param folder: Where ``sb3-vla quickstart`` or ``record`` wrote films
    :param is_post_trained: Whether the model is
    :return: The films of the model, where there are any beside those of the model before post-training
    """
    patterns = ("comparison_*.gif", "post_trained_*.gif", "model_*.gif") if is_post_trained else ("sft_*.gif",)
    return next((films for pattern in patterns if (films := sorted(folder.glob(pattern)))), [])

"""The evaluations of a run, in its ``results.json``."""

import json

from sb3_vla_envs.durable_files import replace_text

from ..common.run_folder import RunFolder
from ..evaluation.result import EvaluationResult


def load_results(folder: RunFolder, name: str = "") -> dict[str, EvaluationResult]:
    """
    :param folder: The folder of a run
    :param name: Of a single evaluation, as ``sb3-vla eval`` writes it
    :return: The evaluations in its ``results.json`` by name, of a quickstart ``"SFT"`` and ``"post-trained"``; none if
        there is no such file
    :raises ValueError: If the file is something else
    """
    if not folder.results.is_file():
        return {}
    try:
        content = json.loads(folder.results.read_text(encoding="utf-8"))
        evaluations = {name: content} if "format" in content else content
        return {name: EvaluationResult.from_dict(result) for name, result in evaluations.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"Cannot read '{folder.results}': {error}") from error


def save_results(folder: RunFolder, results: dict[str, EvaluationResult]) -> None:
    """
    :param folder: The run's folder, whose ``results.json`` is written
    :param results: Evaluations by name
    """
    content = {name: result.to_dict() for name, result in results.items()}
    replace_text(folder.results, json.dumps(content, indent=1) + "\n")

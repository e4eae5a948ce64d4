"""What a run's folder tells, whether the run has ended or goes on."""

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.run_folder import RunFolder
from ...evaluation.result import EvaluationResult
from ..log_columns import read_columns
from ..results import load_results

_ITERATIONS = "time/iterations"

#: Columns of a log by name, each of shape ``(rows,)``, NaN where nothing was logged
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RunLog:
    """
    All that a report says of a run.

    :param name: What to call it
    :param path: Its folder
    :param command: The command that made it
    :param config: Its settings by full name, e.g. ``train.learning_rate``
    :param versions: Of its software
    :param results: Its evaluations, by what was evaluated
    :param progress: What SB3's logger recorded, with ``hours``
    :param validation: Evaluations during training, with ``hours``
    :param films: GIFs by name
    :param is_made: Whether the model that it was to make is there, of this training or of one before it was prolonged
    :param seconds_since: Since it last wrote anything into a log
    """

    name: str
    path: Path
    command: str
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    results: Mapping[str, EvaluationResult]
    progress: Columns
    validation: Columns
    films: Mapping[str, Path]
    is_made: bool
    seconds_since: float

    @property
    def experiment(self) -> str:
        """
        The same for runs that differ by their seed alone: in settings, and in what they were given to begin with, where paths
        may differ by the number behind ``seed``.
        """
        settings = {key: value for key, value in self.config.items() if key != "seed"}
        words = re.sub(r"(?i)(seed[_=-]?)\d+", r"\1", self.command).replace("=", " ").split()
        given = sorted(pair for pair in pairwise(words) if pair[0] in ("sb3-vla", "--init", "--demos", "--auxiliary"))
        return json.dumps([settings, given], sort_keys=True, default=str)

    @property
    def done(self) -> float | None:
        """Which part of its training is behind it, 0..1, if it trains."""
        timesteps, total = self.progress.get("time/total_timesteps"), self.config.get("train.total_timesteps")
        return None if timesteps is None or not total else min(1.0, float(np.nanmax(timesteps)) / total)

    @property
    def is_complete(self) -> bool:
        """Whether it has done all that it was to do."""
        return self.is_made and self.done in (None, 1.0)


def read_runs(paths: Sequence[str]) -> list[RunLog]:
    """
    :param paths: Run folders
    :return: What they tell, each by a name of its own: the last two or more parts of its path
    :raises FileNotFoundError: If a folder is not there
    :raises ValueError: If it holds no run, or a file in it is damaged
    """
    folders = {Path(path).resolve(): path for path in paths}  # one that is given twice counts once
    longest = max(len(folder.parts) for folder in folders)
    length = next(n for n in range(2, longest + 2) if len({folder.parts[-n:] for folder in folders}) == len(folders))
    names = ["/".join(folder.parts[-length:]) for folder in folders]
    return [_read_run(path, name) for path, name in zip(folders.values(), names, strict=True)]


def _read_run(path: str, name: str) -> RunLog:
    folder = RunFolder.open(path)
    command, config = folder.read_config()
    written = (folder.progress, folder.validation, folder.results, folder.sft_checkpoint, folder.config_file)
    logs = [file for file in written if file.is_file()]
    results = load_results(folder, "post-trained" if folder.progress.is_file() else "SFT")
    return RunLog(
        name=name,
        path=folder.path,
        command=command,
        config=dict(_flat(config)),
        versions=folder.read_versions(),
        results=results,
        progress=_logged(folder.progress, "time/time_elapsed"),
        validation=_logged(folder.validation, "seconds"),
        films=_find_films(folder),
        is_made=_is_made(folder, results),
        seconds_since=max(0.0, time.time() - max(file.stat().st_mtime for file in logs)),
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_made(folder: RunFolder, results: Collection[str]) -> bool:
    """
    :param folder: Of a run
    :param results: What was evaluated
    :return: Whether it has made what it was to make
    """
    command = folder.command_name()
    if command == "quickstart":
        return "post-trained" in results
    return (folder.sft_model if command == "sft" else folder.model).is_file()


def _logged(path: Path, seconds: str) -> dict[str, NDArray[np.float64]]:
    """
    :param path: Of a log
    :param seconds: Its column of time: SB3 counts that of each ``learn()`` from zero, and its rollouts, so a run that was gone
        on with begins again
    :return: Its columns, with ``hours``; none if there is no such file
    """
    columns = read_columns(path) if path.is_file() else {}
    if seconds in columns:
        steps = np.diff(columns[seconds], prepend=0.0)
        begins_again = steps < 0
        if _ITERATIONS in columns:
            begins_again |= np.diff(columns[_ITERATIONS], prepend=0.0) <= 0
        columns["hours"] = np.cumsum(np.where(begins_again, columns[seconds], steps)) / 3600
    return columns


def _find_films(folder: RunFolder) -> dict[str, Path]:
    """:return: Of each task, the film of before and after where there is one, else all there are"""
    films = sorted([*folder.gifs.glob("*.gif"), *folder.path.glob("*.gif")])
    both = [film for film in films if film.stem.startswith("comparison_")]
    return {film.stem.removeprefix("comparison_"): film for film in both or films}

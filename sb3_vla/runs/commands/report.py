"""``sb3-vla report``: one page about runs."""

import time
from argparse import Namespace
from pathlib import Path

from sb3_vla_envs.durable_files import check_writable, replace_text

from ..report.page import MARK, make_page
from ..report.run_log import RunLog, read_runs
from . import Work


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    _check_file(Path(arguments.out))
    if arguments.watch is not None and arguments.watch < 1:
        raise ValueError(f"--watch must be at least 1 second, got {arguments.watch}")
    runs = read_runs(arguments.runs)

    def work() -> None:
        going_on = _write(arguments, runs)
        print(f"Wrote {arguments.out}")
        while going_on:
            time.sleep(arguments.watch)
            going_on = _write(arguments, read_runs(arguments.runs))

    return work


def _write(arguments: Namespace, runs: list[RunLog]) -> bool:
    """:return: Whether the page is to be written again"""
    going_on = arguments.watch is not None and not all(run.is_complete for run in runs)
    page = make_page(runs, arguments.command_line, time.strftime("%Y-%m-%d %H:%M"), arguments.watch if going_on else None)
    replace_text(Path(arguments.out), page)
    return going_on


def _check_file(path: Path) -> None:
    """:raises FileExistsError: If something else than a report is there"""
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(MARK)) != MARK.encode():
                raise FileExistsError(f"'{path}' is there already, and no report: give another file, or remove it")
    check_writable(path.parent)

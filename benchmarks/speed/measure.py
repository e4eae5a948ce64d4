"""Timing two or more ways of doing the same thing in turn, on a machine that is never quiet."""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def clock(run: Callable[[], Any]) -> Callable[[], float]:
    """
    :param run: What to time
    :return: A function that does it and returns the seconds it took
    """

    def timed() -> float:
        gc.collect()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def alternate(ways: Mapping[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """
    Time ways of doing the same one after the other, over and over, so that a slow minute of the machine meets them all.

    :param ways: Functions that do it and return how long it took, see :func:`clock`; each is called once before that
    :param n_rounds: How often each is timed
    :return: What they returned, by name, in the order of the rounds
    """
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, run in ways.items():
            seconds[name].append(run())
    return seconds


def ratio(slow: Sequence[float], quick: Sequence[float]) -> dict[str, float]:
    """
    How many times as quick, from measurements taken in turn.

    :param slow: Seconds of the alternative, or whatever is in proportion to them
    :param quick: Seconds of ours, in the same rounds
    :return: Median, least and largest ratio of a round
    """
    ratios = [a / b for a, b in zip(slow, quick, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def row(what: str, ours: str, other: str, ratios: Mapping[str, float], bar: str = "") -> dict[str, Any]:
    """
    A row of the table in docs/speed.md.

    :param what: What is measured
    :param ours: Our figure, with its unit
    :param other: The alternative and its figure
    :param ratios: Of :func:`ratio`
    :param bar: What was to be reached
    :return: The row
    """
    return {"what": what, "ours": ours, "other": other, "ratio": dict(ratios), "bar": bar}


def save(name: str, rows: Sequence[dict[str, Any]], raw: Mapping[str, Any]) -> None:
    """
    Write what a benchmark measured, and show its rows.

    :param name: Name of the benchmark
    :param rows: Of :func:`row`
    :param raw: Every single measurement
    """
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": _processor(), "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    content = {"machine": machine, "rows": list(rows), "raw": dict(raw)}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for entry in rows:
        print(table_line(entry), flush=True)


def table_line(entry: Mapping[str, Any]) -> str:
    """
    :param entry: Of :func:`row`
    :return: A line of a Markdown table
    """
    ratios = entry["ratio"]
    spread = f"**{ratios['median']:.2f}** ({ratios['min']:.2f}-{ratios['max']:.2f})"
    return f"| {entry['what']} | {entry['ours']} | {entry['other']} | {spread} | {entry['bar']} |"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()

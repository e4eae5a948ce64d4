"""The page of a report: text, tables, pictures and films in one file that needs no network."""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import takewhile
from typing import Any

import numpy as np

from ...common.version import __version__
from ...evaluation.result import EvaluationResult, EvaluationSummary
from .aggregates import bootstrap_interval, interquartile_mean
from .charts import COLORS, bars, curves
from .run_log import RunLog

#: What a file of ours begins with
MARK = '<!doctype html>\n<meta name="generator" content="sb3-vla report">'
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #f6f7f9; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
section { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: .4rem 1.2rem 1rem; margin: 1rem 0; }
h1 { font-size: 1.6rem; margin: .6rem 0 0; } h2 { font-size: 1.15rem; margin: .6rem 0 .4rem; }
p, li { max-width: 46rem; } .quiet { color: #667; font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #eceef1; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
tr.sum td { font-weight: 600; border-top: 1px solid #aab; } td.differs { background: #fff3d6; }
code, pre { font: .85rem ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f7f9; padding: .6rem; border-radius: 6px; }
h1, code, .legend, figcaption { overflow-wrap: anywhere; } td:first-child code { white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.grid svg, .grid img { width: 100%; height: auto; } figure { margin: 0; }
.legend span { margin-right: 1.2rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
figcaption { font-size: .85rem; } .tabs > input { position: absolute; opacity: 0; }
.tabs > label { padding: .2rem .8rem; border: 1px solid #ccd; border-radius: 1rem; cursor: pointer; margin-right: .3rem; }
.tabs > input:checked + label { background: #0072B2; border-color: #0072B2; color: #fff; }
.tabs > input:focus-visible + label { outline: 2px solid #E69F00; }
.tabs > div { display: none; margin-top: .6rem; }
.tabs > input:nth-of-type(1):checked ~ div:nth-of-type(1),
.tabs > input:nth-of-type(2):checked ~ div:nth-of-type(2) { display: block; }
"""


def make_page(runs: Sequence[RunLog], command: str, when: str, refresh: int | None = None) -> str:
    """
    :param runs: At least one
    :param command: The command that makes the report
    :param when: When it is made, for the reader
    :param refresh: Seconds after which the page loads itself again, if it is written again
    :return: The page
    """
    experiments = group_by_experiment(runs)
    sections = [
        ("Runs", _overview(runs)),
        ("Results", _results(experiments)),
        ("By task", _by_task(experiments)),
        ("Learning curves", _curves(experiments)),
        ("Films", _films(experiments)),
        ("What the demonstration buffer holds", _buffers(runs)),
        ("Settings that differ", _differences([dict(run.config) for run in runs], runs)),
        ("Software", _differences([dict(run.versions) for run in runs], runs, every=True)),
        ("Commands", "".join(f"<p>{escape(run.name)}</p><pre>{escape(run.command)}</pre>" for run in runs)),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections if text)
    reload = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    title = ", ".join(experiments)
    return (
        f'{MARK}<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">{reload}'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main><h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(when)}, sb3-vla {__version__}: <code>{escape(command)}</code></p>\n{body}\n</main></html>\n'
    )


def group_by_experiment(runs: Sequence[RunLog]) -> dict[str, list[RunLog]]:
    """
    :param runs: Runs
    :return: Those whose settings differ by the seed alone, by what their names have in common; of runs that have the seed in
        common, too, each is in a group of its own
    """
    groups: dict[tuple[str, int], list[RunLog]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for run in runs:
        this = run.experiment, str(run.config.get("seed"))
        groups.setdefault((run.experiment, seen[this]), []).append(run)
        seen[this] += 1
    named: dict[str, list[RunLog]] = {}
    for seeds in groups.values():
        name = seeds[0].name if len(seeds) == 1 else f"{_common_beginning([run.name for run in seeds])} ({len(seeds)} seeds)"
        named[name if name not in named else f"{name} {len(named) + 1}"] = seeds
    return named


def _common_beginning(names: Sequence[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return re.sub(r"[/_-]*(seed)?[/_-]*$", "", "".join(letters[0] for letters in same)) or names[0]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], n_text: int = 1, last: bool = False) -> str:
    """
    :param head: Names of the columns
    :param rows: Their cells, HTML
    :param n_text: How many columns from the left hold text
    :param last: Whether the last row sums up the others
    :return: The table
    """
    kinds = ["" if number < n_text else ' class="number"' for number in range(len(head))]
    lines = ["<tr>" + "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True)) + "</tr>"]
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{' class=sum' if last and number == len(rows) - 1 else ''}>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _overview(runs: Sequence[RunLog]) -> str:
    rows = []
    for run in runs:
        since = _duration(run.seconds_since / 3600)
        state = "complete" if run.is_complete else f"not complete, last wrote {since} ago"
        hours = run.progress.get("hours")
        steps = run.progress.get("time/primitive_steps")
        rows.append(
            [
                escape(run.name),
                state,
                escape(str(run.config.get("seed", ""))),
                "" if run.done is None else f"{run.done:.0%}",
                "" if steps is None else f"{np.nanmax(steps):,.0f}",
                "" if hours is None else _duration(float(np.nanmax(hours))),
            ]
        )
    return _table(["run", "state", "seed", "trained", "primitive steps", "time of training"], rows, n_text=2)


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"


def _stages(experiments: Mapping[str, Sequence[RunLog]]) -> Iterator[tuple[str, str, list[tuple[RunLog, EvaluationResult]]]]:
    """:return: What was evaluated in an experiment, with each run's evaluation"""
    for name, seeds in experiments.items():
        for stage in dict.fromkeys(stage for run in seeds for stage in run.results):
            yield name, stage, [(run, run.results[stage]) for run in seeds if stage in run.results]


def _results(experiments: Mapping[str, Sequence[RunLog]]) -> str:
    rows = []
    for _, stage, evaluated in _stages(experiments):
        for run, result in evaluated:
            rows.append([escape(run.name), escape(stage), *_summary_cells(result.overall), str(result.overall.n_episodes)])
    if not rows:
        return '<p class="quiet">No evaluation yet: there is no results.json.</p>'
    head = ["run", "policy", "success (95 % interval)", "steps to success", "episodes"]
    text = _table(head, rows, n_text=2)
    text += '<p class="quiet">Means over tasks; Wilson\'s interval of all episodes. Primitive steps of successes.</p>'
    together = [
        [escape(name), escape(stage), *_aggregate_cells([result for _, result in evaluated]), str(len(evaluated))]
        for name, stage, evaluated in _stages(experiments)
        if len(evaluated) > 1
    ]
    if together:
        head = ["experiment", "policy", "success, interquartile mean", "steps, interquartile mean", "runs"]
        text += _table(head, together, n_text=2)
        text += (
            '<p class="quiet">The mean of the middle half: of success over all runs and tasks, of steps over runs, each the '
            "mean of its tasks. With the 95 % interval of a bootstrap over runs, for success stratified by task (Agarwal et "
            "al. 2021).</p>"
        )
    return text


def _summary_cells(summary: EvaluationSummary) -> tuple[str, str]:
    steps = "\N{EN DASH}" if summary.steps_to_success is None else f"{summary.steps_to_success:.1f}"
    return f"{summary.success:.2f} ({summary.success_low:.2f}\N{EN DASH}{summary.success_high:.2f})", steps


def _aggregate_cells(results: Sequence[EvaluationResult]) -> tuple[str, str]:
    cells = []
    for field, places in (("success", 2), ("steps_to_success", 1)):
        scores = np.array(
            [[getattr(result.tasks.get(task), field, None) for task in results[0].tasks] for result in results], np.float64
        )
        if not np.isfinite(scores).all():  # a task without a success has no steps
            cells.append("\N{EN DASH}")
            continue
        if field == "steps_to_success":  # on a scale of each task's own: the middle half would be some of the tasks
            scores = scores.mean(axis=1, keepdims=True)
        low, high = bootstrap_interval(scores) or (np.nan, np.nan)
        cells.append(f"{interquartile_mean(scores):.{places}f} ({low:.{places}f}\N{EN DASH}{high:.{places}f})")
    return cells[0], cells[1]


def _by_task(experiments: Mapping[str, Sequence[RunLog]]) -> str:
    stages = list(_stages(experiments))
    tasks = list(dict.fromkeys(task for _, _, evaluated in stages for _, result in evaluated for task in result.tasks))
    if not tasks:
        return ""
    success, steps = {}, {}
    for name, stage, evaluated in stages:
        label = f"{name}, {stage}" if len(experiments) > 1 else stage
        summaries = [[result.tasks[task] for _, result in evaluated if task in result.tasks] for task in tasks]
        success[label] = [_success_bar(of_task) for of_task in summaries]
        steps[label] = [_steps_bar(of_task) for of_task in summaries]
    names = [task or "(no task)" for task in tasks]
    pictures = bars(names, success, "Success"), bars(names, steps, "Primitive steps to success")
    several = [len(evaluated) > 1 for *_, evaluated in stages]
    notes = ["Means over seeds, with their range."] if any(several) else []
    if not all(several):
        notes.append("Success of a single run with its 95 % interval.")
    return f'{_legend(list(success))}{_grid(pictures)}<p class="quiet">{" ".join(notes)}</p>'


def _success_bar(summaries: Sequence[EvaluationSummary]) -> tuple[float, float, float] | None:
    if not summaries:
        return None
    rates = [summary.success for summary in summaries]
    if len(summaries) == 1:
        return rates[0], summaries[0].success_low, summaries[0].success_high
    return float(np.mean(rates)), min(rates), max(rates)


def _steps_bar(summaries: Sequence[EvaluationSummary]) -> tuple[float, float, float] | None:
    steps = [summary.steps_to_success for summary in summaries if summary.steps_to_success is not None]
    return (float(np.mean(steps)), min(steps), max(steps)) if steps else None


def _curves(experiments: Mapping[str, Sequence[RunLog]]) -> str:
    over_steps, over_hours = curves(experiments, "steps"), curves(experiments, "hours")
    if not over_steps:
        return ""
    seeds = any(len(runs) > 1 for runs in experiments.values())
    note = '<p class="quiet">Lines are means over seeds, areas their range, as far as all have come.</p>' if seeds else ""
    return (
        f"{_legend(list(experiments)) if len(experiments) > 1 else ''}"
        '<div class="tabs"><input type="radio" name="over" id="steps" checked><label for="steps">over steps</label>'
        '<input type="radio" name="over" id="hours"><label for="hours">over hours</label>'
        f"<div>{_grid(over_steps)}</div><div>{_grid(over_hours)}</div></div>{note}"
    )


def _legend(names: Sequence[str]) -> str:
    colors = (COLORS[number % len(COLORS)] for number in range(len(names)))
    pairs = zip(colors, names, strict=True)
    marks = (f'<span><i style="background: {color}"></i>{escape(name)}</span>' for color, name in pairs)
    return f'<p class="legend">{"".join(marks)}</p>'


def _grid(items: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(items)}</div>'


def _films(experiments: Mapping[str, Sequence[RunLog]]) -> str:
    figures = []
    for seeds in experiments.values():
        run = next((run for run in seeds if run.films), None)  # those of one seed are enough
        for film, path in run.films.items() if run else ():
            data = base64.b64encode(path.read_bytes()).decode()
            caption = escape(f"{film}, {run.name}" if run and len(experiments) > 1 else film)
            source = f"data:image/gif;base64,{data}"
            figures.append((film, f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'))
    figures.sort(key=lambda figure: figure[0])  # the same task of all experiments side by side
    return _grid([figure for _, figure in figures]) if figures else ""


def _buffers(runs: Sequence[RunLog]) -> str:
    rows = []
    prefix = "demos/mean_steps/"
    tasks = sorted({name.removeprefix(prefix) for run in runs for name in run.progress if name.startswith(prefix)})
    for run in runs:
        if "demos/pairs" in run.progress:
            columns = ["demos/episodes", "demos/pairs", "demos/mean_steps", *(prefix + task for task in tasks)]
            rows.append([escape(run.name), *(_first_and_last(run.progress.get(column)) for column in columns)])
    if not rows:
        return ""
    note = '<p class="quiet">At first → at last; steps are the mean primitive steps of its episodes.</p>'
    return _table(["run", "episodes", "pairs", "steps", *tasks], rows) + note


def _first_and_last(values: Any) -> str:
    if values is None:
        return ""
    known = values[np.isfinite(values)]
    first, last = (f"{value:,.0f}" for value in (known[0], known[-1]))
    return last if first == last else f"{first} → {last}"


def _differences(settings: Sequence[Mapping[str, Any]], runs: Sequence[RunLog], every: bool = False) -> str:
    """
    :param settings: Of each run
    :param runs: The runs
    :param every: Whether to show what is the same, too
    :return: A table of what differs
    """
    rows = []
    for key in dict.fromkeys(key for run in settings for key in run):
        values = [run.get(key, "") for run in settings]
        differs = any(value != values[0] for value in values)
        if differs or every:
            shown = [escape("" if value is None else str(value)) for value in values]
            if differs or len(set(shown)) > 1:
                cells = [f"<code>{value}</code>" for value in shown]
            else:
                cells = [f"<code>{shown[0]}</code>", *("″" for _ in shown[1:])]
            rows.append([f"<code>{escape(key)}</code>", *cells])
    return _table(["", *(run.name for run in runs)], rows, n_text=1 + len(runs)) if rows else ""

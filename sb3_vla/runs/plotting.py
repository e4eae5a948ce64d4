"""Pictures of a run: how it learned, and what it gained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sb3_vla_envs.durable_files import replacing

from ..evaluation.result import EvaluationResult, EvaluationSummary
from .log_columns import read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_X_COLUMN = "time/primitive_steps"
_DPI = 110
_GREY = "#8a8a8a"
_MAX_TASKS_IN_LEGEND = 10
# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart
_BEFORE, _AFTER = "#E69F00", "#0072B2"
_LEFT, _RIGHT = "#0072B2", "#D55E00"
_TASK_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#B8A800", "#7A5195", "#6B4C2A", "#2F9E9E", "#B0B0B0")


@dataclass(frozen=True)
class _Panel:
    """
    One plot of the learning curves.

    :param title: what it is about
    :param left: column drawn on the left axis, and that axis' label
    :param right: column drawn on the right axis, and that axis' label
    :param summary: field of ``EvaluationSummary`` that says the same of an evaluation; such a column is logged for each
        task too (``<left column>/<task>``)
    """

    title: str
    left: tuple[str, str]
    right: tuple[str, str] | None = None
    summary: str | None = None


_PANELS = (
    _Panel("Success in rollouts", ("rollout/success_rate", "success rate"), summary="success"),
    _Panel("Steps to success in rollouts", ("rollout/steps_to_success", "primitive steps"), summary="steps_to_success"),
    _Panel("Self behaviour cloning", ("train/bc_loss", "BC loss"), ("train/bc_weight", "BC weight")),
    _Panel("Size of the updates", ("train/approx_kl", "approximate KL"), ("train/clip_fraction", "clip fraction")),
    _Panel("Critic", ("train/explained_variance", "explained variance")),
    _Panel("Demonstration buffer", ("demos/mean_steps", "mean primitive steps"), ("demos/episodes", "episodes")),
)


def plot_learning_curves(progress_csv: str | Path, path: str | Path, baseline: EvaluationResult | None = None) -> None:
    """
    Draw what SB3's logger recorded in training over primitive steps, a panel a topic; what wasn't logged is left out.

    :param progress_csv: the file of SB3's ``CSVOutputFormat``
    :param path: the PNG to write
    :param baseline: evaluation from before training (SFT), drawn as dashed lines
    :raises FileNotFoundError: If there is no such log
    :raises ValueError: If the log is damaged, or has no ``time/primitive_steps`` or nothing to draw over it
    """
    columns = _read_progress(progress_csv)
    panels = [panel for panel in _PANELS if any(column in columns for column in _columns_of(panel))]
    if not panels:
        wanted = [column for panel in _PANELS for column in _columns_of(panel)]
        raise ValueError(f"'{progress_csv}' holds nothing to draw: it has {sorted(columns)}, but none of {wanted}.")
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(4.4 * n_columns, 3.1 * n_rows + 0.5)
    tasks = _tasks_of(columns)
    task_colors = {task: _TASK_COLORS[i] if len(tasks) <= _MAX_TASKS_IN_LEGEND else _GREY for i, task in enumerate(tasks)}
    handles: dict[str, Any] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(n_rows, n_columns, number)
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("primitive steps (thousands)")
        tidy(axes)
        if panel.summary:
            handles |= _draw_tasks(axes, panel, columns, task_colors, baseline)
        else:
            _draw_pair(axes, panel, columns)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def plot_comparison(
    before: EvaluationResult,
    after: EvaluationResult,
    path: str | Path,
    labels: tuple[str, str] = ("SFT", "post-trained"),
) -> None:
    """
    Draw two evaluations as bars, a pair a task and one for the mean: success with its 95 % interval, and steps to success.

    :param before: the first evaluation
    :param after: the second one
    :param path: the PNG to write
    :param labels: what to call them
    """
    tasks = list(dict.fromkeys([*before.tasks, *after.tasks]))
    names = [*(task or "(no task)" for task in tasks), "mean"]
    figure = new_figure(10.0, 0.55 * len(names) + 1.7)
    axes_success, axes_steps = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(names), dtype=np.float64)
    for result, label, color, offset in ((before, labels[0], _BEFORE, -0.19), (after, labels[1], _AFTER, 0.19)):
        summaries = [*(result.tasks.get(task) for task in tasks), result.overall]
        _draw_success_bars(axes_success, rows + offset, summaries, color, label)
        _draw_steps_bars(axes_steps, rows + offset, summaries, color)
    axes_success.set_yticks(rows, names)
    axes_success.invert_yaxis()  # shared: the first task on top in both
    axes_success.set_xlim(0.0, 1.05)
    axes_success.set_xlabel("success rate, 95 % interval")
    axes_steps.set_xlabel("mean primitive steps to success")
    axes_steps.margins(x=0.12)  # room for the numbers
    for axes in (axes_success, axes_steps):
        tidy(axes)
        axes.grid(visible=False, axis="y")
        axes.axhline(len(tasks) - 0.5, color=_GREY, linewidth=0.8)  # the mean is no task
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _read_progress(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """
    :param path: the file of SB3's ``CSVOutputFormat``
    :return: its columns (:func:`~sb3_vla.runs.log_columns.read_columns`), of the rows that tell the number of primitive steps
    """
    columns = read_columns(path)
    if _X_COLUMN not in columns:
        raise ValueError(
            f"'{path}' has no row with '{_X_COLUMN}', which the curves are drawn over. "
            "Give the progress.csv of a PPOSelfBC training that has finished at least one rollout."
        )
    rows = np.isfinite(columns[_X_COLUMN])
    return {key: values[rows] for key, values in columns.items() if np.isfinite(values[rows]).any()}


def _columns_of(panel: _Panel) -> list[str]:
    return [panel.left[0], *([panel.right[0]] if panel.right else [])]


def _tasks_of(columns: Mapping[str, Any]) -> list[str]:
    prefixes = [f"{panel.left[0]}/" for panel in _PANELS if panel.summary]
    return sorted({key.removeprefix(prefix) for prefix in prefixes for key in columns if key.startswith(prefix)})


def _draw_tasks(
    axes: "Axes",
    panel: _Panel,
    columns: Mapping[str, NDArray[np.float64]],
    task_colors: Mapping[str, str],
    baseline: EvaluationResult | None,
) -> dict[str, Any]:
    """
    :param axes: where to draw
    :param panel: what to draw
    :param columns: of the log
    :param task_colors: colour of each task
    :param baseline: evaluation from before training
    :return: what the legend should show, by label
    """
    column, label = panel.left
    handles: dict[str, Any] = {}
    for task, color in task_colors.items():
        if f"{column}/{task}" in columns:
            name = task if len(task_colors) <= _MAX_TASKS_IN_LEGEND else "single tasks"
            handles[name] = _draw_line(axes, columns, f"{column}/{task}", color=color, linewidth=1.2)
    if column in columns:
        handles["all tasks"] = _draw_line(axes, columns, column, color="black", linewidth=2.2)
    level = getattr(baseline.overall, panel.summary) if baseline and panel.summary else None
    if level is not None:
        handles["evaluation before training"] = axes.axhline(level, color=_GREY, linestyle="--", linewidth=1.5)
    axes.set_ylabel(label)
    if panel.summary == "success":
        axes.set_ylim(-0.03, 1.03)
    return handles


def _draw_pair(axes: "Axes", panel: _Panel, columns: Mapping[str, NDArray[np.float64]]) -> None:
    """
    :param axes: where to draw the left column; the right one gets a second y axis, each labelled in its line's colour
    :param panel: what to draw
    :param columns: of the log
    """
    sides = [(axes, panel.left, _LEFT)]
    if panel.right and panel.right[0] in columns:
        sides.append((axes.twinx(), panel.right, _RIGHT))
    for side, (column, label), color in sides:
        if column in columns:
            _draw_line(side, columns, column, color=color, linewidth=1.6)
        side.set_ylabel(label, color=color)
        side.tick_params(axis="y", colors=color)
        side.spines["top"].set_visible(False)
    if panel.left[0] == "train/explained_variance":
        axes.axhline(0.0, color=_GREY, linewidth=0.8)
        # An untrained critic reaches any negative value, next to which nothing else could be seen.
        axes.set_ylim(max(-1.0, float(np.nanmin(columns[panel.left[0]])) - 0.05), 1.05)


def _draw_line(axes: "Axes", columns: Mapping[str, NDArray[np.float64]], column: str, **style: Any) -> Any:
    values = columns[column]
    logged = np.isfinite(values)  # SB3 logs some values less often than others
    (line,) = axes.plot(columns[_X_COLUMN][logged] / 1000.0, values[logged], **style)
    if logged.sum() == 1:
        line.set_marker("o")  # a line of one point can't be seen
    return line


def _draw_success_bars(
    axes: "Axes", rows: NDArray[np.float64], summaries: list[EvaluationSummary | None], color: str, label: str
) -> None:
    known = [(row, summary) for row, summary in zip(rows, summaries, strict=True) if summary is not None]
    success = np.array([summary.success for _, summary in known])
    low = np.array([summary.success_low for _, summary in known])
    high = np.array([summary.success_high for _, summary in known])
    # The mean over tasks of different numbers of episodes may lie outside the interval of all episodes pooled.
    errors = np.maximum(np.stack([success - low, high - success]), 0.0)
    style = {"elinewidth": 1.2, "capsize": 2.5, "ecolor": "#333333"}
    axes.barh([row for row, _ in known], success, height=0.36, color=color, label=label, xerr=errors, error_kw=style)


def _draw_steps_bars(axes: "Axes", rows: NDArray[np.float64], summaries: list[EvaluationSummary | None], color: str) -> None:
    for row, summary in zip(rows, summaries, strict=True):
        steps = None if summary is None else summary.steps_to_success
        if steps is not None:
            bars = axes.barh([row], [steps], height=0.36, color=color)
            axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        elif summary is not None:
            axes.text(0.0, row, " no success", va="center", fontsize=8, color=_GREY)


def new_figure(width: float, height: float) -> "Figure":
    """
    :param width: inches
    :param height: inches
    :return: an empty figure outside pyplot's global state, which would keep every figure and may want a display
    :raises ImportError: If matplotlib isn't installed
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "sb3-vla[cli]".') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes") -> None:
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)

"""The pictures of a report, as SVG that stands in the page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..plotting import new_figure, tidy
from .run_log import Columns, RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#6B4C2A")
_N_POINTS = 200
_WIDTH = 4.7


@dataclass(frozen=True)
class Panel:
    """
    One plot of curves.

    :param title: What it shows
    :param log: ``"progress"`` or ``"validation"``
    :param column: Of that log
    :param is_rate: Whether its numbers lie in 0..1
    """

    title: str
    log: str
    column: str
    is_rate: bool = False


PANELS = (
    Panel("Success in validation", "validation", "success", is_rate=True),
    Panel("Steps of an episode in validation", "validation", "episode_steps"),
    Panel("Success in rollouts", "progress", "rollout/success_rate", is_rate=True),
    Panel("Steps to success in rollouts", "progress", "rollout/steps_to_success"),
    Panel("Explained variance of the critic", "progress", "train/explained_variance"),
    Panel("KL of an update, of a chunk", "progress", "train/approx_kl"),
    Panel("Loss of imitation", "progress", "train/bc_loss"),
    Panel("Steps of the demonstrations held", "progress", "demos/mean_steps"),
)
#: What curves are drawn over: the column of each log that says it
AXES = {
    "steps": {"progress": "time/primitive_steps", "validation": "primitive_steps"},
    "hours": {"progress": "hours", "validation": "hours"},
}


def curves(experiments: Mapping[str, Sequence[RunLog]], over: str) -> list[str]:
    """
    Draw what was logged in training: a line a run, or the mean of an experiment's seeds in their range.

    :param experiments: Runs that differ by the seed alone, by the experiment's name; each has the next of :data:`COLORS`
    :param over: Of :data:`AXES`
    :return: A picture for each of :data:`PANELS` of which something was logged
    """
    drawn = []
    for panel in PANELS:
        found = [[curve for run in seeds if (curve := _curve(run, panel, over))] for seeds in experiments.values()]
        longest = max((x[-1] for of_seeds in found for x, _ in of_seeds), default=None)
        if longest is None:
            continue
        unit, label = _unit(over, longest)
        figure = new_figure(_WIDTH, 2.5)
        axes = figure.add_subplot()
        axes.set_title(panel.title, fontsize=11, loc="left")
        axes.set_xlabel(label)
        tidy(axes)
        if panel.is_rate:
            axes.set_ylim(-0.03, 1.03)
        for number, of_seeds in enumerate(found):
            if of_seeds:
                _draw(axes, [(x / unit, y) for x, y in of_seeds], COLORS[number % len(COLORS)])
        drawn.append(_svg(figure, f"{over} {panel.column}"))
    return drawn


def bars(rows: Sequence[str], groups: Mapping[str, Sequence[tuple[float, float, float] | None]], title: str) -> str:
    """
    Draw bars, a group a row; each group has the next of :data:`COLORS`.

    :param rows: What the rows are called, from the top
    :param groups: Of each bar in a row its value, lower and upper end; ``None`` for no bar
    :param title: What the values are
    :return: The SVG
    """
    height = 0.8 / len(groups)
    figure = new_figure(_WIDTH, 0.17 * len(rows) * (len(groups) + 1) + 0.7)
    axes = figure.add_subplot()
    where = np.arange(len(rows)) - 0.4 + height / 2
    style: dict[str, Any] = {"elinewidth": 1.0, "capsize": 2, "ecolor": "#444"}
    for number, values in enumerate(groups.values()):
        known = [(row, *value) for row, value in zip(where + number * height, values, strict=True) if value is not None]
        if known:
            row, value, low, high = np.array(known).T
            errors = np.maximum([value - low, high - value], 0.0)
            axes.barh(row, value, height * 0.9, color=COLORS[number % len(COLORS)], xerr=errors, error_kw=style)
    axes.set_yticks(np.arange(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=11, loc="left")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    return _svg(figure, title)


def _unit(over: str, longest: float) -> tuple[float, str]:
    """:return: What to divide by, and what to write below"""
    if over == "hours":
        return (1.0, "hours of training") if longest >= 2 else (1 / 60, "minutes of training")
    return (1e6, "million primitive steps") if longest >= 1e6 else (1e3, "thousand primitive steps")


def _curve(run: RunLog, panel: Panel, over: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """:return: x and y, each of shape ``(points,)``, in the order of x; ``None`` if the run has no such numbers"""
    columns: Columns = getattr(run, panel.log)
    axis = AXES[over][panel.log]
    if panel.column not in columns or axis not in columns:
        return None
    known = np.isfinite(columns[panel.column]) & np.isfinite(columns[axis])
    x, y = columns[axis][known], columns[panel.column][known]
    order = np.argsort(x, kind="stable")
    return (x[order], y[order]) if len(x) else None


def _draw(axes: "Axes", found: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], color: str) -> None:
    """Seeds are drawn as far as all of them have come."""
    if len(found) == 1:
        (x, mean) = found[0]
    else:
        x = np.linspace(max(x[0] for x, _ in found), min(x[-1] for x, _ in found), _N_POINTS)
        curves = np.stack([np.interp(x, *curve) for curve in found])  # (seeds, points)
        mean = curves.mean(axis=0)
        axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.18, linewidth=0)
    axes.plot(x, mean, color=color, linewidth=1.5, marker="o" if len(x) < 3 else "", markersize=4)


def _svg(figure: "Figure", name: str) -> str:
    import matplotlib

    text = io.StringIO()
    # Letters stay letters, and names inside one picture are not those of another
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]

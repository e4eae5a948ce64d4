from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.logger import CSVOutputFormat, Logger

from sb3_vla.evaluation.result import EpisodeRecord, EvaluationResult
from sb3_vla.runs.plotting import plot_comparison, plot_learning_curves

TASKS = ("window-open-v3", "drawer-close-v3", "button-press-topdown-v3")


def write_progress(folder: Path, n_rows: int = 30, with_demos: bool = True) -> Path:
    """Logs as PPOSelfBC does, through SB3's own logger: no training values in the first row."""
    path = folder / "progress.csv"
    logger = Logger(str(folder), [CSVOutputFormat(str(path))])
    rng = np.random.default_rng(0)
    for row in range(n_rows):
        done = row / n_rows
        logger.record("time/primitive_steps", 4000 * (row + 1))
        logger.record("rollout/success_rate", 0.85 + 0.1 * done + rng.normal(0, 0.01))
        logger.record("rollout/steps_to_success", 82 - 15 * done + rng.normal(0, 0.5))
        for number, task in enumerate(TASKS):
            logger.record(f"rollout/success_rate/{task}", min(1.0, 0.8 + 0.08 * number + 0.1 * done))
            logger.record(f"rollout/steps_to_success/{task}", 75 + 8 * number - 15 * done)
        if row > 0:
            logger.record("train/bc_loss", 0.4 - 0.2 * done)
            logger.record("train/bc_weight", 0.1 + 0.3 * done)
            logger.record("train/approx_kl", 0.1 + rng.uniform(0, 0.05))
            logger.record("train/clip_fraction", 0.1 + rng.uniform(0, 0.05))
            logger.record("train/explained_variance", 0.9 - 8.0 * np.exp(-row))
        if with_demos:
            logger.record("demos/episodes", 40 + 3 * row)
            logger.record("demos/mean_steps", 74 - 12 * done)
        logger.dump(row)
    logger.close()
    return path


def evaluation(steps: dict[str, list[int | None]]) -> EvaluationResult:
    return EvaluationResult(
        [
            EpisodeRecord(task, goal, value is not None, value, value or 500, float(value is not None))
            for task, values in steps.items()
            for goal, value in enumerate(values)
        ]
    )


BEFORE = evaluation({TASKS[0]: [80] * 20 + [None] * 5, TASKS[1]: [78] * 25, TASKS[2]: [90] * 24 + [None]})
AFTER = evaluation({TASKS[0]: [66] * 25, TASKS[1]: [60] * 25, TASKS[2]: [81] * 24 + [None]})


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def has_color(pixels: np.ndarray, color: str) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels.astype(int) - wanted).max(axis=2) < 8).sum() > 50)


def test_learning_curves_of_a_whole_run(tmp_path: Path) -> None:
    plot_learning_curves(write_progress(tmp_path), tmp_path / "curves.png", BEFORE)
    pixels = read_png(tmp_path / "curves.png")
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1200  # two rows of three panels
    for third in np.array_split(pixels, 3, axis=1):
        for half in np.array_split(third, 2, axis=0):
            assert (half < 200).any(axis=2).mean() > 0.01  # something is drawn in each
    assert has_color(pixels, "#000000")


def test_only_panels_that_were_logged_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_text("time/primitive_steps,train/explained_variance,rollout/name\n1000,0.5,x\n2000,0.6,y\n")
    plot_learning_curves(path, tmp_path / "curves.png")
    pixels = read_png(tmp_path / "curves.png")
    assert pixels.shape[1] < 600  # one panel
    assert has_color(pixels, "#0072B2")


def test_a_single_row_is_visible(tmp_path: Path) -> None:
    plot_learning_curves(write_progress(tmp_path, n_rows=1), tmp_path / "curves.png")
    assert has_color(read_png(tmp_path / "curves.png"), "#000000")


def test_fifty_tasks_get_no_legend_each(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    keys = [f"rollout/success_rate/task-{number}" for number in range(50)]
    lines = [",".join(["time/primitive_steps", "rollout/success_rate", *keys])]
    lines += [",".join([str(1000 * row), "0.5", *(str(0.01 * (number + row)) for number in range(50))]) for row in range(4)]
    path.write_text("\n".join(lines))
    plot_learning_curves(path, tmp_path / "curves.png")
    assert read_png(tmp_path / "curves.png").shape[0] < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time/iterations\n1\n", "time/primitive_steps"),
        ("", "time/primitive_steps"),
        ("time/primitive_steps,train/loss\n1,2\n", "nothing to draw"),
    ],
)
def test_logs_without_curves_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "progress.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        plot_learning_curves(tmp_path / "progress.csv", tmp_path / "curves.png")
    with pytest.raises(FileNotFoundError):
        plot_learning_curves(tmp_path / "missing.csv", tmp_path / "curves.png")


def test_comparison_shows_both_evaluations(tmp_path: Path) -> None:
    plot_comparison(BEFORE, AFTER, tmp_path / "comparison.png")
    pixels = read_png(tmp_path / "comparison.png")
    for half in np.array_split(pixels, 2, axis=1):
        assert has_color(half, "#E69F00") and has_color(half, "#0072B2")


def test_comparison_of_different_tasks_and_no_success(tmp_path: Path) -> None:
    plot_comparison(evaluation({"a": [None, None]}), evaluation({"a": [5, 6], "b": [7]}), tmp_path / "comparison.png")
    left = np.array_split(read_png(tmp_path / "comparison.png"), 2, axis=1)[0]
    assert has_color(left, "#0072B2")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from sb3_vla.evaluation.films import Recording, record_task_episode
from sb3_vla.evaluation.gif import gif_paths, record_tasks, save_comparison_gif, save_gif
from sb3_vla_envs import make_vla_env

GREEN = (110, 220, 120)
ORANGE = (255, 140, 105)
INSTRUCTION = "push the block to the right side of the table"


def record(length: int, stride: int = 1, size: int = 64) -> Recording:
    """A block slides right, one pixel a step; it arrives after ``length`` steps, unless the 40 allowed are over before."""
    end = min(length, 40)
    steps = [step for step in range(end + 1) if step % stride == 0 or step == end]
    frames = [np.full((size, size, 3), 200, dtype=np.uint8) for _ in steps]
    for step, frame in zip(steps, frames, strict=True):
        frame[size // 2 :, step : step + 8] = (200, 30, 30)
    return Recording(frames, steps, INSTRUCTION, length if length <= 40 else None)


def read_gif(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(gif)]


def shows(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels - color).max(axis=2) < 40).sum() > 10)


def test_gif_has_a_frame_for_each_picture_below_a_caption(tmp_path: Path) -> None:
    recording = record(length=10, size=240)
    save_gif(recording, tmp_path / "episode.gif", fps=20)
    frames = read_gif(tmp_path / "episode.gif")
    assert len(frames) == 11
    assert frames[0].shape == (240 + 2 * 16 + 20, 240, 3)  # the instruction takes two lines
    for step in (0, 5, 10):
        assert np.abs(frames[step][-240:] - recording.frames[step]).max() < 16  # but for the palette
    assert not shows(frames[9][:52], GREEN)
    assert shows(frames[10][:52], GREEN)
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.info["duration"] == 50
        assert gif.info["loop"] == 0


def test_failure_is_marked_at_the_end(tmp_path: Path) -> None:
    save_gif(record(length=99, stride=10, size=240), tmp_path / "failure.gif")
    frames = read_gif(tmp_path / "failure.gif")
    assert [shows(frame[:52], ORANGE) for frame in frames] == [False] * 4 + [True]


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    save_gif(record(length=4, size=320), tmp_path / "small.gif", max_size=120)
    assert read_gif(tmp_path / "small.gif")[0].shape[1] == 120


def test_realistic_gif_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (30, 30, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    frames = [np.roll(still[80:140], 4 * step, axis=1) for step in range(60)]
    pictures = [np.concatenate([still[:80], moving, still[140:]]) for moving in frames]
    save_gif(Recording(pictures, list(range(0, 120, 2)), "open the window", 118), tmp_path / "episode.gif")
    assert (tmp_path / "episode.gif").stat().st_size < 1_000_000


def test_comparison_freezes_the_shorter_episode(tmp_path: Path) -> None:
    before, after = record(length=12, size=240), record(length=8, size=240)
    save_comparison_gif(before, after, ("SFT", "post-trained"), tmp_path / "both.gif")
    frames = read_gif(tmp_path / "both.gif")
    assert len(frames) == 13
    assert frames[0].shape[1] == 2 * 240 + 4
    assert np.array_equal(frames[8][:, 244:], frames[12][:, 244:])
    assert not np.array_equal(frames[8][:, :240], frames[12][:, :240])
    assert shows(frames[8][:52, 244:], GREEN) and not shows(frames[8][:52, :240], GREEN)


def test_gif_arguments_are_checked(tmp_path: Path) -> None:
    recording = record(length=2)
    with pytest.raises(ValueError, match="fps"):
        save_gif(recording, tmp_path / "a.gif", fps=100)
    with pytest.raises(ValueError, match="max_size"):
        save_comparison_gif(recording, recording, ("a", "b"), tmp_path / "a.gif", max_size=0)
    assert not list(tmp_path.iterdir())


class Constant:
    """A model that always does the same."""

    def __init__(self, env: Any) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        return np.full(self.action_space.shape, 0.5, dtype=np.float32), state


def test_tasks_of_a_suite_are_recorded_as_they_are_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    env = make_vla_env("window-open-v3", chunk_size=4)
    env.close()
    model: Any = Constant(env)

    (path,) = record_tasks(model, "window-open-v3", tmp_path / "gifs", "sft", horizon=10)
    assert path == tmp_path / "gifs" / "sft_window-open-v3.gif"
    frames = read_gif(path)
    assert len(frames) == 6  # after 0, 2, ... 10 steps
    assert frames[0].shape == (240 + 2 * 16 + 4, 240, 3)
    assert frames[0][36:].std() > 10  # a scene, not a blank
    moved = np.abs(frames[0][36:] - frames[5][36:]).max(axis=2) > 60
    assert 0.001 < moved.mean() < 0.5  # the arm, before a camera that stands still
    (again,) = record_tasks(model, "window-open-v3", tmp_path / "again", "sft", suite="metaworld", horizon=10)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match="gif exist already"):
        record_tasks(model, "window-open-v3", tmp_path / "gifs", "sft", horizon=10)
    with pytest.raises(ValueError, match="goal_index must be at least 0, got -1"):
        record_task_episode(model, "window-open-v3", goal_index=-1)


def test_files_are_named_after_the_tasks(tmp_path: Path) -> None:
    assert gif_paths("window-open-v3,reach-v3", tmp_path, "sft") == {
        "window-open-v3": tmp_path / "sft_window-open-v3.gif",
        "reach-v3": tmp_path / "sft_reach-v3.gif",
    }


def test_an_error_leaves_no_film_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def film(model: Any, task: str, *args: Any, **kwargs: Any) -> Recording:
        if task == "reach-v3":
            raise KeyboardInterrupt
        return record(4)

    monkeypatch.setattr("sb3_vla.evaluation.gif.record_task_episode", film)
    with pytest.raises(KeyboardInterrupt):
        record_tasks(None, "window-open-v3,reach-v3", tmp_path, "sft")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RenderCollection
from PIL import Image, ImageSequence

from sb3_vla.evaluation.films import Recording, record_episode, record_tasks, save_comparison_gif, save_gif
from sb3_vla_envs import ChunkedActionWrapper, make_vla_env

GREEN = (110, 220, 120)
ORANGE = (255, 140, 105)
INSTRUCTION = b"push the block to the right side of the table"


class SlidingBlock(gym.Env[Any, Any]):
    """A block slides right, one pixel a step; at ``options["length"]`` it has arrived."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # declared as an instance attribute by gym
    observation_space = spaces.Dict({"instruction": spaces.Box(0, 255, (64,), np.uint8)})
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, size: int = 64, horizon: int = 40) -> None:
        self.size, self.horizon = size, horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = (options or {}).get("length", 1000)
        self.position = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position += 1
        success = self.position == self.length
        info = {"is_success": success, **({"steps_to_success": self.position} if success else {})}
        return self._observation(), float(success), success, self.position == self.horizon, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = np.full((self.size, self.size, 3), 200, dtype=np.uint8)
        picture[self.size // 2 :, self.position : self.position + 8] = (200, 30, 30)
        return picture

    def _observation(self) -> dict[str, np.ndarray]:
        return {"instruction": np.frombuffer(INSTRUCTION.ljust(64, b"\0"), dtype=np.uint8)}


class Zeros:
    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        return np.zeros((4, 1), dtype=np.float32), state


def chunked(**kwargs: Any) -> gym.Env[Any, Any]:
    return ChunkedActionWrapper(RenderCollection(SlidingBlock(**kwargs)), chunk_size=4)


def record(length: int, stride: int = 1, **kwargs: Any) -> Recording:
    return record_episode(Zeros(), chunked(**kwargs), options={"length": length}, stride=stride)


def read_gif(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(gif)]


def shows(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels - color).max(axis=2) < 40).sum() > 10)


def test_each_primitive_step_is_a_picture() -> None:
    recording = record(length=10)  # chunks of 4, 4 and 2
    assert recording.steps == list(range(11))
    assert recording.steps_to_success == 10
    assert recording.instruction == INSTRUCTION.decode()
    for step, frame in zip(recording.steps, recording.frames, strict=True):
        assert frame[-1, step, 0] == 200 and frame[-1, step, 1] == 30  # the block stands where it then was


def test_stride_keeps_the_first_and_the_last_picture() -> None:
    assert record(length=9, stride=2).steps == [0, 2, 4, 6, 8, 9]
    assert record(length=10, stride=5).steps == [0, 5, 10]


def test_failure_is_recorded_to_the_horizon() -> None:
    recording = record(length=99, stride=10)
    assert recording.steps == [0, 10, 20, 30, 40]
    assert recording.steps_to_success is None


def test_environment_without_instruction_or_chunks() -> None:
    env = gym.wrappers.TransformObservation(
        RenderCollection(SlidingBlock(horizon=3)), lambda _: np.zeros(2, np.float32), spaces.Box(0, 1, (2,))
    )
    recording = record_episode(Zeros(), env)
    assert recording.instruction == ""
    assert recording.steps == [0, 2, 3]


def test_other_render_modes_and_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="rgb_array_list"):
        record_episode(Zeros(), ChunkedActionWrapper(SlidingBlock(), 4))
    with pytest.raises(ValueError, match="stride"):
        record(length=5, stride=0)


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


def test_metaworld_tasks_are_recorded_as_they_are_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    env = make_vla_env("window-open-v3", chunk_size=4)
    env.close()
    model: Any = Zeros()
    model.predict = lambda *args, **kwargs: (np.full((4, 4), 0.5, dtype=np.float32), None)
    model.observation_space, model.action_space = env.observation_space, env.action_space

    (path,) = record_tasks(model, "window-open-v3", tmp_path / "gifs", "sft", horizon=10)
    assert path == tmp_path / "gifs" / "sft_window-open-v3.gif"
    frames = read_gif(path)
    assert len(frames) == 6  # after 0, 2, ... 10 steps
    assert frames[0].shape == (240 + 2 * 16 + 4, 240, 3)
    assert frames[0][36:].std() > 10  # a scene, not a blank
    moved = np.abs(frames[0][36:] - frames[5][36:]).max(axis=2) > 60
    assert 0.001 < moved.mean() < 0.5  # the arm, before a camera that stands still

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RenderCollection

from sb3_vla.evaluation.films import Recording, record_episode
from sb3_vla_envs import ChunkedActionWrapper

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


def test_success_in_passing_is_success() -> None:
    class Passing(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, reward, _, truncated, info = self.env.step(action)
            return observation, reward, False, truncated, {"is_success": info["is_success"]}

    env = Passing(RenderCollection(SlidingBlock(horizon=8)))
    assert record_episode(Zeros(), env, options={"length": 3}).steps_to_success == 3

"""Where the time of a chunk goes, and what a VecEnv adds to it: python benchmarks/speed/chunk.py"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from measure import alternate, clock, ratio, row, save
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_vla import SharedMemoryVecEnv
from sb3_vla.runs.config import load_config
from sb3_vla.vec_env.make import preload_workers
from sb3_vla_envs import make_vla_env

TASKS = load_config().tasks
PARTS = {"OpenGL": ("mjr_render", "mjr_readPixels"), "MuJoCo": ("mj_step", "mj_forward")}
N_ENVS, N_CHUNKS, N_ROUNDS = 16, 60, 5


def main() -> None:
    """Take a chunk apart, and run environments that cost little under either VecEnv."""
    preload_workers()
    shares = _milliseconds_of_a_chunk()
    print({part: round(value, 2) for part, value in shares.items()})
    rows, raw = [], {}
    for milliseconds, n_steps in ((0.0, 400), (0.5, 60)):
        env_fns = [partial(PicturesEnv, milliseconds)] * N_ENVS
        envs: dict[str, VecEnv] = {"other": SubprocVecEnv(list(env_fns)), "ours": SharedMemoryVecEnv(env_fns)}
        for env in envs.values():
            env.reset()
        seconds = alternate({name: clock(partial(_play, env, n_steps)) for name, env in envs.items()}, N_ROUNDS)
        for env in envs.values():
            env.close()
        rates = {name: N_ENVS * n_steps / statistics.median(values) for name, values in seconds.items()}
        what = f"steps of {milliseconds:g} ms with two 96-px pictures, 16 environments"
        other = f"SB3's `SubprocVecEnv`, {rates['other']:.0f} a second"
        rows.append(row(what, f"{rates['ours']:.0f} a second", other, ratio(seconds["other"], seconds["ours"])))
        raw[what] = seconds
    save("chunk", rows, {**raw, "milliseconds_of_a_chunk": shares})


class PicturesEnv(gym.Env[Any, Any]):
    """
    Two pictures an observation, for a given amount of work.

    :param milliseconds: Work of a step
    """

    observation_space = spaces.Dict({name: spaces.Box(0, 255, (96, 96, 3), np.uint8) for name in ("a", "b")})
    action_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1000
        self.observation = {name: np.zeros((96, 96, 3), np.uint8) for name in ("a", "b")}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The same pictures each time."""
        return self.observation, {}

    def step(self, action: Any) -> Any:
        """Work, in vain."""
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return self.observation, 0.0, False, False, {}


def _milliseconds_of_a_chunk() -> dict[str, float]:
    """By part, in one process, mean over the quickstart's tasks, with both cameras."""
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - start
            return result

        return run

    for part, names in PARTS.items():
        for name in names:
            setattr(mujoco, name, timed(part, getattr(mujoco, name)))
    envs = [make_vla_env(task, terminate_on_success=False) for task in TASKS]
    rng = np.random.default_rng(0)
    for env in envs:
        env.reset(seed=0)
        env.step(env.action_space.sample())
    spent.clear()
    start = time.perf_counter()
    for _ in range(N_CHUNKS):
        for env in envs:
            env.step(rng.uniform(-1, 1, (8, 4)).astype(np.float32))
    n = N_CHUNKS * len(envs)
    parts = {part: 1e3 * seconds / n for part, seconds in spent.items()}
    total = 1e3 * (time.perf_counter() - start) / n
    return {**parts, "Python": total - sum(parts.values()), "all": total}


def _play(env: VecEnv, n_steps: int) -> None:
    actions = np.zeros((N_ENVS, 4), np.float32)
    for _ in range(n_steps):
        env.step(actions)


if __name__ == "__main__":
    main()

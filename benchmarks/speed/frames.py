"""Frames and primitive steps against MetaWorld's own: python benchmarks/speed/frames.py"""

import multiprocessing
import os
import statistics
import warnings
from functools import partial
from multiprocessing.connection import Connection

import gymnasium as gym
import numpy as np
from measure import alternate, clock, ratio, row, save

from sb3_vla_envs import MT10, Camera, MetaWorldEnv, SceneRenderer

SIZE = 96
N_ROUNDS = 5
# How many of each in a round
N_FRAMES = {"metaworld": 2, "fast": 20, "plain": 10}
N_STEPS = 100


def main() -> None:
    """Draw and step every task of MT10, ours and MetaWorld's in turn."""
    raw = {task: _measure(task) for task in MT10}
    rows = []
    for ours, theirs, what, bar in (
        ("fast_frame", "metaworld_frame", f"{SIZE}-px frame, `fast`", "at least 25"),
        ("plain_frame", "metaworld_frame", f"{SIZE}-px frame, `plain`", ""),
        ("step", "metaworld_step", "primitive step, no picture", ""),
    ):
        # Mean over the tasks, of each round
        own, other = (
            [statistics.fmean(raw[task][name][i] for task in MT10) for i in range(N_ROUNDS)] for name in (ours, theirs)
        )
        label = "`step()`" if ours == "step" else "`render()`"
        figures = [f"{1e3 * statistics.median(seconds):.2f} ms" for seconds in (own, other)]
        rows.append(row(what, figures[0], f"MetaWorld's {label}, {figures[1]}", ratio(other, own), bar))
    save("frames", rows, raw)


def _measure(task: str) -> dict[str, list[float]]:
    """Seconds a frame and a step, by name."""
    env = MetaWorldEnv(task, terminate_on_success=False, horizon=10**9)
    env.reset(seed=0)
    renderers = {quality: SceneRenderer(env.model, [Camera("corner4", SIZE, SIZE)], quality) for quality in ("fast", "plain")}

    def draw(quality: str) -> None:
        for _ in range(N_FRAMES[quality]):
            renderers[quality].render(env.data)

    def step() -> None:
        for action in _actions():
            env.step(action)

    # MetaWorld's in a process of its own: two OpenGL contexts in one would spoil each other's pictures
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_metaworld, args=(task, there), daemon=True)
    process.start()
    seconds = alternate(
        {
            "metaworld_frame": partial(_ask, here, "frame"),
            "fast_frame": clock(partial(draw, "fast")),
            "plain_frame": clock(partial(draw, "plain")),
            "metaworld_step": partial(_ask, here, "step"),
            "step": clock(step),
        },
        N_ROUNDS,
    )
    process.kill()
    count = {"metaworld_frame": N_FRAMES["metaworld"], "fast_frame": N_FRAMES["fast"], "plain_frame": N_FRAMES["plain"]}
    return {name: [value / count.get(name, N_STEPS) for value in values] for name, values in seconds.items()}


def _ask(connection: Connection, what: str) -> float:
    connection.send(what)
    seconds: float = connection.recv()
    return seconds


def _metaworld(task: str, connection: Connection) -> None:
    """Time MetaWorld's own environment on demand."""
    os.environ.pop("LP_NUM_THREADS", None)  # our renderer has set it, and a child inherits it
    import metaworld  # noqa: F401  # registers its environments

    warnings.simplefilter("ignore")
    size = {"width": SIZE, "height": SIZE}
    env = gym.make("Meta-World/MT1", env_name=task, seed=0, render_mode="rgb_array", camera_name="corner4", **size)
    env.reset()
    simulator = env.unwrapped
    simulator.max_path_length = 10**9  # type: ignore[attr-defined]

    def draw() -> None:
        for _ in range(N_FRAMES["metaworld"]):
            env.render()

    def step() -> None:
        for action in _actions():
            simulator.step(action)

    ways = {"frame": clock(draw), "step": clock(step)}
    while True:
        connection.send(ways[connection.recv()]())


def _actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (N_STEPS, 4)).astype(np.float32)


if __name__ == "__main__":
    main()

"""Chunks a second from vectorised environments: python benchmarks/speed/vec_envs.py"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import metaworld  # noqa: F401  # registers its environments
import numpy as np
from measure import alternate, clock, ratio, row, save
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_vla import SharedMemoryVecEnv, make_vla_vec_env
from sb3_vla.runs.config import load_config
from sb3_vla_envs import Camera, make_env_fns

CHUNK_SIZE = 8
SCENE = Camera("corner4", 96, 96)
TASKS = load_config().tasks
N_ROUNDS = 5


def main() -> None:
    """Against MetaWorld's vector environment, against SB3's, and over numbers of environments and workers."""
    rows, raw = [], {}
    for measure in (_against_metaworld, _against_subproc):
        more_rows, raw[measure.__name__.strip("_")] = measure()
        rows += more_rows
    raw["scaling"] = _scaling()
    save("vec_envs", rows, raw)


def _against_metaworld() -> tuple[list[dict[str, Any]], Any]:
    """MT10, one scene camera, 10 environments; MetaWorld's draws at every primitive step."""
    theirs = gym.make_vec(
        "Meta-World/MT10",
        vector_strategy="async",
        seed=0,
        **dict(render_mode="rgb_array", camera_name="corner4", width=96, height=96),
    )
    ours = make_vla_vec_env("MT10", n_envs=10, chunk_size=CHUNK_SIZE, cameras=[SCENE])
    theirs.reset(seed=0)
    ours.reset()
    rng = np.random.default_rng(0)
    n_theirs, n_ours = 1, 25

    def play_theirs() -> None:
        for _ in range(n_theirs * CHUNK_SIZE):
            theirs.step(rng.uniform(-1, 1, (10, 4)).astype(np.float32))
            theirs.render()

    seconds = alternate({"metaworld": clock(play_theirs), "ours": clock(partial(_play, ours, n_ours))}, N_ROUNDS)
    theirs.close(terminate=True)
    ours.close()
    other, own = [s / (10 * n_theirs) for s in seconds["metaworld"]], [s / (10 * n_ours) for s in seconds["ours"]]
    what = "chunks of 8 steps with one 96-px picture, 10 environments (MT10)"
    label = f"MetaWorld's async vector environment, a picture a step, {_rate(other)}"
    return [row(what, _rate(own), label, ratio(other, own), "at least 60")], {"metaworld": other, "ours": own}


def _against_subproc() -> tuple[list[dict[str, Any]], Any]:
    """The same 16 environments with two cameras under either VecEnv."""
    env_fns = make_env_fns(TASKS, 16)
    envs = {"SubprocVecEnv": SubprocVecEnv(list(env_fns)), "SharedMemoryVecEnv": SharedMemoryVecEnv(env_fns, probe_steps=5)}
    for env in envs.values():
        env.reset()
    n = 60
    seconds = alternate({name: clock(partial(_play, env, n)) for name, env in envs.items()}, 2 * N_ROUNDS)
    memory = {name: _megabytes(env) for name, env in envs.items()}
    for env in envs.values():
        env.close()
    per_chunk = {name: [s / (n * 16) for s in values] for name, values in seconds.items()}
    other, own = per_chunk["SubprocVecEnv"], per_chunk["SharedMemoryVecEnv"]
    what = "chunks of 8 steps with both cameras, 16 environments"
    rows = [row(what, _rate(own), f"SB3's `SubprocVecEnv`, {_rate(other)}", ratio(other, own), "at least 1.3")]
    used = {name: [megabytes] for name, megabytes in memory.items()}
    figures = {name: f"{megabytes:.0f} MB" for name, megabytes in memory.items()}
    rows.append(
        row(
            "memory of their workers",
            figures["SharedMemoryVecEnv"],
            f"SB3's `SubprocVecEnv`, {figures['SubprocVecEnv']}",
            ratio(used["SubprocVecEnv"], used["SharedMemoryVecEnv"]),
        )
    )
    return rows, {"seconds_per_chunk": per_chunk, "megabytes": memory}


def _scaling() -> list[dict[str, float]]:
    """Chunks a second over numbers of environments and workers."""
    combinations = [(4, 1), (4, 2), (16, 1), (16, 2), (16, 4), (32, 2)]
    envs = {pair: SharedMemoryVecEnv(make_env_fns(TASKS, pair[0]), n_workers=pair[1]) for pair in combinations}
    for env in envs.values():
        env.reset()
    ways: dict[str, Callable[[], float]] = {
        f"{n} environments, {workers} workers": clock(partial(_play, env, 160 // n)) for (n, workers), env in envs.items()
    }
    seconds = alternate(ways, N_ROUNDS)
    scaling = []
    for (n, workers), values in zip(combinations, seconds.values(), strict=True):
        rate = 160 / statistics.median(values)
        scaling.append({"n_envs": n, "n_workers": workers, "chunks_per_second": round(rate, 1)})
        print(f"{n:3} environments in {workers} workers: {rate:.0f} chunks/s, {_megabytes(envs[n, workers]):.0f} MB")
        envs[n, workers].close()
    return scaling


def _play(env: VecEnv, n_steps: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        env.step(rng.uniform(-1, 1, (env.num_envs, CHUNK_SIZE, 4)).astype(np.float32))


def _rate(seconds: list[float]) -> str:
    return f"{1 / statistics.median(seconds):.3g} a second"


def _megabytes(env: Any) -> float:
    """Memory of a VecEnv's workers; what several share counts once (PSS)."""
    total = 0
    for process in env.processes:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


if __name__ == "__main__":
    main()

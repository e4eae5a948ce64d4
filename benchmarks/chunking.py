"""
Chunked against single actions under SB3's own PPO and SAC: same primitive steps, SB3's default hyperparameters (but for what
chunks change, SAC's first 1000 primitive steps at random, and LEARNING_RATE and GAMMA below), three seeds.

``make chunking`` (half an hour on two cores) runs what is not in results/chunking yet, two runs at a time, and
writes the docs' table and results/chunking/curves.png. A chunk of h actions is one timestep: PPO collects as many primitive
steps an update, SAC takes one gradient step a decision, both discount by gamma ** h.
"""

import argparse
import json
import multiprocessing
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_vla_envs import ChunkedActionWrapper

FOLDER = Path(__file__).parent.parent / "results" / "chunking"
PAGE = Path(__file__).parent.parent / "docs" / "environments.md"
# Of a primitive step. PPO's defaults do not learn Pendulum; these are rl-baselines3-zoo's
GAMMA = {("PPO", "Pendulum-v1"): 0.9}
LEARNING_RATE = {("PPO", "Pendulum-v1"): 1e-3}
N_EVALUATIONS = 10
N_EPISODES = 20
CHUNK_SIZES = {"drawer-close-v3": 4, "Pendulum-v1": 2}
# Primitive steps
BUDGETS = {
    ("SAC", "drawer-close-v3"): 24_000,
    ("SAC", "Pendulum-v1"): 10_000,
    ("PPO", "drawer-close-v3"): 160_000,
    ("PPO", "Pendulum-v1"): 160_000,
}
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One training run."""

    algorithm: str
    task: str
    chunk_size: int
    seed: int

    @property
    def gamma(self) -> float:
        """Discount factor of a primitive step."""
        return GAMMA.get((self.algorithm, self.task), 0.99)

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.algorithm.lower()}_{self.task}_chunk{self.chunk_size}_seed{self.seed}.json"


def make_env(run: Run, goal_split: str) -> gym.Env:
    """
    :param run: The run
    :param goal_split: ``"train"`` or ``"test"``, for MetaWorld
    :return: Pendulum, or a MetaWorld task from its state with the dense reward; its episodes of 200 steps go on after success,
        as ending them would make success a loss
    """
    if run.task == "Pendulum-v1":
        env: gym.Env = gym.make(run.task)
    else:
        settings = dict(reward="dense", terminate_on_success=False, horizon=200, goal_split=goal_split)
        env = gym.wrappers.FlattenObservation(gym.make(f"MetaWorldState/{run.task}", **settings))
    return Monitor(env) if run.chunk_size == 1 else ChunkedActionWrapper(Monitor(env), run.chunk_size, gamma=run.gamma)


def make_model(run: Run) -> BaseAlgorithm:
    """
    :param run: The run
    :return: SB3's algorithm with its defaults, but for what chunks change
    """
    learning_rate = LEARNING_RATE.get((run.algorithm, run.task), 3e-4)
    common: dict[str, Any] = dict(learning_rate=learning_rate, gamma=run.gamma**run.chunk_size, seed=run.seed, device="cpu")
    if run.algorithm == "PPO":
        return PPO("MlpPolicy", make_env(run, "train"), n_steps=2048 // run.chunk_size, **common)
    return SAC("MlpPolicy", make_env(run, "train"), learning_starts=1000 // run.chunk_size, **common)


class Evaluations(BaseCallback):
    """
    Evaluates ten times in a run, on goals that training does not see.

    :param run: The run
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.chunk_size = run.chunk_size
        self.every = BUDGETS[run.algorithm, run.task] // run.chunk_size // N_EVALUATIONS
        self.env = make_env(run, "test")
        self.curve: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            ends: list[dict[str, Any]] = []
            evaluate_policy(
                self.model,
                self.env,
                N_EPISODES,
                callback=lambda local, _: ends.append(local["info"]) if local["done"] else None,
            )
            point = {
                "primitive_steps": self.num_timesteps * self.chunk_size,
                "return": float(np.mean([info["episode"]["r"] for info in ends])),
            }
            if "is_success" in ends[0]:
                point["success_rate"] = float(np.mean([info["is_success"] for info in ends]))
            self.curve.append(point)
        return True


def train(run: Run) -> None:
    """
    :param run: What to run; its result is written to ``run.path``
    """
    th.set_num_threads(1)
    evaluations = Evaluations(run)
    model = make_model(run)
    start = time.process_time()
    model.learn(BUDGETS[run.algorithm, run.task] // run.chunk_size, callback=evaluations)
    result = {**run._asdict(), "cpu_seconds": round(time.process_time() - start, 1), "curve": evaluations.curve}
    run.path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(run, evaluations.curve[-1], flush=True)


def results() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """
    :return: What was run, by algorithm, task and chunk size: a result for each seed
    """
    grouped = defaultdict(list)
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        grouped[result["algorithm"], result["task"], result["chunk_size"]].append(result)
    return grouped


def scores(task: str, runs: list[dict[str, Any]]) -> NDArray[np.float64]:
    """
    :param task: The task
    :param runs: Results of its runs
    :return: Success rate, or the return where there is no success, ``(runs, evaluations)``
    """
    score = "return" if task == "Pendulum-v1" else "success_rate"
    return np.array([[point[score] for point in run["curve"]] for run in runs])


def table() -> str:
    """
    :return: The documentation's table: each seed's last evaluation, and the mean over all of them
    """
    lines = [
        "| algorithm, task | score | primitive steps | chunk | at the end, by seed | mean over training | CPU time |",
        "|---|---|---|---|---|---|---|",
    ]
    for (algorithm, task, chunk_size), runs in sorted(results().items()):
        values = scores(task, runs)
        kind, digits = ("return", 0) if task == "Pendulum-v1" else ("success", 2)
        at_the_end = ", ".join(f"{value:.{digits}f}" for value in values[:, -1])
        seconds = np.mean([run["cpu_seconds"] for run in runs])
        lines.append(
            f"| {algorithm}, {task} | {kind} | {BUDGETS[algorithm, task]:,} | {chunk_size} | {at_the_end} | "
            f"{values.mean():.{digits}f} | {seconds:.0f} s |"
        )
    return "\n".join(lines)


def plot(path: Path) -> None:
    """
    :param path: Where the learning curves go: mean over seeds, and their range
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(BUDGETS), figsize=(4 * len(BUDGETS), 3.4))
    grouped = results()
    for axis, (algorithm, task) in zip(axes, BUDGETS, strict=True):
        for chunk_size in (1, CHUNK_SIZES[task]):
            runs = grouped[algorithm, task, chunk_size]
            steps = [point["primitive_steps"] / 1000 for point in runs[0]["curve"]]
            values = scores(task, runs)
            label = "single actions" if chunk_size == 1 else f"chunks of {chunk_size}"
            (line,) = axis.plot(steps, values.mean(axis=0), marker="o", markersize=3, label=label)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())
        axis.set(title=f"{algorithm}, {task}", xlabel="primitive steps (thousands)")
        axis.set_ylabel("return" if task == "Pendulum-v1" else "success rate on test goals")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, then write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    runs = [Run(*which, size, seed) for seed in SEEDS for which in BUDGETS for size in (CHUNK_SIZES[which[1]], 1)]
    missing = [run for run in runs if not run.path.exists()]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(train, missing):
            pass
    plot(FOLDER / "curves.png")
    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- chunking: begin -->")
    after = rest.split("<!-- chunking: end -->")[1]
    PAGE.write_text(
        f"{before}<!-- chunking: begin -->\n{table()}\n<!-- chunking: end -->{after}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

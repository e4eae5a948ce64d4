"""
A few cycles of rollout and update, under a launcher or alone: the last line printed is what they took, as JSON.

``python cycle_once.py '{"env": "waiting", "milliseconds": 5, "n_envs": 8, "vec_env": "here"}'``
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from waiting_env import waiting_chunks

from sb3_vla import PPOSelfBC, RayVecEnv, SharedMemoryVecEnv, make_vla_vec_env
from sb3_vla.common.launch import launched_as

# The quickstart's, but for the lengths
SETTINGS: dict[str, Any] = {
    "n_steps": 20,
    "batch_size": 40,
    "n_epochs": 2,
    "critic_epochs": 4,
    "critic_learning_rate": 1e-3,
    "learning_rate": 7e-5,
    "normalize_advantage": "task",
    "bc_weight": 0.2,
}
N_CYCLES = 4
TASKS = ("window-open-v3", "drawer-close-v3", "button-press-topdown-v3")
VEC_ENVS: dict[str, Any] = {"here": DummyVecEnv, "processes": SharedMemoryVecEnv, "ray": RayVecEnv}


class Stopwatch:
    """Adds up what some calls take; on a GPU the calls that end in a number on the CPU are the ones to time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, owner: Any, name: str, label: str) -> None:
        """
        :param owner: Whose method is timed from now on
        :param name: Of the method
        :param label: What it counts as
        """
        setattr(owner, name, partial(self.time, label, getattr(owner, name)))

    def time(self, label: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        :param label: What it counts as
        :param function: What is called, with all that follows
        :return: What it returns
        """
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start
        return result


def make_env(given: dict[str, Any]) -> VecEnv:
    """
    :param given: ``env``, ``n_envs``, ``vec_env``, and more of one kind of environment
    :return: The environment
    """
    vec_env_cls = VEC_ENVS[given["vec_env"]]
    if given["env"] == "metaworld":
        return make_vla_vec_env(TASKS, given["n_envs"], vec_env_cls=vec_env_cls)
    return vec_env_cls([partial(waiting_chunks, given["milliseconds"])] * given["n_envs"])


def main() -> None:
    """Measure what the argument says."""
    given = json.loads(sys.argv[1])
    rank, size = launched_as()
    cpus = sorted(os.sched_getaffinity(0))
    if given["vec_env"] == "here":  # one core a rank
        os.sched_setaffinity(0, {cpus[given.get("core", rank) % len(cpus)]})
    th.set_num_threads(1)
    env = make_env(given)
    model = PPOSelfBC("VLAPolicy", env, seed=0, device=given.get("device", "cpu"), **{**SETTINGS, **given.get("train", {})})
    stopwatch = Stopwatch()
    cycles: list[dict[str, float]] = []
    for owner, name, label in (
        *((model, "collect_rollouts", "rollout"), (model, "train", "update"), (model.adapter, "act", "inference")),
        *((model.env, "step", "simulation"), (model, "_exchange", "exchange")),
    ):
        stopwatch.around(owner, name, label)
    add_up = model.ranks.add_up

    def add_up_after_waiting(tensors: Sequence[th.Tensor]) -> None:
        stopwatch.time("waiting", model.ranks.all, True)  # for the slowest rank, which is no matter of the network
        stopwatch.time("all_reduce", add_up, tensors)

    model.ranks.add_up = add_up_after_waiting  # type: ignore[method-assign]
    train = model.train

    def noted() -> None:
        train()
        cycles.append(dict(stopwatch.seconds))
        stopwatch.seconds.clear()

    model.train = noted  # type: ignore[method-assign]
    model.learn(N_CYCLES * model.n_steps * given["n_envs"] * size)
    env.close()
    labels = ("rollout", "update", "inference", "simulation", "all_reduce", "waiting", "exchange")
    measured = {label: statistics.median(cycle.get(label, 0.0) for cycle in cycles[1:]) for label in labels}
    numbers = {
        "ranks": size,
        "n_steps": model.n_steps,
        "batch_size": model.batch_size,
        "megabytes_of_gradients": sum(p.nbytes for p in model.policy.parameters() if p.requires_grad) / 1e6,
        "n_messages": _n_minibatches(model),
        "kilobytes_of_an_observation": 2 * 96 * 96 * 3 / 1e3,
    }
    if rank == 0:
        print(json.dumps({**given, **numbers, "seconds": measured}), flush=True)


def _n_minibatches(model: PPOSelfBC) -> int:
    n_batches = -(-model.n_steps * model.n_envs // model.batch_size)
    return n_batches * (model.critic_epochs or model.n_epochs)


if __name__ == "__main__":
    main()

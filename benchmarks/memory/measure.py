"""
Hold the estimate of memory against what post-training takes: one rollout and one update of models of true size with random
weights, each in a process of its own, on the GPU if there is one. What is there is not done again. ``make memory``, or

    python benchmarks/memory/measure.py --only full lora
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from architectures import backbone_of
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC
from sb3_vla.ppo_self_bc.memory_estimate import MemoryEstimator
from sb3_vla_envs import ChunkedActionWrapper, encode_instruction

RESULTS = Path(__file__).parents[2] / "results" / "memory.json"
INSTRUCTION = "open the drawer"
N_ENVS, N_STEPS = 4, 1
TOLERANCE = 0.15

_SMALL = {"model": "SmolVLM-256M", "image_size": 256}
_LARGER = {"model": "SmolVLM-500M", "image_size": 256}
CASES: dict[str, dict[str, Any]] = {
    "full": {**_SMALL, "batch": 4, "micro_batch": 2},
    "all at once": {**_SMALL, "batch": 2, "micro_batch": None},
    "bfloat16": {**_SMALL, "batch": 4, "micro_batch": 2, "autocast": "bfloat16"},
    "gradient checkpointing": {**_SMALL, "batch": 4, "micro_batch": 4, "gradient_checkpointing": True},
    "vision frozen, flow head": {**_SMALL, "batch": 4, "micro_batch": 4, "head": "flow", "frozen": ("vision", "connector")},
    "LoRA": {"model": "SmolVLM-256M", "image_size": 512, "batch": 4, "micro_batch": 4, "lora": {"r": 16}},
    "500M": {**_LARGER, "batch": 4, "micro_batch": 2},
    "500M, LoRA, two cameras": {**_LARGER, "cameras": 2, "batch": 4, "micro_batch": 4, "lora": {"r": 32}},
    "500M, LoRA, token head": {**_LARGER, "batch": 4, "micro_batch": 2, "lora": {"r": 16}, "head": "token"},
}


class Pictures(gym.Env):
    """Random pictures, and success at the end of each chunk."""

    def __init__(self, n_cameras: int) -> None:
        self.observation_space = spaces.Dict(
            {
                **{f"image_{i}" if i else "image": spaces.Box(0, 255, (128, 128, 3), np.uint8) for i in range(n_cameras)},
                "state": spaces.Box(-np.inf, np.inf, (4,), np.float32),
                "instruction": spaces.Box(0, 255, (64,), np.uint8),
            }
        )
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.t += 1
        success = self.t >= 8
        return self._look(), float(success), success, False, {"is_success": success}

    def _look(self) -> dict[str, Any]:
        observation = self.observation_space.sample()
        observation["instruction"] = encode_instruction(INSTRUCTION, 64)
        return observation


def main() -> None:
    """Measure what is missing, then write ``results/memory.json`` and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)  # by itself, in another process
    parser.add_argument("--estimate", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure or arguments.estimate:
        print(measure(arguments.measure) if arguments.measure else estimate(arguments.estimate))
        return
    device = th.cuda.get_device_name() if th.cuda.is_available() else f"CPU ({platform.machine()})"
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.only:
        rows = results.setdefault(device, {})
        if name not in rows:
            measured, estimated = _in_new_process("--measure", name), _in_new_process("--estimate", name)
            rows[name] = {**CASES[name], "measured": measured, "estimated": estimated}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        measured, estimated = rows[name]["measured"], rows[name]["estimated"]
        off = estimated / measured - 1
        print(
            f"{name:26} measured {measured / 2**30:6.2f} GiB, estimated {estimated / 2**30:6.2f} GiB: {off:+.1%}", flush=True
        )
        if abs(off) > TOLERANCE:
            sys.exit(f"the estimate is off by more than {TOLERANCE:.0%}")


def estimate(name: str) -> int:
    """
    :param name: Of a case
    :return: Bytes that it should take
    """
    case = CASES[name]
    env = ChunkedActionWrapper(Pictures(case.get("cameras", 1)), 8)
    images = {key: spaces.Box(0, 255, (3, 128, 128), np.uint8) for key in env.observation_space if key.startswith("image")}
    estimator = MemoryEstimator(
        spaces.Dict({**env.observation_space.spaces, **images}),
        env.action_space,
        INSTRUCTION,
        policy_kwargs(case),
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        batch_size=case["batch"],
        bc_batch_size=case["batch"],
        n_demonstrations=N_STEPS * N_ENVS,
    )
    found = estimator.estimate(case["micro_batch"])
    return found.device if th.cuda.is_available() else found.without_gpu


def measure(name: str) -> int:
    """
    :param name: Of a case
    :return: Bytes that it takes at its peak, beside those of a process that has done the same with a tiny model
    """
    case = CASES[name]
    train({"batch": 4, "micro_batch": 2}, {"autocast": case.get("autocast")})
    gc.collect()
    if th.cuda.is_available():
        before = th.cuda.memory_allocated()
        th.cuda.reset_peak_memory_stats()
        train(case, policy_kwargs(case))
        return th.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = _status("VmRSS")
    train(case, policy_kwargs(case))
    return _status("VmHWM") - before


def train(case: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """
    :param case: A case
    :param kwargs: ``policy_kwargs``
    """
    n_cameras = case.get("cameras", 1)
    model = PPOSelfBC(
        "VLAPolicy",
        DummyVecEnv([lambda: ChunkedActionWrapper(Pictures(n_cameras), 8, gamma=0.99)] * N_ENVS),
        n_steps=N_STEPS,
        batch_size=case["batch"],
        bc_batch_size=case["batch"],
        micro_batch_size=case["micro_batch"],
        n_epochs=2,  # as the optimizer has no state before the first step
        bc_weight=0.5,
        policy_kwargs=kwargs,
        seed=0,
    )
    model.learn(N_ENVS * N_STEPS)
    assert model.replay_buffer, "no episode succeeded: nothing was imitated"


def policy_kwargs(case: dict[str, Any]) -> dict[str, Any]:
    """
    :param case: A case
    :return: Those of its model
    """
    of_backbone = {name: case[name] for name in ("image_size", "gradient_checkpointing") if name in case}
    of_policy = {name: case[name] for name in ("lora", "head", "frozen", "autocast") if name in case}
    return {**backbone_of(case["model"], **of_backbone), **of_policy}


def _in_new_process(what: str, name: str) -> int:
    # glibc would keep tensors of up to 32 MB that are freed, in pieces that fit no others: that is its memory, not theirs
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, __file__, what, name]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return int(output.splitlines()[-1])


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    main()

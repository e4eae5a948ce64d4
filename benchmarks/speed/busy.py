"""A batch of SFT on an idle and on a busy machine, by how torch's threads wait: python benchmarks/speed/busy.py"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from measure import ratio, row, save

N_ROUNDS, N_BATCHES = 3, 8
# How torch's threads spin, by whether sb3_vla, which sets GOMP_SPINCOUNT, is imported before torch
WAITS = {"briefly": "import sb3_vla, torch", "long": "import torch, sb3_vla"}
BATCHES = f"""
import time
import numpy as np
from sb3_vla import PPOSelfBC, fine_tune, make_vla_vec_env
from sb3_vla_envs import Demonstration

env = make_vla_vec_env("reach-v3", 1)
model = PPOSelfBC("VLAPolicy", env, n_steps=8, batch_size=8, policy_kwargs=dict(autocast="auto"), device="cpu")
shape = (32 * {N_BATCHES},)
demonstrations = [
    Demonstration(
        task="reach-v3",
        observations={{key: np.stack([space.sample()] * shape[0]) for key, space in env.observation_space.items()}},
        actions=np.zeros((*shape, *env.action_space.shape), np.float32),
        chunk_lengths=np.full(shape, env.action_space.shape[0]),
        success=True,
    )
    for _ in range(4)
]
fine_tune(model.policy, demonstrations[:2], n_epochs=1, progress=False)
start = time.perf_counter()
fine_tune(model.policy, demonstrations, n_epochs=1, progress=False, held_out_fraction=0.25)
print((time.perf_counter() - start) / ({N_BATCHES} * 3 / 2))
"""


def main() -> None:
    """Train for a few batches in processes of their own, alone and beside one that computes without end."""
    raw: dict[str, list[float]] = {f"{wait}, {machine}": [] for machine in ("idle", "busy") for wait in WAITS}
    for _ in range(N_ROUNDS):
        for name, seconds in raw.items():
            wait, machine = name.split(", ")
            with _another_process(machine == "busy"):
                seconds.append(_seconds_of_a_batch(wait))
            print(name, seconds[-1], flush=True)
    rows = []
    for machine, where in (("idle", "alone"), ("busy", "beside one other busy process")):
        briefly, long = raw[f"briefly, {machine}"], raw[f"long, {machine}"]
        figures = [f"{statistics.median(seconds):.2f} s" for seconds in (briefly, long)]
        other = f"with OpenMP's own `GOMP_SPINCOUNT`, {figures[1]}"
        rows.append(row(f"a batch of SFT, {where}", figures[0], other, ratio(long, briefly)))
    save("busy", rows, raw)


def _seconds_of_a_batch(wait: str) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", WAITS[wait] + BATCHES]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


@contextmanager
def _another_process(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

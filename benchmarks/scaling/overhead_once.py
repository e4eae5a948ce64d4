"""Steps of ``RayVecEnv`` and ``SharedMemoryVecEnv`` in turn, on one machine; prints JSON."""

import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from waiting_env import waiting_chunks

from sb3_vla import RayVecEnv, SharedMemoryVecEnv

N_ENVS, N_WORKERS = 8, 2


def main() -> None:
    """Measure what the argument says."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    env_fns = [partial(waiting_chunks, given["milliseconds"])] * N_ENVS
    envs: dict[str, VecEnv] = {"processes": SharedMemoryVecEnv(env_fns, N_WORKERS), "ray": RayVecEnv(env_fns, N_WORKERS)}
    actions = np.zeros((N_ENVS, 8, 4), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in envs}
    for number in range(given["rounds"] + 1):
        for name, env in envs.items():
            env.reset()
            start = time.perf_counter()
            for _ in range(given["steps"]):
                env.step(actions)
            if number > 0:  # the first is to get warm
                seconds[name].append((time.perf_counter() - start) / given["steps"])
    for env in envs.values():
        env.close()
    print(json.dumps({"milliseconds": given["milliseconds"], "n_envs": N_ENVS, "seconds_a_step": seconds}), flush=True)


if __name__ == "__main__":
    main()

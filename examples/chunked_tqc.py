"""
TQC on action chunks: swing up a pendulum.

Shows: an algorithm of sb3-contrib; a policy that predicts four actions, of which two are executed before it looks again
(``n_action_steps``), as VLA models are run on robots.

Run: python examples/chunked_tqc.py      (about a minute on two cores)
See: the return of an episode rise from about -1300 to about -100.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from sb3_contrib import TQC
from stable_baselines3.common.monitor import Monitor

from sb3_vla_envs import ChunkedActionWrapper

CHUNK_SIZE, EXECUTED, GAMMA = 4, 2, 0.98


def main(arguments: Sequence[str] | None = None) -> TQC:
    parser = argparse.ArgumentParser(description="TQC on chunks of Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=4_000, help="chunks to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    monitor = Monitor(gym.make("Pendulum-v1"))
    env = ChunkedActionWrapper(monitor, CHUNK_SIZE, n_action_steps=EXECUTED, gamma=GAMMA)
    # The discount follows the steps that are executed, not those that are predicted
    network = {"net_arch": [64, 64]}
    model = TQC("MlpPolicy", env, 1e-3, gamma=GAMMA**EXECUTED, policy_kwargs=network, seed=args.seed, verbose=1)
    model.learn(args.timesteps, log_interval=10)

    returns = monitor.get_episode_rewards()
    print(f"{model.num_timesteps} chunks, {monitor.get_total_steps()} primitive steps")
    print(f"return of an episode: {np.mean(returns[:5]):.0f} in the first five, {np.mean(returns[-5:]):.0f} in the last five")
    return model


if __name__ == "__main__":
    main()

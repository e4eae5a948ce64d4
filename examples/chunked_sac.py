"""
SAC on action chunks: a robot arm closes a drawer.

Shows: MetaWorld's state (a dictionary of vectors) under an off-policy algorithm; ``Monitor`` inside the chunks, where it
counts primitive steps; the discount of a semi-Markov decision process.

Run: python examples/chunked_sac.py      (about a minute on two cores)
See: the return of an episode rise from about 200 to above 1000, and the drawer closed in nearly every episode.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.monitor import Monitor

import sb3_vla_envs

CHUNK_SIZE, GAMMA = 8, 0.99


def main(arguments: Sequence[str] | None = None) -> SAC:
    parser = argparse.ArgumentParser(description="SAC on chunks of MetaWorld's drawer-close-v3")
    parser.add_argument("--timesteps", type=int, default=4_000, help="chunks to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    # A dense reward is paid for every step near the goal: an episode that ended at success would teach to avoid success
    env = gym.make("MetaWorldState/drawer-close-v3", reward="dense", terminate_on_success=False, horizon=160)
    monitor = Monitor(env)
    # MetaWorld pays up to 10 a step: scaled, the values that SAC has to learn are not in the thousands
    env = gym.wrappers.TransformReward(monitor, lambda reward: reward / 10)
    env = sb3_vla_envs.ChunkedActionWrapper(env, CHUNK_SIZE, gamma=GAMMA)

    # SAC discounts once a chunk. At most one chunk an episode is shorter, its last: there this is an approximation
    settings = {
        "learning_rate": 1e-3,
        "learning_starts": 500,
        "policy_kwargs": {"net_arch": [128, 128]},
        "stats_window_size": 20,
    }
    model = SAC("MultiInputPolicy", env, gamma=GAMMA**CHUNK_SIZE, seed=args.seed, verbose=1, **settings)
    model.learn(args.timesteps, log_interval=20)

    returns = monitor.get_episode_rewards()
    print(f"{model.num_timesteps} chunks, {monitor.get_total_steps()} primitive steps")
    print(f"return of an episode: {np.mean(returns[:10]):.0f} in the first ten, {np.mean(returns[-10:]):.0f} in the last ten")
    print(f"success in the last {len(model.ep_success_buffer)} episodes: {np.mean(model.ep_success_buffer):.2f}")
    return model


if __name__ == "__main__":
    main()

"""
PPO on action chunks: swing up an acrobot.

Shows: chunks of discrete actions, ``Discrete(3)`` becomes ``MultiDiscrete([3, 3, 3, 3])``; many environments at a time with
SB3's ``make_vec_env``, whose ``Monitor`` stands inside ``wrapper_class`` and so counts primitive steps.

Run: python examples/chunked_ppo.py      (about half a minute on two cores)
See: the return of an episode (minus its length in primitive steps) rise from about -400 to about -100.
"""

import argparse
from collections.abc import Sequence

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_vla_envs import ChunkedActionWrapper

CHUNK_SIZE, GAMMA = 4, 0.99


def main(arguments: Sequence[str] | None = None) -> PPO:
    parser = argparse.ArgumentParser(description="PPO on chunks of Acrobot-v1")
    parser.add_argument("--timesteps", type=int, default=40_000, help="chunks to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    chunks = {"wrapper_class": ChunkedActionWrapper, "wrapper_kwargs": {"chunk_size": CHUNK_SIZE, "gamma": GAMMA}}
    env = make_vec_env("Acrobot-v1", n_envs=16, seed=args.seed, **chunks)
    # sb3_vla.PPOSelfBC("MlpPolicy", env, gamma=GAMMA) would discount a chunk of k steps by GAMMA**k; SB3's algorithms discount
    # every chunk alike
    model = PPO("MlpPolicy", env, n_steps=64, gamma=GAMMA**CHUNK_SIZE, gae_lambda=0.94, seed=args.seed, verbose=1)
    before, _ = evaluate_policy(model, env, n_eval_episodes=16)
    model.learn(args.timesteps, log_interval=10)

    after, _ = evaluate_policy(model, env, n_eval_episodes=16)
    print(f"{model.num_timesteps} chunks, return of an episode: {before:.0f} before, {after:.0f} after")
    return model


if __name__ == "__main__":
    main()

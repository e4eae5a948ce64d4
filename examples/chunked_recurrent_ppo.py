"""
RecurrentPPO on action chunks: balance a pole without seeing velocities.

Shows: an LSTM that remembers from chunk to chunk what one observation does not tell; a wrapper of one's own inside the chunks.
The policy sees every second step only, as chunks have two.

Run: python examples/chunked_recurrent_ppo.py      (about a minute on two cores)
See: an episode grow from about 10 primitive steps to about 200 (500 is the limit).
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
from gymnasium.wrappers import TransformObservation
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_vla_envs import ChunkedActionWrapper

CHUNK_SIZE, GAMMA = 2, 0.98
SEEN = [0, 2]  # of cart position, cart velocity, pole angle, pole velocity


def blindfold(env: gym.Env) -> gym.Env:
    space = env.observation_space
    positions = gym.spaces.Box(space.low[SEEN], space.high[SEEN], dtype=space.dtype)
    env = TransformObservation(env, lambda observation: observation[SEEN], positions)
    return ChunkedActionWrapper(env, CHUNK_SIZE, gamma=GAMMA)


def main(arguments: Sequence[str] | None = None) -> RecurrentPPO:
    parser = argparse.ArgumentParser(description="RecurrentPPO on chunks of CartPole-v1 without velocities")
    parser.add_argument("--timesteps", type=int, default=40_000, help="chunks to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    env = make_vec_env("CartPole-v1", n_envs=8, seed=args.seed, wrapper_class=blindfold)
    settings = {"n_steps": 128, "batch_size": 256, "gae_lambda": 0.8, "learning_rate": 1e-3, "ent_coef": 0.001}
    network = {"lstm_hidden_size": 64, "enable_critic_lstm": False, "shared_lstm": True}
    model = RecurrentPPO(
        "MlpLstmPolicy", env, gamma=GAMMA**CHUNK_SIZE, policy_kwargs=network, seed=args.seed, verbose=1, **settings
    )
    before, _ = evaluate_policy(model, env, n_eval_episodes=16)
    model.learn(args.timesteps, log_interval=10)

    after, _ = evaluate_policy(model, env, n_eval_episodes=16)
    print(f"{model.num_timesteps} chunks, primitive steps of an episode: {before:.0f} before, {after:.0f} after")
    return model


if __name__ == "__main__":
    main()

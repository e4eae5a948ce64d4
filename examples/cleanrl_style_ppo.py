"""
PPO on action chunks in one file: plain PyTorch and a Gymnasium vector environment, no Stable-Baselines3.

Shows: what an algorithm of your own has to do about chunks. One decision lasts ``k = info["chunk_length"]`` primitive steps,
so generalised advantage estimation discounts by ``gamma ** k`` (a semi-Markov decision process), and the likelihood ratio is
one a primitive step, of those steps alone that were executed: an episode may end in the middle of a chunk.

Run: python examples/cleanrl_style_ppo.py      (about a quarter of a minute on two cores)
See: an episode of CartPole grow from about 20 primitive steps to nearly 500, the limit.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers import RecordEpisodeStatistics
from torch import nn
from torch.distributions import Categorical

from sb3_vla_envs import ChunkedActionWrapper


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="PPO on chunks of CartPole-v1, in one file")
    parser.add_argument("--timesteps", type=int, default=120_000, help="primitive steps to learn from")
    parser.add_argument("--chunk-size", type=int, default=3)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--n-steps", type=int, default=64, help="chunks in a rollout, for each environment")
    parser.add_argument("--n-epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--gamma", type=float, default=0.99, help="discount of a primitive step")
    parser.add_argument("--gae-lambda", type=float, default=0.9, help="of a chunk")
    parser.add_argument("--clip-range", type=float, default=0.2)
    parser.add_argument("--entropy-coefficient", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


class Agent(nn.Module):
    """Actor and critic; the actor puts out all actions of a chunk at once."""

    def __init__(self, observation_dim: int, chunk_size: int, n_actions: int) -> None:
        super().__init__()
        self.chunk_shape = (chunk_size, n_actions)
        self.actor = nn.Sequential(nn.Linear(observation_dim, 64), nn.Tanh(), nn.Linear(64, chunk_size * n_actions))
        self.critic = nn.Sequential(nn.Linear(observation_dim, 64), nn.Tanh(), nn.Linear(64, 1))

    def distribution(self, observations: th.Tensor) -> Categorical:
        """Of the primitive actions, ``(batch, h)``; for a Box a ``Normal``, its log-probability summed over the last axis."""
        return Categorical(logits=self.actor(observations).unflatten(-1, self.chunk_shape))

    def value(self, observations: th.Tensor) -> th.Tensor:
        return self.critic(observations).squeeze(-1)


def chunk_lengths(infos: dict, n_envs: int) -> th.Tensor:
    """
    Primitive steps that each environment executed, 0 where it was only reset.

    Gymnasium resets an environment in the step *after* the one that ended its episode (``AutoresetMode.NEXT_STEP``, the
    default): that step ignores the action and returns the first observation. It is no transition and must not be learned from.
    Its info has no ``chunk_length``, for which the vector environment puts 0, or no key at all where all are reset at once.
    """
    return th.as_tensor(infos.get("chunk_length", np.zeros(n_envs)), dtype=th.long)


def advantages_of(
    rewards: th.Tensor, values: th.Tensor, lengths: th.Tensor, terminated: th.Tensor, done: th.Tensor, args: argparse.Namespace
) -> th.Tensor:
    """
    Generalised advantage estimation over chunks: ``delta = r + gamma**k V' - V`` and ``A = delta + gamma**k lambda A'``.

    All ``(n_steps, n_envs)``, but ``values``, which have one row more. As resets come a step late, the row after an episode's
    last holds the value of its true last observation: where a time limit ended it that is bootstrapped from, where the
    environment did (``terminated``) it is not. Either way nothing flows back from the next episode (``done``).
    """
    discounts = args.gamma**lengths
    deltas = rewards + discounts * values[1:] * ~terminated - values[:-1]
    advantages = th.zeros_like(rewards)
    following = th.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        following = deltas[t] + discounts[t] * args.gae_lambda * ~done[t] * following
        advantages[t] = following
    return advantages


def masked_mean(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    return (values * mask).sum() / mask.sum()


def loss_of(agent: Agent, batch: dict[str, th.Tensor], args: argparse.Namespace) -> th.Tensor:
    distribution = agent.distribution(batch["observations"])
    executed = th.arange(args.chunk_size) < batch["lengths"].unsqueeze(-1)  # (batch, h)
    ratio = (distribution.log_prob(batch["actions"]) - batch["log_probs"]).exp()  # (batch, h), one a primitive step
    advantages = batch["advantages"].unsqueeze(-1)  # (batch, 1), one a chunk
    clipped = ratio.clamp(1 - args.clip_range, 1 + args.clip_range)
    policy_loss = -masked_mean(th.min(ratio * advantages, clipped * advantages), executed)
    entropy = masked_mean(distribution.entropy(), executed)
    value_loss = (agent.value(batch["observations"]) - batch["returns"]).square().mean()
    return policy_loss + 0.5 * value_loss - args.entropy_coefficient * entropy


def main(arguments: Sequence[str] | None = None) -> list[int]:
    """:return: Length of every episode, in primitive steps"""
    args = parse(arguments)
    th.manual_seed(args.seed)

    def make_env() -> gym.Env:
        # Statistics inside of the chunks count primitive steps and undiscounted rewards
        return ChunkedActionWrapper(RecordEpisodeStatistics(gym.make("CartPole-v1")), args.chunk_size, gamma=args.gamma)

    envs = gym.vector.SyncVectorEnv([make_env] * args.n_envs)
    agent = Agent(envs.single_observation_space.shape[0], args.chunk_size, int(envs.single_action_space.nvec[0]))
    optimizer = th.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    n_primitive_steps, n_updates = 0, 0
    episodes: list[int] = []
    observation = th.as_tensor(envs.reset(seed=args.seed)[0])
    while n_primitive_steps < args.timesteps:
        # Collect
        rows: list[dict[str, th.Tensor]] = []
        for _ in range(args.n_steps):
            with th.no_grad():
                distribution, value = agent.distribution(observation), agent.value(observation)
            action = distribution.sample()  # (n_envs, h)
            new_observation, reward, terminated, truncated, infos = envs.step(action.numpy())
            row = {"observations": observation, "actions": action, "log_probs": distribution.log_prob(action), "values": value}
            row |= {"rewards": th.as_tensor(reward, dtype=th.float32), "lengths": chunk_lengths(infos, args.n_envs)}
            row |= {"terminated": th.as_tensor(terminated), "done": th.as_tensor(terminated | truncated)}
            rows.append(row)
            observation = th.as_tensor(new_observation)
            if "episode" in infos:
                episodes.extend(infos["episode"]["l"][infos["_episode"]].tolist())
        rollout = {key: th.stack([row[key] for row in rows]) for key in rows[0]}  # (n_steps, n_envs, ...)
        n_primitive_steps += int(rollout["lengths"].sum())

        # Advantages
        with th.no_grad():
            values = th.cat([rollout["values"], agent.value(observation).unsqueeze(0)])
        rollout["advantages"] = advantages_of(
            rollout["rewards"], values, rollout["lengths"], rollout["terminated"], rollout["done"], args
        )
        rollout["returns"] = rollout["advantages"] + rollout["values"]

        # Learn, from what was executed alone
        transitions = rollout["lengths"] > 0
        flat = {key: value[transitions] for key, value in rollout.items()}
        flat["advantages"] = (flat["advantages"] - flat["advantages"].mean()) / (flat["advantages"].std() + 1e-8)
        for _ in range(args.n_epochs):
            for index in th.randperm(len(flat["rewards"])).split(args.batch_size):
                optimizer.zero_grad()
                loss_of(agent, {key: value[index] for key, value in flat.items()}, args).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        n_updates += 1
        if n_updates % 10 == 0:
            print(f"{n_primitive_steps:6d} primitive steps, last 20 episodes: {np.mean(episodes[-20:]):.0f} steps each")
    envs.close()
    first, last = np.mean(episodes[:20]), np.mean(episodes[-20:])
    print(f"{n_primitive_steps} primitive steps, of an episode: {first:.0f} in the first 20, {last:.0f} in the last 20")
    return episodes


if __name__ == "__main__":
    main()

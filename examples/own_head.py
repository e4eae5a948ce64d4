"""
An action head of your own: ``LaplaceHead`` imitates by the absolute error, as OpenVLA-OFT does (arXiv 2502.19645), and
explores with Laplace noise. Fine-tuned, post-trained, saved and loaded. Run: python examples/own_head.py
"""

from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn

import sb3_vla
import sb3_vla_envs


class LaplaceChunks(sb3_vla.ChunkDistribution):
    def __init__(self, location: th.Tensor, scale: th.Tensor) -> None:
        self.laplace = th.distributions.Laplace(location, scale.expand_as(location), validate_args=False)

    def draw(self, deterministic: bool = False) -> sb3_vla.ChunkSample:
        return sb3_vla.ChunkSample(self.laplace.mean if deterministic else self.laplace.sample())  # (batch, h, d)

    def step_log_prob(self, sample: sb3_vla.ChunkSample) -> th.Tensor:
        return self.laplace.log_prob(sample.actions.view_as(self.laplace.mean)).sum(dim=-1)  # (batch, h)

    def step_entropy(self) -> th.Tensor:
        return self.laplace.entropy().sum(dim=-1)


class LaplaceHead(sb3_vla.ActionHead):  # by default a head imitates by its negative log-likelihood: here the absolute error
    def __init__(self, features_dim: int, action_space: spaces.Box, scale: float = 0.12) -> None:
        super().__init__(features_dim, action_space)
        self.scale = scale
        self.location = nn.Linear(features_dim, self.chunk_size * self.action_dim)

    def forward(self, features: sb3_vla.BackboneFeatures) -> LaplaceChunks:
        location = self.location(features.action).view(-1, self.chunk_size, self.action_dim)
        return LaplaceChunks(self.to_env(location), self.scale * self.half_range)

    def constructor_kwargs(self) -> dict[str, Any]:
        return {"scale": self.scale}  # what a saved model rebuilds it from


def main(out="own_head.zip", n_demos=40, n_epochs=30, n_goals=25, timesteps=6_000, n_steps=120, batch_size=160):
    task, env = "drawer-close-v3", sb3_vla.make_vla_vec_env("drawer-close-v3", n_envs=8)
    policy = {"head": LaplaceHead}
    rates = {"learning_rate": 1e-4, "critic_learning_rate": 1e-3, "critic_epochs": 20, "n_epochs": 2, "bc_weight": 0.2}
    model = sb3_vla.PPOSelfBC("VLAPolicy", env, policy_kwargs=policy, n_steps=n_steps, batch_size=batch_size, **rates)
    demonstrations = sb3_vla_envs.collect_demonstrations(task, n_demos)
    sb3_vla.fine_tune(model, demonstrations, n_epochs=n_epochs)
    print("fine-tuned", sb3_vla.evaluate_on_tasks(model, task, n_goals).table(), sep="\n")
    model.learn(timesteps).save(out)
    loaded = sb3_vla.PPOSelfBC.load(out)
    print("post-trained, saved, loaded", sb3_vla.evaluate_on_tasks(loaded, task, n_goals).table(), sep="\n")
    return loaded


if __name__ == "__main__":
    main()

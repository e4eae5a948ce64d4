"""The Gaussian head: a distribution over chunks of primitive actions."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_vla_envs.argument_checks import FRACTION, Limits, check_count

from ...common.chunk_mask import masked_mse
from ..backbones import BackboneFeatures
from .base import ActionHead, ChunkDistribution, ChunkSample


class GaussianChunkDistribution(ChunkDistribution):
    """
    A Gaussian over a chunk.

    Noise that is independent from step to step mostly cancels within a chunk, so the chunk explores little, and what it
    explores is hard to credit. With ``correlation`` rho the noise of a chunk is a stationary first-order autoregressive
    process, ``n_t = rho n_{t-1} + sqrt(1 - rho^2) e_t``: each action's distribution stays the same, and the chunk as a whole
    goes further (colored noise: Hollenstein et al. 2024, arXiv 2312.11091); with rho = 1 one draw shifts the whole chunk.

    Log-probabilities are those of each step's own (marginal) distribution. By Stein's lemma the policy gradient that they
    give, ``E[A n] / sigma``, is then the covariance of the noise times the gradient with respect to the mean: an ascent
    direction that is smooth within the chunk. The score of the joint density weighs up, by the inverse covariance, the very
    directions that the noise hardly explores.

    :param mean: ``(batch, h, d)``
    :param std: Standard deviation, of a shape that broadcasts to that of ``mean``
    :param correlation: rho, in [0, 1]; 0 is a diagonal Gaussian
    :param noise_probability: With which a chunk gets noise. The others take the mean; which they are is drawn beside the
        chunks (``extras["has_noise"]``), and as they don't depend on the policy's standard deviation, they have no likelihood
    """

    def __init__(self, mean: th.Tensor, std: th.Tensor, correlation: float = 0.0, noise_probability: float = 1.0) -> None:
        self.distribution = th.distributions.Normal(mean, std.expand_as(mean), validate_args=False)
        self.correlation = correlation
        self.noise_probability = noise_probability

    def draw(self, deterministic: bool = False) -> ChunkSample:
        mean, std = self.distribution.mean, self.distribution.stddev
        if deterministic:
            return ChunkSample(mean)
        innovations = th.randn_like(mean)
        noise = innovations.clone()
        for step in range(1, mean.shape[1]):
            new = (1 - self.correlation**2) ** 0.5 * innovations[:, step]
            noise[:, step] = self.correlation * noise[:, step - 1] + new
        if self.noise_probability == 1:
            return ChunkSample(mean + std * noise)
        has_noise = (th.rand(len(mean), device=mean.device) < self.noise_probability).to(mean.dtype)
        return ChunkSample(mean + has_noise.view(-1, 1, 1) * std * noise, {"has_noise": has_noise})

    def step_log_prob(self, sample: ChunkSample) -> th.Tensor:
        log_prob = self.distribution.log_prob(sample.actions.view_as(self.distribution.mean)).sum(dim=-1)
        has_noise = sample.extras.get("has_noise")
        return log_prob if has_noise is None else log_prob * has_noise.unsqueeze(1)

    def step_entropy(self) -> th.Tensor:
        return self.distribution.entropy().sum(dim=-1)

    def evaluate(self, sample: ChunkSample) -> tuple[th.Tensor, th.Tensor]:
        entropy, has_noise = self.step_entropy(), sample.extras.get("has_noise")
        return self.step_log_prob(sample), entropy if has_noise is None else entropy * has_noise.unsqueeze(1)


class GaussianHead(ActionHead):
    """
    A Gaussian around a mean that the features give.

    The mean is not squashed: actions are clipped to their bounds on execution, and the likelihood is that of the sample before
    clipping, as in SB3. The standard deviation is learned, one a dimension of the primitive action, and does not depend on the
    features. By default it imitates by the mean squared error of its mean, in units of half the range of the bounds.

    :param features_dim: Length of the features
    :param action_space: Chunks, a bounded ``Box`` of shape ``(h, d)``
    :param hidden_dim: Width of the hidden layer
    :param log_std_init: Initial logarithm of the standard deviation, in units of half the range of the bounds
    :param noise_correlation: Correlation of the exploration noise of successive primitive steps within a chunk, in [0, 1], see
        :class:`GaussianChunkDistribution`
    :param noise_probability: Part of the chunks that explore, in (0, 1]. Noise in every chunk can keep a precise task from
        ever succeeding in a rollout; with noise in some, the others act as well as the policy can, and what a noisy chunk led
        to stands out more clearly. PPO learns from the noisy ones, and its KL divergence, clip fraction and entropy count the
        others as zero (they cost no update either, unless the critic reads the backbone's features); the critic and self
        behaviour cloning learn from all
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If an argument is out of range
    """

    imitation_losses: ClassVar[tuple[str, ...]] = ("mse", "nll")
    adjustable: ClassVar[tuple[str, ...]] = ("noise_correlation", "noise_probability")
    noise_scale: float = 1.0

    def __init__(
        self,
        features_dim: int,
        action_space: spaces.Box,
        hidden_dim: int = 256,
        log_std_init: float = -1.5,
        noise_correlation: float = 0.0,
        noise_probability: float = 1.0,
    ) -> None:
        super().__init__(features_dim, action_space)
        Limits(above=0, at_most=1).check("noise_probability", noise_probability)
        FRACTION.check("noise_correlation", noise_correlation)
        Limits().check("log_std_init", log_std_init)
        check_count("hidden_dim", hidden_dim)
        self.hidden_dim = hidden_dim
        self.log_std_init = log_std_init
        self.noise_correlation = noise_correlation
        self.noise_probability = noise_probability
        self.steps_are_independent = noise_correlation == 0
        self.needs_extras = noise_probability < 1
        self.mean_net = nn.Sequential(
            nn.Linear(features_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, self.chunk_size * self.action_dim)
        )
        self.log_std = nn.Parameter(th.full((self.action_dim,), float(log_std_init)))

    def forward(self, features: BackboneFeatures) -> GaussianChunkDistribution:
        std = self.half_range * self.log_std.exp() * self.noise_scale
        return GaussianChunkDistribution(
            self.to_env(self._unit_mean(features)), std, self.noise_correlation, self.noise_probability
        )

    def imitation_loss(self, features: BackboneFeatures, actions: th.Tensor, mask: th.Tensor, kind: str = "auto") -> th.Tensor:
        if kind not in ("auto", "mse"):
            return super().imitation_loss(features, actions, mask, kind)
        return masked_mse(self._unit_mean(features), self.to_unit(actions), mask)

    def has_likelihood(self, extras: Mapping[str, th.Tensor]) -> th.Tensor | None:
        has_noise = extras.get("has_noise")
        return None if has_noise is None else has_noise > 0

    def restart(self, changed: Collection[str]) -> None:
        if "log_std_init" in changed:
            with th.no_grad():
                self.log_std.fill_(self.log_std_init)

    def metrics(self) -> dict[str, float]:
        return {"std": self.noise_scale * self.log_std.detach().exp().mean().item()}

    def constructor_kwargs(self) -> dict[str, Any]:
        return {
            "hidden_dim": self.hidden_dim,
            "log_std_init": self.log_std_init,
            "noise_correlation": self.noise_correlation,
            "noise_probability": self.noise_probability,
        }

    def _unit_mean(self, features: BackboneFeatures) -> th.Tensor:
        """
        :param features: What the backbone read out
        :return: The mean in units of half the range, ``(batch, h, d)``
        """
        return self.mean_net(features.action).view(-1, self.chunk_size, self.action_dim)

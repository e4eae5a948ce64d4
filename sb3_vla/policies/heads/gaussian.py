"""The Gaussian head: a distribution over chunks of primitive actions."""

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch import nn


class GaussianChunkDistribution(DiagGaussianDistribution):
    """
    A Gaussian over a chunk, whose log-probability and entropy keep the primitive steps apart.

    A chunk may end early, and then only the executed steps count; PPO's ratio per primitive step needs them apart too.

    Noise that is independent from step to step mostly cancels within a chunk, so the chunk explores little, and what it
    explores is hard to credit. With ``correlation`` rho the noise of a chunk is a stationary first-order autoregressive
    process, ``n_t = rho n_{t-1} + sqrt(1 - rho^2) e_t``: each action's distribution stays the same, and the chunk as a whole
    goes further (colored noise: Hollenstein et al. 2024, arXiv 2312.11091); with rho = 1 one draw shifts the whole chunk.

    Log-probabilities are those of each step's own (marginal) distribution. By Stein's lemma the policy gradient that they
    give, ``E[A n] / sigma``, is then the covariance of the noise times the gradient with respect to the mean: an ascent
    direction that is smooth within the chunk. The score of the joint density weighs up, by the inverse covariance, the very
    directions that the noise hardly explores.

    :param chunk_size: Primitive actions in a chunk, h
    :param primitive_dim: Length of a primitive action, d
    :param correlation: rho, in [0, 1]; 0 is a diagonal Gaussian
    :raises ValueError: if ``correlation`` is out of range
    """

    def __init__(self, chunk_size: int, primitive_dim: int, correlation: float = 0.0) -> None:
        if not 0.0 <= correlation <= 1.0:
            raise ValueError(f"noise_correlation must be in [0, 1], got {correlation}")
        super().__init__(chunk_size * primitive_dim)
        self.chunk_shape = (chunk_size, primitive_dim)
        self.correlation = correlation

    def sample(self) -> th.Tensor:
        """
        :return: ``(batch, h, d)``
        """
        mean, std = self.distribution.mean, self.distribution.stddev
        innovations = th.randn_like(mean)
        noise = innovations.clone()
        for step in range(1, self.chunk_shape[0]):
            new = (1 - self.correlation**2) ** 0.5 * innovations[:, step]
            noise[:, step] = self.correlation * noise[:, step - 1] + new
        return mean + std * noise

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, h * d)`` or ``(batch, h, d)``
        :return: ``(batch, h)``, each step's own
        """
        return self.distribution.log_prob(actions.view(-1, *self.chunk_shape)).sum(dim=-1)

    def entropy(self) -> th.Tensor:
        """
        :return: ``(batch, h)``, each step's own
        """
        return self.distribution.entropy().sum(dim=-1)


class GaussianChunkHead(nn.Module):
    """
    Maps the backbone's action features to a Gaussian over chunks.

    The mean is not squashed: actions are clipped to their bounds on execution, and the likelihood is that of the sample
    before clipping, as in SB3. The standard deviation is learned, one a dimension of the primitive action, and does not
    depend on the features.

    :param features_dim: Length of the features
    :param chunk_size: Primitive actions in a chunk, h
    :param primitive_dim: Length of a primitive action, d
    :param hidden_dim: Width of the hidden layer
    :param log_std_init: Initial logarithm of the standard deviation
    :param noise_correlation: Correlation of the noise of successive steps, see :class:`GaussianChunkDistribution`
    """

    def __init__(
        self,
        features_dim: int,
        chunk_size: int,
        primitive_dim: int,
        hidden_dim: int = 256,
        log_std_init: float = -1.5,
        noise_correlation: float = 0.0,
    ) -> None:
        super().__init__()
        self.distribution = GaussianChunkDistribution(chunk_size, primitive_dim, noise_correlation)
        self.mean_net = nn.Sequential(
            nn.Linear(features_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, chunk_size * primitive_dim)
        )
        self.log_std = nn.Parameter(th.full((primitive_dim,), log_std_init))

    def forward(self, features: th.Tensor) -> GaussianChunkDistribution:
        """
        :param features: ``(batch, features_dim)``
        :return: Distribution over chunks ``(batch, h, d)``
        """
        mean = self.mean_net(features).view(-1, *self.distribution.chunk_shape)
        return self.distribution.proba_distribution(mean, self.log_std)

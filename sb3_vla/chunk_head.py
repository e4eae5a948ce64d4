"""The Gaussian head: a distribution over chunks of primitive actions."""

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch import nn


class GaussianChunkDistribution(DiagGaussianDistribution):
    """
    A diagonal Gaussian over a chunk, whose log-probability and entropy keep the primitive steps apart.

    A chunk may end early, and then only the executed steps count; PPO's ratio per primitive step needs them apart too.

    :param chunk_size: Primitive actions in a chunk, h
    :param primitive_dim: Length of a primitive action, d
    """

    def __init__(self, chunk_size: int, primitive_dim: int) -> None:
        super().__init__(chunk_size * primitive_dim)
        self.chunk_shape = (chunk_size, primitive_dim)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, h * d)`` or ``(batch, h, d)``
        :return: ``(batch, h)``
        """
        return self.distribution.log_prob(actions.view(-1, *self.chunk_shape)).sum(dim=-1)

    def entropy(self) -> th.Tensor:
        """
        :return: ``(batch, h)``
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
    """

    def __init__(
        self, features_dim: int, chunk_size: int, primitive_dim: int, hidden_dim: int = 256, log_std_init: float = -1.5
    ) -> None:
        super().__init__()
        self.distribution = GaussianChunkDistribution(chunk_size, primitive_dim)
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

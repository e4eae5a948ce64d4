"""Standardisation of low-dimensional observations with statistics that travel with the weights."""

from collections.abc import Sequence

import torch as th
from torch import nn


class Normalizer(nn.Module):
    """
    ``(x - mean) / std`` with fixed statistics, the identity until :meth:`fit` or :meth:`use` is called.

    :param dim: Length of the vectors
    """

    mean: th.Tensor
    std: th.Tensor
    fitted: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))
        self.register_buffer("fitted", th.zeros((), dtype=th.bool))
        self._given = False

    def fit(self, x: th.Tensor, minimum_std: float = 1e-2) -> None:
        """
        Take over the statistics of a data set, unless :meth:`use` gave others.

        :param x: ``(samples, dim)``, of any type of numbers
        :param minimum_std: Lower bound of the standard deviation, so that a number that hardly ever changes in the data is
            not blown up when it does later; one that never changes (the id of a task that the data lack) keeps its scale
        """
        self.fitted.fill_(True)
        if self._given:
            return
        x = x.float()
        std = x.std(dim=0, correction=0)
        self.mean.copy_(x.mean(dim=0))
        self.std.copy_(th.where(std < 1e-6, 1.0, std.clamp(min=minimum_std)))

    def use(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """
        Take over the statistics with which a checkpoint was trained, which is lost without them: they stay.

        :param mean: Of each number
        :param std: Of each number
        """
        self.mean.copy_(th.tensor(mean))
        self.std.copy_(th.tensor(std))
        self._given = True

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` was called, of this or of the model that the weights are from."""
        return bool(self.fitted)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return (x.float() - self.mean) / self.std

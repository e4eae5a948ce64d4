"""What a policy's features shall tell beside the action: where the object and the goal are, say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_vla_envs import Demonstration

# A number that varies less within a task is given there, and need not be looked for: 5 mm, where it is a position
MINIMUM_STD = 5e-3


class Targets(NamedTuple):
    """
    What is to be predicted for some observation-chunk pairs.

    :param values: ``(pairs, n)`` float32, standardised within each task
    :param counts: ``(pairs, n)`` float32: 1 where the number varies within the pair's task
    """

    values: th.Tensor
    counts: th.Tensor

    def at(self, index: np.ndarray, device: th.device) -> "Targets":
        """
        :param index: ``(batch,)`` which pairs
        :param device: Where they shall be
        :return: Those
        """
        chosen = th.from_numpy(index)
        return Targets(*(tensor[chosen].to(device) for tensor in self))


class AuxiliaryTarget(nn.Module):
    """
    A small network that predicts observations from a policy's action features, which must learn to know them for that.

    Cloned demonstrations alone do not teach a policy to look: the hand's own place and motion give away where the expert goes
    (causal confusion, de Haan et al. 2019, arXiv 1905.11979). Numbers that the actor does not observe, such as an object's
    place in ``privileged``, must be read from the pictures. They are standardised within each task: over all tasks, which task
    it is would explain most of their variance.

    :param features_dim: Length of the features
    :param targets: Which numbers: indices into observations, by key; ``None`` for all of a key's
    :param episodes: Training episodes, by whose statistics numbers are standardised
    :param hidden_dim: Width of the hidden layer
    :raises ValueError: If an episode does not have such numbers, or none of them varies
    """

    def __init__(
        self,
        features_dim: int,
        targets: Mapping[str, Sequence[int] | None],
        episodes: Sequence[Demonstration],
        hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        self.targets = targets
        by_task: dict[str, list[np.ndarray]] = {}
        for demo in episodes:
            by_task.setdefault(demo.task, []).append(self._numbers(demo))
        #: Mean and standard deviation of each task, ``(n,)``
        self.statistics: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for task, numbers in by_task.items():
            joined = np.concatenate(numbers)
            self.statistics[task] = joined.mean(axis=0), joined.std(axis=0)
        if not any((std >= MINIMUM_STD).any() for _, std in self.statistics.values()):
            raise ValueError(
                f"auxiliary_targets {dict(targets)}: none of these numbers varies by {MINIMUM_STD} or more within a task: "
                "name others, or none"
            )
        n = len(next(iter(self.statistics.values()))[0])
        self.network = nn.Sequential(nn.Linear(features_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, n))

    def _numbers(self, demo: Demonstration) -> np.ndarray:
        return target_numbers(demo, self.targets)

    def of(self, episodes: Sequence[Demonstration]) -> Targets:
        """
        :param episodes: Episodes of tasks that were in training
        :return: Targets of all their pairs, one episode after the other
        """
        values, counts = [], []
        for demo in episodes:
            mean, std = self.statistics[demo.task]
            varies = std >= MINIMUM_STD
            values.append(((self._numbers(demo) - mean) / np.where(varies, std, 1.0)).astype(np.float32))
            counts.append(np.broadcast_to(varies, values[-1].shape).astype(np.float32))
        return Targets(th.from_numpy(np.concatenate(values)), th.from_numpy(np.concatenate(counts)))

    def loss(self, features: th.Tensor, targets: Targets) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param targets: Of the batch
        :return: Scalar: mean squared error over the numbers that count, which is the share of their variance that the
            network does not explain
        """
        error = (self.network(features) - targets.values).square() * targets.counts
        return error.sum() / targets.counts.sum().clamp(min=1.0)


def target_numbers(demo: Demonstration, targets: Mapping[str, Sequence[int] | None]) -> np.ndarray:
    """
    :param demo: An episode
    :param targets: Indices into its observations, by key; ``None`` for all of a key's
    :return: ``(T, n)``
    :raises ValueError: If it does not have such numbers
    """
    parts = []
    for key, indices in targets.items():
        if key not in demo.observations:
            raise ValueError(
                f"auxiliary_targets: a demonstration of task {demo.task!r} has no {key!r}, only {sorted(demo.observations)}"
            )
        numbers = demo.observations[key]
        if numbers.ndim != 2:
            raise ValueError(f"auxiliary_targets: {key!r} must be vectors, its shape is {numbers.shape[1:]}")
        if indices is not None and not all(-numbers.shape[1] <= i < numbers.shape[1] for i in indices):
            raise ValueError(f"auxiliary_targets: {key!r} has {numbers.shape[1]} numbers, got the indices {list(indices)}")
        parts.append(numbers if indices is None else numbers[:, list(indices)])
    return np.concatenate(parts, axis=1).astype(np.float64)

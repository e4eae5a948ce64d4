"""The contract between :class:`~sb3_vla.policies.vla_policy.VLAPolicy` and what turns features into chunks of actions."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from ...common.chunk_mask import masked_mean
from ..backbones import ActionExpert, BackboneFeatures, Normalization


class ChunkSample(NamedTuple):
    """
    Chunks drawn from a distribution, with all that their likelihood needs.

    :param actions: ``(batch, h, d)``, before clipping
    :param extras: Tensors ``(batch, ...)`` by name, e.g. the denoising chain of a flow-matching head; the rollout buffer keeps
        them beside the chunk
    :param step_log_prob: Log-probability of each primitive step, ``(batch, h)``, where drawing them made it known
    """

    actions: th.Tensor
    extras: Mapping[str, th.Tensor] = MappingProxyType({})
    step_log_prob: th.Tensor | None = None


class ChunkDistribution(ABC):
    """
    A distribution over chunks ``(batch, h, d)`` that keeps the primitive steps apart: a chunk may end early, and then only the
    executed steps count; PPO's ratio per primitive step needs them apart, too.

    A subclass implements :meth:`draw`, :meth:`step_log_prob` and :meth:`step_entropy`; the rest is what SB3 asks of a
    distribution.
    """

    @abstractmethod
    def draw(self, deterministic: bool = False) -> ChunkSample:
        """
        :param deterministic: Whether to take the mode instead of a sample
        :return: One chunk for each of the batch
        """

    @abstractmethod
    def step_log_prob(self, sample: ChunkSample) -> th.Tensor:
        """
        :param sample: Chunks, ``(batch, h, d)`` or ``(batch, h * d)``, with the extras that they were drawn with
        :return: Log-probability of each primitive step, ``(batch, h)``
        """

    @abstractmethod
    def step_entropy(self) -> th.Tensor | None:
        """
        :return: Entropy of each primitive step, ``(batch, h)``, or ``None`` where it has no closed form
        """

    def evaluate(self, sample: ChunkSample) -> tuple[th.Tensor, th.Tensor | None]:
        """
        What PPO asks about chunks. A distribution whose steps depend on how a chunk was drawn has an entropy of each step
        given that, which it computes together with the log-probability.

        :param sample: Chunks, with the extras that they were drawn with
        :return: :meth:`step_log_prob` and entropy of each primitive step, by default :meth:`step_entropy`
        """
        return self.step_log_prob(sample), self.step_entropy()

    def drawn_log_prob(self, sample: ChunkSample) -> th.Tensor:
        """
        :param sample: What :meth:`draw` has just returned
        :return: Log-probability of each primitive step, ``(batch, h)``, not computed again where drawing made it known
        """
        return self.step_log_prob(sample) if sample.step_log_prob is None else sample.step_log_prob

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """
        :param deterministic: Whether to take the mode instead of a sample
        :return: Chunks, ``(batch, h, d)``
        """
        return self.draw(deterministic).actions

    def mode(self) -> th.Tensor:
        """
        :return: The most likely chunks, ``(batch, h, d)``
        """
        return self.get_actions(deterministic=True)

    def sample(self) -> th.Tensor:
        """
        :return: Chunks, ``(batch, h, d)``
        """
        return self.get_actions()

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: Chunks, ``(batch, h, d)`` or ``(batch, h * d)``
        :return: Sum of the steps' log-probabilities, ``(batch,)``
        """
        return self.step_log_prob(ChunkSample(actions)).sum(dim=1)

    def entropy(self) -> th.Tensor | None:
        """
        :return: Sum of the steps' entropies, ``(batch,)``, or ``None`` where they have no closed form
        """
        entropy = self.step_entropy()
        return None if entropy is None else entropy.sum(dim=1)


class ActionHead(nn.Module, ABC):
    """
    Turns a backbone's features into a distribution over chunks of actions.

    A subclass implements :meth:`forward` and :meth:`constructor_kwargs`. Networks learn best what is about one in size:
    they speak in units of half the range of the bounds, [-1, 1], or in those of their checkpoint, and :meth:`to_env` and
    :meth:`to_unit` translate; actions outside of the head are always the environment's.

    :param features_dim: Length of the backbone's feature vectors
    :param action_space: Chunks, a bounded ``Box`` of shape ``(h, d)``
    """

    #: The kinds of imitation loss that it offers, its own choice first
    imitation_losses: ClassVar[tuple[str, ...]] = ("nll",)
    #: Whether it reads :attr:`BackboneFeatures.prefix`, which is not kept otherwise
    reads_prefix: bool = False
    #: Whether the product of the steps' likelihoods is the chunk's, as a ratio per chunk needs it
    steps_are_independent: bool = True
    #: Whether likelihoods need the extras that a chunk was drawn with, which SB3's own algorithms don't keep
    needs_extras: bool = False
    #: Arguments that can be changed when a saved model is loaded, as they make neither its networks nor its weights
    adjustable: ClassVar[tuple[str, ...]] = ()
    #: Factor of the noise with which it explores, set by whoever trains it; ``None`` if it knows of none
    noise_scale: float | None = None

    center: th.Tensor
    half_range: th.Tensor

    def __init__(self, features_dim: int, action_space: spaces.Box) -> None:
        super().__init__()
        self.features_dim = features_dim
        self.chunk_size, self.action_dim = action_space.shape
        low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
        self.register_buffer("center", th.as_tensor((high + low) / 2, dtype=th.float32), persistent=False)
        self.register_buffer("half_range", th.as_tensor((high - low) / 2, dtype=th.float32), persistent=False)

    @abstractmethod
    def forward(self, features: BackboneFeatures) -> ChunkDistribution:
        """
        :param features: What the backbone read out
        :return: Distribution over chunks, ``(batch, h, d)``, in the environment's units
        """

    @abstractmethod
    def constructor_kwargs(self) -> dict[str, Any]:
        """
        :return: Plain keyword arguments (beside ``features_dim`` and ``action_space``) that rebuild the same architecture
        """

    def imitation_loss(self, features: BackboneFeatures, actions: th.Tensor, mask: th.Tensor, kind: str = "auto") -> th.Tensor:
        """
        How far the head is from demonstrated chunks: the loss of supervised fine-tuning and of self behaviour cloning.

        :param features: What the backbone read out
        :param actions: Demonstrated chunks before clipping, ``(batch, h, d)``
        :param mask: ``(batch, h)``: 1 where the step counts
        :param kind: One of :attr:`imitation_losses`, ``"auto"`` for the first; ``"nll"`` is the negative log-likelihood
        :return: Scalar: mean over the steps that count
        :raises ValueError: If the head has no such loss
        """
        if kind not in ("auto", *self.imitation_losses):
            raise ValueError(
                f"{type(self).__name__} has no imitation loss {kind!r}: give 'auto' or one of {self.imitation_losses}"
            )
        return -masked_mean(self(features).step_log_prob(ChunkSample(actions)), mask)

    def has_likelihood(self, extras: Mapping[str, th.Tensor]) -> th.Tensor | None:
        """
        Where some chunks are drawn without noise, PPO has nothing to learn from these: their features need not be computed.

        :param extras: What chunks were drawn with
        :return: ``(batch,)`` bool: whose log-probability or entropy depends on the features, ``None`` if all do
        """
        return None

    def use_expert(self, expert: ActionExpert) -> None:
        """
        :param expert: The network with which the backbone's checkpoint draws actions; heads of another kind leave it
        :raises ValueError: If it does not know chunks of this length or width
        """

    def use_normalization(self, normalization: Normalization) -> None:
        """
        Speak in other units than those of half the range of the bounds.

        :param normalization: Of an action
        :raises ValueError: If it is of longer or shorter ones than the environment's
        """
        normalization.check_length("action", self.action_dim)
        self.center.copy_(th.tensor(normalization.shift))
        self.half_range.copy_(th.tensor(normalization.scale))

    def fit(self, actions: np.ndarray) -> None:
        """
        Take over statistics of demonstrations, before the head is fine-tuned on them.

        :param actions: Their primitive actions in the environment's units, ``(samples, d)`` float32
        """

    def restart(self, changed: Collection[str]) -> None:
        """
        A new training begins from weights that were loaded, with other arguments than those that made them: let arguments that
        say what a weight is at the beginning count.

        :param changed: Names of the constructor arguments that were given for the new training
        """

    def metrics(self) -> dict[str, float]:
        """
        :return: What is logged of the head after each update, by name
        """
        return {}

    def to_env(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, h, d)`` in the head's units
        :return: The same in the environment's units
        """
        return self.center + self.half_range * actions

    def to_unit(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, h, d)`` or ``(batch, h * d)`` in the environment's units
        :return: ``(batch, h, d)`` in the head's units
        """
        return (actions.view(-1, self.chunk_size, self.action_dim) - self.center) / self.half_range

"""What frozen parts of a backbone have made of observations."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from .backbones import BackboneFeatures


class EncodedObservations(NamedTuple):
    """
    What need not be computed again of observations that are seen several times, as long as the parts that made it stay frozen:
    image tokens where the images' encoder is frozen, features where the whole backbone is. Nothing where all is trained.

    :param image_tokens: ``(batch, ...)``
    :param action: Features for the action head, ``(batch, features_dim)``
    :param value: Features for the value head, ``(batch, features_dim)``
    :param prefix: See :class:`~sb3_vla.BackboneFeatures`, ``(batch, tokens, features_dim)``
    """

    image_tokens: th.Tensor | None = None
    action: th.Tensor | None = None
    value: th.Tensor | None = None
    prefix: th.Tensor | None = None

    @property
    def features(self) -> BackboneFeatures | None:
        """What the heads read, if that is known."""
        if self.action is None or self.value is None:
            return None
        return BackboneFeatures(self.action, self.value, self.prefix)

    @property
    def tensors(self) -> dict[str, th.Tensor]:
        """What there is, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def map(self, function: Callable[[th.Tensor], th.Tensor]) -> "EncodedObservations":
        """
        :param function: What to do with each tensor
        :return: The results
        """
        return EncodedObservations(**{name: function(tensor) for name, tensor in self.tensors.items()})

    @staticmethod
    def join(
        parts: Iterable["EncodedObservations"], how: Callable[[list[th.Tensor]], th.Tensor] = th.cat
    ) -> "EncodedObservations":
        """
        :param parts: Which all have the same tensors
        :param how: ``th.cat`` for batches, ``th.stack`` for single samples
        :return: All of them, one after the other
        """
        parts = list(parts)
        return EncodedObservations(**{name: how([part.tensors[name] for part in parts]) for name in parts[0].tensors})


#: Where nothing is frozen
NOT_ENCODED = EncodedObservations()


class PolicyInput(NamedTuple):
    """
    A batch of observations on their way into a policy.

    :param observations: As SB3 hands them over, without what ``encoded`` stands for
    :param encoded: What frozen parts have made of the rest
    :param needed: ``(batch,)`` bool: whose features something depends on, ``None`` for all. Those of the others need not be
        computed and are zeros
    """

    observations: PyTorchObs
    encoded: EncodedObservations = NOT_ENCODED
    needed: th.Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Length of the batch, where observations are a dictionary."""
        return len(next(iter({**self.encoded.tensors, **self.observations}.values())))  # type: ignore[dict-item]

    @staticmethod
    def join(batches: Sequence["PolicyInput"]) -> "PolicyInput":
        """
        :param batches: Of dictionary observations, which all are encoded alike
        :return: One after the other, with the keys that all of them have
        """
        keys = set.intersection(*(set(batch.observations) for batch in batches))
        observations = {key: th.cat([batch.observations[key] for batch in batches]) for key in sorted(keys)}  # type: ignore[index]
        encoded = EncodedObservations.join(batch.encoded for batch in batches)
        marks = [batch.needed for batch in batches]
        if all(mark is None for mark in marks):
            return PolicyInput(observations, encoded)
        device = next(mark.device for mark in marks if mark is not None)
        every = (th.ones(batch.n_samples, dtype=th.bool, device=device) for batch in batches)
        needed = th.cat([ones if mark is None else mark for mark, ones in zip(marks, every, strict=True)])
        return PolicyInput(observations, encoded, needed)

"""What a policy's frozen parts make of demonstrations, computed once an episode."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_vla_envs import Demonstration

from ..common.device_transfer import observations_to_device
from ..policies.adapter import PolicyAdapter
from ..policies.encoded import EncodedObservations

# Observations that a policy's frozen parts look at together
_MAX_ENCODED = 64


class FeatureCache:
    """
    Remembers for each episode what the frozen parts of a policy made of its observations, as long as both the episode and the
    parts stay.

    :param adapter: Of the policy
    :param device: Where the policy is
    """

    def __init__(self, adapter: PolicyAdapter, device: th.device | str) -> None:
        self.adapter = adapter
        self.device = device
        #: Whether any part is frozen
        self.is_useful = adapter.stored_space != adapter.read_space
        self._version = adapter.encoding_version()
        # By its id, as an episode can't be hashed; the reference forgets what was made of an episode that is gone
        self._known: dict[int, tuple[weakref.ref[Demonstration], EncodedObservations]] = {}

    def __len__(self) -> int:
        """Episodes that it knows."""
        return len(self._known)

    def put(self, episode: Demonstration, encoded: EncodedObservations) -> None:
        """
        :param episode: An episode
        :param encoded: What the frozen parts made of its observations, ``(T, ...)``
        """
        key = id(episode)
        self._known[key] = weakref.ref(episode, lambda _: self._known.pop(key, None)), encoded

    def at(self, pairs: Sequence[tuple[Demonstration, int]]) -> EncodedObservations:
        """
        :param pairs: Episodes, and the number of a chunk in each
        :return: What the frozen parts make of the observations, ``(len(pairs), ...)``
        """
        self.forget_outdated()
        return EncodedObservations.join((_select(self._of(demo), step) for demo, step in pairs), th.stack)

    def stored_keys(self, keys: Sequence[str]) -> list[str]:
        """
        :param keys: Names of observations
        :return: Those that are read beside what :meth:`at` returns
        """
        stored = self.adapter.stored_space
        return [key for key in keys if key in stored.spaces] if isinstance(stored, spaces.Dict) else list(keys)

    def forget_outdated(self) -> None:
        """Forget what was computed before the weights of frozen parts were replaced."""
        if (version := self.adapter.encoding_version()) != self._version:
            self._known.clear()
            self._version = version

    def _of(self, episode: Demonstration) -> EncodedObservations:
        reference, encoded = self._known.get(id(episode), (None, EncodedObservations()))
        # Of a deep copy of this cache no reference says when an episode is gone
        if reference is None or reference() is not episode:
            pieces = []
            for start in range(0, len(episode), _MAX_ENCODED):
                part = {key: np.asarray(value[start : start + _MAX_ENCODED]) for key, value in episode.observations.items()}
                pieces.append(self.adapter.encode(observations_to_device(part, self.device)))
            encoded = EncodedObservations.join(pieces)
            self.put(episode, encoded)
        return encoded


def _select(encoded: EncodedObservations, step: int) -> EncodedObservations:
    return encoded.map(lambda tensor: tensor[step])

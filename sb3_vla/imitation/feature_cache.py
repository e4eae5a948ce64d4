"""What a policy's frozen parts make of demonstrations, computed once an episode."""

import itertools
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
#: How much a cache holds by default
MAX_CACHED_BYTES = 2 * 1024**3


class FeatureCache:
    """
    Remembers for each episode what the frozen parts of a policy made of its observations, as long as both the episode and the
    parts stay, and as long as there is room: where there is none, they look at each observation when it is drawn.

    :param adapter: Of the policy
    :param device: Where the policy is
    :param max_bytes: How much it may hold, on that device. 1,000 episodes of 10 chunks, seen by one camera, are 46 MB of the
        tiny model's image tokens (9 of 128 numbers), and 1.5 GB of SmolVLM-256M's (64 of 576)
    """

    def __init__(self, adapter: PolicyAdapter, device: th.device | str, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self.adapter = adapter
        self.device = device
        self.max_bytes = max_bytes
        #: Whether any part is frozen
        self.is_useful = adapter.stored_space != adapter.read_space
        self._version = adapter.encoding_version()
        # By its id, as an episode can't be hashed; the reference forgets what was made of an episode that is gone
        self._known: dict[int, tuple[weakref.ref[Demonstration], EncodedObservations]] = {}
        #: How much it holds
        self.n_bytes = 0

    def __len__(self) -> int:
        """Episodes that it knows."""
        return len(self._known)

    def put(self, episode: Demonstration, encoded: EncodedObservations) -> None:
        """
        :param episode: An episode
        :param encoded: What the frozen parts made of its observations, ``(T, ...)``, forgotten if there is no room for it
        """
        key = id(episode)
        self._forget(key)
        if self.n_bytes + _n_bytes(encoded) <= self.max_bytes:
            self._known[key] = weakref.ref(episode, lambda _: self._forget(key)), encoded
            self.n_bytes += _n_bytes(encoded)

    def at(self, pairs: Sequence[tuple[Demonstration, int]]) -> EncodedObservations:
        """
        :param pairs: Episodes, and the number of a chunk in each
        :return: What the frozen parts make of the observations, ``(len(pairs), ...)``
        """
        self.forget_outdated()
        known = [self._of(episode) for episode, _ in pairs]
        unknown = [pair for pair, encoded in zip(pairs, known, strict=True) if encoded is None]
        computed = self._encode(unknown) if unknown else None
        numbers = itertools.count()
        rows = [
            _select(computed, next(numbers)) if encoded is None else _select(encoded, step)
            for encoded, (_, step) in zip(known, pairs, strict=True)
        ]
        return EncodedObservations.join(rows, th.stack)

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
            self.n_bytes = 0
            self._version = version

    def _of(self, episode: Demonstration) -> EncodedObservations | None:
        """
        :param episode: An episode
        :return: What the frozen parts make of all of it, ``None`` where there is no room to remember that
        """
        reference, encoded = self._known.get(id(episode), (None, None))
        # Of a deep copy of this cache no reference says when an episode is gone
        if reference is not None and reference() is episode:
            return encoded
        if self.n_bytes + len(episode) * self._bytes_per_observation() > self.max_bytes:
            return None
        encoded = self._encode([(episode, step) for step in range(len(episode))])
        self.put(episode, encoded)
        return encoded

    def _forget(self, key: int) -> None:
        if key in self._known:
            self.n_bytes -= _n_bytes(self._known.pop(key)[1])

    def _bytes_per_observation(self) -> float:
        for _, encoded in self._known.values():
            return _n_bytes(encoded) / len(next(iter(encoded.tensors.values())))
        return 0.0

    def _encode(self, pairs: Sequence[tuple[Demonstration, int]]) -> EncodedObservations:
        """
        :param pairs: See :meth:`at`
        :return: What the frozen parts make of the observations, computed
        """
        pieces = []
        for start in range(0, len(pairs), _MAX_ENCODED):
            part = pairs[start : start + _MAX_ENCODED]
            arrays = {key: np.stack([demo.observations[key][step] for demo, step in part]) for key in part[0][0].observations}
            pieces.append(self.adapter.precompute(observations_to_device(arrays, self.device, self.adapter.host_keys)))
        return EncodedObservations.join(pieces)


def _n_bytes(encoded: EncodedObservations) -> int:
    return sum(tensor.nbytes for tensor in encoded.tensors.values())


def _select(encoded: EncodedObservations | None, number: int) -> EncodedObservations:
    assert encoded is not None
    return encoded.map(lambda tensor: tensor[number])

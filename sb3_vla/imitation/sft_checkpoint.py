"""The file that supervised fine-tuning goes on from after it was stopped."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_vla_envs import Demonstration

from ..common.plain_file import load_plain, save_plain
from ..common.tensor_fingerprint import fingerprint
from ..policies.vla_policy import VLAPolicy
from .sft_state import SFTState

_FORMAT = "sb3-vla SFT 1"
_GIVE_THE_SAME = "give what it began with, or move the file elsewhere to begin anew"


@dataclass
class SFTCheckpoint:
    """
    :param path: The file, there or not
    :param every: Batches between two times that it is written
    :param given: Fingerprints of what a fine-tuning is given, by name
    :param settings: What else makes it another one, plain values by name
    """

    path: Path
    every: int
    given: Mapping[str, str]
    settings: Mapping[str, Any]

    def restore(self, state: SFTState) -> bool:
        """
        :param state: Of a fine-tuning that begins, which goes on from the file if it is there
        :return: Whether it is
        :raises ValueError: If the file is damaged or of another fine-tuning
        """
        if not self.path.is_file():
            return False
        content = _read(self.path)
        _check_given(self.path, content, self.given)
        for name, value in self.settings.items():
            its_own = content["settings"].get(name)
            if its_own != value:
                raise ValueError(
                    f"'{self.path}' is of a fine-tuning with {name}={its_own!r:.200}, not {value!r:.200}: {_GIVE_THE_SAME}"
                )
        state.set_state(content["state"])
        return True

    def save(self, state: SFTState) -> None:
        """
        :param state: What is written
        :raises OSError: If it can't be
        """
        identity = {"given": self.given, "settings": self.settings}
        save_plain(self.path, {"format": _FORMAT, **identity, "state": state.get_state()})

    def save_if_due(self, state: SFTState) -> None:
        """
        :param state: After a batch
        """
        if state.schedule.last_epoch % self.every == 0:
            self.save(state)


def check_sft_checkpoint(path: Path, given: Mapping[str, str]) -> None:
    """
    Before anything that takes time, see that a file can be gone on from.

    :param path: The file, there or not
    :param given: Fingerprints of what goes on from it, see :class:`SFTCheckpoint`; of some of it
    :raises ValueError: If it is damaged, or of a fine-tuning that was given something else
    """
    if path.is_file():
        _check_given(path, _read(path), given)


def fingerprint_episodes(episodes: Sequence[Demonstration]) -> str:
    """
    :param episodes: Demonstrations
    :return: A few letters that differ for others, as seen from the first picture of each
    """
    digest = hashlib.sha256()
    for demo in episodes:
        digest.update(f"{demo.task} {demo.success}".encode())
        arrays = [demo.actions, demo.chunk_lengths]
        for key, values in sorted(demo.observations.items()):
            digest.update(f"{key} {values.dtype} {values.shape}".encode())
            arrays.append(values if values.ndim <= 2 else values[:1])
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def fingerprint_policy(policy: VLAPolicy) -> str:
    """
    :param policy: A policy
    :return: A few letters that differ for other networks, and for others' weights in what is frozen
    """
    return fingerprint(
        # Of what learns names and shapes alone
        (f"{name} {tuple(parameter.shape)}", parameter.detach().flatten()[: 0 if parameter.requires_grad else None])
        for name, parameter in policy.named_parameters()
    )


def _read(path: Path) -> dict[str, Any]:
    """
    :param path: A file
    :return: Its content
    :raises ValueError: If it is damaged, or something else
    """
    try:
        content = load_plain(path)
    except ValueError as error:
        raise ValueError(f"{error}; move it elsewhere to begin anew") from error
    parts = [content.get(name) for name in ("given", "settings", "state")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or content.get("format") != _FORMAT:
        raise ValueError(f"'{path}' is not what a fine-tuning goes on from: give another file")
    return content


def _check_given(path: Path, content: Mapping[str, Any], given: Mapping[str, str]) -> None:
    for name, value in given.items():
        if content["given"].get(name) != value:
            raise ValueError(f"'{path}' is of a fine-tuning with other {name}: {_GIVE_THE_SAME}")

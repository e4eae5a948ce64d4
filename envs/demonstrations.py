"""
Demonstrations in memory and on disk.

The file is a NumPy ``.npz`` (a zip of ``.npy`` arrays) with no pickled object in it. With n episodes of T chunks in all:

=====================  ==================  ==================================================================
array                  shape, dtype        meaning
=====================  ==================  ==================================================================
``format``             ``()`` str          ``"sb3-vla-demonstrations"``
``version``            ``()`` int64        ``1``
``task``               ``(n,)`` str        task of each episode
``success``            ``(n,)`` bool       whether it succeeded
``n_chunks``           ``(n,)`` int64      chunks of each episode; their sum is T
``actions``            ``(T, h, d)`` f4    action chunks of all episodes, one after the other
``chunk_lengths``      ``(T,)`` int64      steps executed of each chunk
``observation/<key>``  ``(T, ...)``        what the policy saw before each chunk, one array a key of the observation
=====================  ==================  ==================================================================
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT = "sb3-vla-demonstrations"
VERSION = 1
_PREFIX = "observation/"


@dataclass(repr=False)
class Demonstration:
    """
    One episode as pairs of an observation and the action chunk to imitate.

    :param task: Name of the task
    :param observations: What the policy sees before each chunk: arrays ``(T, ...)`` by key of the observation space
    :param actions: Action chunks, shape ``(T, h, d)``, float32; what was not executed does not count (an expert's is zero)
    :param chunk_lengths: How many actions of each chunk were executed, shape ``(T,)``, int64
    :param success: Whether the episode succeeded
    :raises ValueError: If the arrays disagree on T
    """

    task: str
    observations: dict[str, NDArray]
    actions: NDArray[np.float32]
    chunk_lengths: NDArray[np.int64]
    success: bool

    def __post_init__(self) -> None:
        lengths = {key: len(value) for key, value in self.observations.items()}
        lengths |= {"actions": len(self.actions), "chunk_lengths": len(self.chunk_lengths)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The arrays of a demonstration must have one entry a chunk each, got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.chunk_lengths)

    def __repr__(self) -> str:
        outcome = "success" if self.success else "failure"
        return f"Demonstration({self.task!r}, {outcome}, {self.n_steps} steps in {len(self)} chunks)"

    @property
    def n_steps(self) -> int:
        """Primitive steps of the episode."""
        return int(self.chunk_lengths.sum())


def save_demonstrations(path: str | os.PathLike[str], demonstrations: Sequence[Demonstration]) -> None:
    """
    Write demonstrations to a file, replacing it only once the new one is complete.

    :param path: The file, used as given
    :param demonstrations: At least one; all with the same observation keys and shapes
    :raises ValueError: If there is none, or they do not fit together
    """
    if not demonstrations:
        raise ValueError("There are no demonstrations to save")
    arrays = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "task": np.array([demo.task for demo in demonstrations]),
        "success": np.array([demo.success for demo in demonstrations]),
        "n_chunks": np.array([len(demo) for demo in demonstrations]),
        **_concatenated(demonstrations),
    }
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, arrays)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load_demonstrations(path: str | os.PathLike[str]) -> list[Demonstration]:
    """
    Read what :func:`save_demonstrations` wrote.

    :param path: The file, used as given
    :return: The demonstrations in the order in which they were saved
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is truncated, damaged, of another version or something else
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not a demonstration file, or a truncated one: collect the demonstrations again")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            raise ValueError(_damaged(path, error)) from error
    _check_format(path, arrays)
    try:
        return _separated(arrays)
    except (KeyError, ValueError) as error:
        raise ValueError(_damaged(path, error)) from error


def _concatenated(demonstrations: Sequence[Demonstration]) -> dict[str, NDArray]:
    """The arrays of all episodes, one after the other."""
    keys = list(demonstrations[0].observations)
    for demo in demonstrations:
        if set(demo.observations) != set(keys):
            raise ValueError(f"All demonstrations must have the observations {sorted(keys)}, got {sorted(demo.observations)}")
    joined = {
        "actions": np.concatenate([demo.actions for demo in demonstrations]),
        "chunk_lengths": np.concatenate([demo.chunk_lengths for demo in demonstrations]),
    }
    for key in keys:
        joined[_PREFIX + key] = np.concatenate([demo.observations[key] for demo in demonstrations])
    return joined


def _separated(arrays: dict[str, NDArray]) -> list[Demonstration]:
    """The episodes that ``_concatenated`` joined."""
    ends = np.cumsum(arrays["n_chunks"])
    keys = [name.removeprefix(_PREFIX) for name in arrays if name.startswith(_PREFIX)]
    demonstrations = []
    for task, success, start, end in zip(arrays["task"], arrays["success"], [0, *ends[:-1]], ends, strict=True):
        part = slice(start, end)
        demonstrations.append(
            Demonstration(
                task=str(task),
                observations={key: arrays[_PREFIX + key][part] for key in keys},
                actions=arrays["actions"][part],
                chunk_lengths=arrays["chunk_lengths"][part],
                success=bool(success),
            )
        )
    return demonstrations


def _damaged(path: str | os.PathLike[str], error: Exception) -> str:
    return f"{path} is a damaged demonstration file, or something else ({error}): collect the demonstrations again"


def _check_format(path: str | os.PathLike[str], arrays: dict[str, NDArray]) -> None:
    if "format" not in arrays or "version" not in arrays or str(arrays["format"]) != FORMAT:
        raise ValueError(f"{path} is not a demonstration file (it is another kind of zip or npz archive)")
    version = int(arrays["version"])
    if version != VERSION:
        raise ValueError(
            f"{path} is a demonstration file of version {version}, this sb3-vla reads version {VERSION}: collect the "
            "demonstrations again, or use the release that wrote it"
        )


def _write(file: BinaryIO, arrays: dict[str, NDArray]) -> None:
    # As np.savez_compressed does, but at zlib's quickest level: a third of its time for files hardly larger.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

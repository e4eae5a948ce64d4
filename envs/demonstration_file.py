"""
Demonstrations on disk.

The file is a NumPy ``.npz`` (a zip of ``.npy`` arrays) with no pickled object in it. With n episodes of T chunks in all:

=====================  ==================  ==================================================================
array                  shape, dtype        meaning
=====================  ==================  ==================================================================
``format``             ``()`` str          ``"sb3-vla-demonstrations"``
``version``            ``()`` int64        ``2``
``task``               ``(n,)`` str        task of each episode
``success``            ``(n,)`` bool       whether it succeeded
``n_chunks``           ``(n,)`` int64      chunks of each episode; their sum is T
``actions``            ``(T, h, d)`` f4    action chunks of all episodes, one after the other
``chunk_lengths``      ``(T,)`` int64      steps executed of each chunk
``rewards``            ``(T,)`` f4         reward of each chunk; may be absent
``observation/<key>``  ``(T, ...)``        what the policy saw before each chunk, one array a key of the observation
=====================  ==================  ==================================================================

Version 2 is not compressed, so that pictures can stay in the file until they are used. Version 1, compressed, is read too.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .demonstrations import Demonstration
from .durable_files import replacing

FORMAT = "sb3-vla-demonstrations"
VERSION = 2
_READABLE = (1, 2)
_PREFIX = "observation/"
_BLOCK = 1 << 20  # bytes read at a time
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and of further fields
# What the standard library raises about a damaged zip or array; its compression is of no kind that it knows, say
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, SyntaxError)


def save_demonstrations(path: str | os.PathLike[str], demonstrations: Iterable[Demonstration]) -> None:
    """
    Write demonstrations to a file, replacing it only once the new one is complete and on the disk.

    :param path: The file, used as given
    :param demonstrations: All with the same observation keys, shapes and dtypes; of an iterator, pictures and prompts wait in
        a temporary file beside this one, so that there may be more of them than fit into memory
    :raises ValueError: If they do not fit together
    """
    with replacing(path) as file, tempfile.TemporaryFile(dir=Path(path).parent) as waiting:
        if not isinstance(demonstrations, Sequence):
            demonstrations = _in_file(demonstrations, waiting)
        signature = _signature(demonstrations)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, demonstrations, signature)


def load_demonstrations(path: str | os.PathLike[str]) -> list[Demonstration]:
    """
    Read what :func:`save_demonstrations` wrote, and check all of it. Pictures and prompts stay in the file (they are mapped
    into memory), so that there may be more of them than fit into memory; the file must not be changed as long as they are in
    use, but may be replaced or removed.

    :param path: The file, used as given
    :return: The demonstrations in the order in which they were saved
    :raises TypeError: If it is no path
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is truncated, damaged, of another version or something else
    """
    path = os.fspath(path)  # open() would take a number for a file that is open already
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no demonstration file {path!r}: make one with `sb3-vla demos`, or check the path")
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not a demonstration file, or a truncated one: collect the demonstrations again")
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {info.filename.removesuffix(".npy"): _read(archive, file, info) for info in archive.infolist()}
        except _DAMAGE as error:
            raise ValueError(_damaged(path, error)) from error
    _check_format(path, arrays)
    try:
        return list(_separated(arrays))
    except (KeyError, ValueError) as error:
        raise ValueError(_damaged(path, error)) from error


def _in_file(demonstrations: Iterable[Demonstration], file: BinaryIO) -> list[Demonstration]:
    """The same demonstrations, their observations of bytes mapped from a file that they are written to one by one."""
    written: list[tuple[Demonstration, dict[str, int]]] = []
    for demo in demonstrations:
        starts: dict[str, int] = {}
        observations = dict(demo.observations)
        for key, values in demo.observations.items():
            if values.dtype.itemsize == 1:
                starts[key] = file.tell()
                file.write(np.ascontiguousarray(values).tobytes())
                # Type and shape for later, without the bytes
                observations[key] = np.broadcast_to(np.zeros((), values.dtype), values.shape)
        written.append((replace(demo, observations=observations), starts))
    file.flush()
    content = np.memmap(file, np.uint8, "r") if file.tell() else np.empty(0, np.uint8)
    for demo, starts in written:
        for key, start in starts.items():
            values = demo.observations[key]
            demo.observations[key] = content[start : start + values.size].view(values.dtype).reshape(values.shape)
    return [demo for demo, _ in written]


def _signature(demonstrations: Sequence[Demonstration]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of a chunk's entry in each array, which all demonstrations must have in common."""
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for demo in demonstrations:
        arrays = {"actions": demo.actions, "chunk_lengths": demo.chunk_lengths}
        arrays |= {} if demo.rewards is None else {"rewards": demo.rewards}
        arrays |= {_PREFIX + key: values for key, values in demo.observations.items()}
        given = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        expected = expected or given
        if given.keys() != expected.keys():
            names = [sorted(name.removeprefix(_PREFIX) for name in names) for names in (expected, given)]
            raise ValueError(f"All demonstrations must have the arrays {names[0]}, got {names[1]}")
        for name, (dtype, shape) in given.items():
            if expected[name] != (dtype, shape):
                raise ValueError(
                    f"{name!r} of all demonstrations must be {expected[name][0]} of shape {expected[name][1]} a chunk, got "
                    f"{dtype} of shape {shape} in one of task {demo.task!r}"
                )
    return expected


def _write(
    archive: zipfile.ZipFile,
    demonstrations: Sequence[Demonstration],
    signature: dict[str, tuple[np.dtype[Any], tuple[int, ...]]],
) -> None:
    tables = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "task": np.array([demo.task for demo in demonstrations], dtype=np.str_),
        "success": np.array([demo.success for demo in demonstrations], dtype=np.bool_),
        "n_chunks": np.array([len(demo) for demo in demonstrations], dtype=np.int64),
    }
    for name, table in tables.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, table, allow_pickle=False)
    n_chunks = sum(len(demo) for demo in demonstrations)
    for name, (dtype, shape) in signature.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_chunks, *shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for array in _arrays(name, demonstrations):  # one after the other: all together may not fit into memory
                member.write(np.ascontiguousarray(array).tobytes())


def _arrays(name: str, demonstrations: Iterable[Demonstration]) -> Iterator[NDArray[Any]]:
    for demo in demonstrations:
        yield demo.observations[name.removeprefix(_PREFIX)] if name.startswith(_PREFIX) else getattr(demo, name)


def _read(archive: zipfile.ZipFile, file: BinaryIO, info: zipfile.ZipInfo) -> NDArray[Any]:
    """An array of the file, checked; of bytes that are not compressed it is mapped, not read."""
    if info.compress_type != zipfile.ZIP_STORED:
        return _parse(archive.read(info))
    start = _checked_start(file, info)
    file.seek(start)
    dtype, shape, fortran_order, header_size = _header(file, info.file_size)
    if dtype.itemsize == 1 and 0 not in shape and not fortran_order:
        # Copy on write: PyTorch warns of arrays that cannot be written to
        return np.asarray(np.memmap(file, dtype, "c", start + header_size, shape))
    file.seek(start)
    return _parse(file.read(info.file_size))


def _parse(content: bytes) -> NDArray[Any]:
    _header(io.BytesIO(content), len(content))
    return np.load(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-any-return]


def _header(file: Any, size: int) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Of an array's file, ``size`` bytes long, that begins here: dtype, shape, order, length of the header."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of format {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    header_size = file.tell() - start
    n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if dtype.hasobject or header_size + n_bytes != size:
        raise ValueError(f"an array of {dtype} and shape {shape} in {size} bytes")
    return dtype, shape, fortran_order, header_size


def _checked_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the content of a zip member begins that is not compressed; its checksum is compared, a block at a time."""
    file.seek(info.header_offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    name = file.read(name_length)
    if signature != b"PK\x03\x04" or name != info.filename.encode():
        raise zipfile.BadZipFile(f"no member {info.filename} where it should be")
    start = file.seek(extra_length, os.SEEK_CUR)
    checksum, left = 0, info.file_size
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise EOFError(f"{info.filename} ends too early")
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    if checksum != info.CRC:
        raise zipfile.BadZipFile(f"wrong checksum of {info.filename}")
    return start


def _separated(arrays: dict[str, NDArray[Any]]) -> Iterator[Demonstration]:
    """The episodes of the arrays that hold them one after the other."""
    n_chunks = arrays["n_chunks"]
    n_episodes = {name: len(arrays[name]) for name in ("task", "success", "n_chunks")}
    keys = [name.removeprefix(_PREFIX) for name in arrays if name.startswith(_PREFIX)]
    joined = [*(_PREFIX + key for key in keys), "actions", "chunk_lengths", *(["rewards"] if "rewards" in arrays else [])]
    if len(set(n_episodes.values())) > 1:
        raise ValueError(f"arrays of {n_episodes} episodes")
    if not len(n_chunks):
        return
    n_entries = {name: len(arrays[name]) for name in joined}
    if set(n_entries.values()) != {int(n_chunks.sum())} or n_chunks.min() < 0:
        raise ValueError(f"arrays of {n_entries} chunks for {int(n_chunks.sum())} in all episodes")
    ends = np.cumsum(n_chunks)
    for task, success, start, end in zip(arrays["task"], arrays["success"], [0, *ends[:-1]], ends, strict=True):
        part = slice(start, end)
        yield Demonstration(
            task=str(task),
            observations={key: arrays[_PREFIX + key][part] for key in keys},
            actions=arrays["actions"][part],
            chunk_lengths=arrays["chunk_lengths"][part],
            success=bool(success),
            rewards=arrays["rewards"][part] if "rewards" in arrays else None,
        )


def _damaged(path: str | os.PathLike[str], error: Exception) -> str:
    return f"{path} is a damaged demonstration file, or something else ({error}): collect the demonstrations again"


def _check_format(path: str | os.PathLike[str], arrays: dict[str, NDArray[Any]]) -> None:
    if "format" not in arrays or "version" not in arrays or str(arrays["format"]) != FORMAT:
        raise ValueError(f"{path} is not a demonstration file (it is another kind of zip or npz archive)")
    version = int(arrays["version"])
    if version not in _READABLE:
        raise ValueError(
            f"{path} is a demonstration file of version {version}, this sb3-vla reads versions "
            f"{' and '.join(map(str, _READABLE))}: collect the demonstrations again, or use the release that wrote it"
        )

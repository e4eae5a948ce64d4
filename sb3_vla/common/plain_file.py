"""A file of plain values: one of safetensors, whose metadata holds what is no tensor as JSON."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch as th
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from sb3_vla_envs.durable_files import replacing

from .plain_values import PlainValues

_CONTENT, _CHECKSUM = "content", "sha256"
# What reading a file raises that is not as save_plain wrote it
_DAMAGE = (SafetensorError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError)


def save_plain(path: str | os.PathLike[str], value: Any) -> None:
    """
    :param path: The file, which is replaced once the new one is complete and on the disk
    :param value: What :class:`PlainValues` can hold
    :raises TypeError: If there is something else in it
    """
    values = PlainValues()
    text = json.dumps(values.encode(value))
    metadata = {_CONTENT: text, _CHECKSUM: _checksum(text, values.tensors)}
    with replacing(path) as file:
        file.write(save_tensors(values.tensors, metadata=metadata))


def load_plain(path: str | os.PathLike[str]) -> Any:
    """
    :param path: What :func:`save_plain` wrote
    :return: The value; nothing that the file says is run
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is truncated, damaged or something else, or names what is not trusted
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        if _checksum(metadata[_CONTENT], tensors) != metadata[_CHECKSUM]:
            raise ValueError("wrong checksum")
        # They are views of the file until here
        return PlainValues({name: tensor.clone() for name, tensor in tensors.items()}).decode(json.loads(metadata[_CONTENT]))
    except _DAMAGE as error:
        raise ValueError(f"{os.fspath(path)!r} is truncated, damaged or no file of sb3-vla: {error}") from error


def _checksum(text: str, tensors: Mapping[str, th.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(th.uint8).numpy().data)
    return digest.hexdigest()

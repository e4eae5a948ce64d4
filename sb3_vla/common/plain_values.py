"""Python values as JSON and tensors, from which they are made again without running anything that a file says."""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from .trusted_names import find_trusted, is_part, name_of, trust

# What begins the name of a kind of value in JSON
_MARK = "$"
_PLAIN = (type(None), bool, int, float, str)


class _Kind(NamedTuple):
    """
    A kind of value that JSON does not have.

    :param type: Its type
    :param take_apart: Gives what it is made of
    :param put_together: Makes it of that again
    """

    type: Any
    take_apart: Callable[[Any], Any]
    put_together: Callable[[Any], Any]


class PlainValues:
    """
    Translates values into JSON and back. Arrays and tensors are kept apart, in :attr:`tensors`.

    :param tensors: Those that values to read refer to
    """

    def __init__(self, tensors: Mapping[str, th.Tensor] | None = None) -> None:
        self.tensors = dict(tensors or {})

    def encode(self, value: Any) -> Any:
        """
        :param value: Numbers, texts, paths, arrays, tensors, spaces, trusted classes, functions and their plain instances, and
            tuples, lists, dictionaries and deques of these
        :return: The same in what JSON can hold
        :raises TypeError: If there is something else in it
        """
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return value
        if isinstance(value, list) and type(value) is list:
            return [self.encode(item) for item in value]
        if type(value) in (dict, OrderedDict) and all(isinstance(key, str) and key[:1] != _MARK for key in value):
            return {key: self.encode(item) for key, item in value.items()}
        if isinstance(value, th.Tensor):
            return {"$tensor": self._keep(value)}
        for name, kind in _KINDS.items():
            if isinstance(value, kind.type):
                return {name: self.encode(kind.take_apart(value))}
        if is_part(type(value)) or not hasattr(value, "__dict__"):
            raise TypeError(f"{value!r:.200} is a {type(value).__name__}")
        return {"$instance": [_named(type(value)), self.encode(dict(vars(value)))]}

    def decode(self, value: Any) -> Any:
        """
        :param value: What :meth:`encode` returned, or what a file says that it did
        :return: The value
        :raises ValueError: If it names what is not trusted, or is damaged
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        name = next(iter(value), "")
        if not name.startswith(_MARK):
            return {key: self.decode(item) for key, item in value.items()}
        if name == "$tensor":
            return self.tensors[value[name]]
        content = self.decode(value[name])
        if name == "$instance":
            return _instance(*content)
        if name not in _KINDS:
            raise ValueError(f"there is no kind of value {name!r}")
        return _KINDS[name].put_together(content)

    def _keep(self, tensor: th.Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = tensor.detach().cpu().clone(memory_format=th.contiguous_format)
        return name


def _instance(name: str, state: dict[str, Any]) -> Any:
    """An object as it was, made without its constructor: schedules, rules for the BC weight."""
    its_class = find_trusted(name)
    if not isinstance(its_class, type) or is_part(its_class):
        raise ValueError(f"a file can't hold an object of {name!r}")
    made: Any = object.__new__(its_class)
    vars(made).update(state)
    return made


def _named(each: Any) -> str:
    trust(each)
    return name_of(each)


def _tensor(array: np.ndarray) -> th.Tensor:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} is not of numbers")
    return th.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _array_parts(array: np.ndarray) -> Any:
    """
    :param array: Of numbers
    :return: These, and where its axes lie in memory in another order, as those of transposed pictures do, that order, too: the
        last bits of a convolution depend on it, and a training that goes on has to give the same
    """
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    return _tensor(array) if order == list(range(array.ndim)) else [_tensor(array.transpose(order)), order]


def _array(parts: Any) -> np.ndarray:
    """:return: What :func:`_array_parts` took apart"""
    if isinstance(parts, th.Tensor):
        return parts.numpy()
    numbers, order = parts
    return numbers.numpy().transpose(np.argsort(order))


_KINDS: dict[str, _Kind] = {
    "$tuple": _Kind(tuple, list, tuple),
    "$deque": _Kind(deque, lambda x: [list(x), x.maxlen], lambda x: deque(x[0], maxlen=x[1])),
    "$array": _Kind(np.ndarray, _array_parts, _array),
    "$number": _Kind(np.generic, lambda x: _tensor(np.asarray(x)), lambda x: x.numpy()[()]),
    "$dtype": _Kind(np.dtype, lambda x: x.str, np.dtype),
    "$device": _Kind(th.device, str, th.device),
    "$path": _Kind(PurePath, str, Path),
    "$box": _Kind(spaces.Box, lambda x: [x.low, x.high, x.dtype], lambda x: spaces.Box(x[0], x[1], dtype=x[2].type)),
    "$discrete": _Kind(spaces.Discrete, lambda x: [int(x.n), int(x.start)], lambda x: spaces.Discrete(x[0], start=x[1])),
    "$multi_discrete": _Kind(
        spaces.MultiDiscrete,
        lambda x: [x.nvec, x.start, x.dtype],
        lambda x: spaces.MultiDiscrete(x[0], dtype=x[2].type, start=x[1]),
    ),
    "$multi_binary": _Kind(spaces.MultiBinary, lambda x: x.n if isinstance(x.n, int) else list(x.n), spaces.MultiBinary),
    "$dict_space": _Kind(spaces.Dict, lambda x: list(map(list, x.spaces.items())), lambda x: spaces.Dict(dict(x))),
    "$tuple_space": _Kind(spaces.Tuple, lambda x: list(x.spaces), spaces.Tuple),
    # After the spaces, one of which is a mapping, too
    "$pairs": _Kind(Mapping, lambda x: [[key, item] for key, item in x.items()], lambda x: {key: item for key, item in x}),
    "$class": _Kind(type, _named, find_trusted),
    "$function": _Kind(FunctionType, _named, find_trusted),
}

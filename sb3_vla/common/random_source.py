"""Where torch's random numbers come from."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

# What has got an argument for a generator only of late, and what it does
_LIKE = {th.ops.aten.randn_like: th.Tensor.normal_, th.ops.aten.rand_like: th.Tensor.uniform_}


def drawing_from(generator: th.Generator | None) -> AbstractContextManager[Any]:
    """
    Within it, and on this thread alone, torch draws from a generator. Distributions have no argument for one, and torch's
    global one serves all threads, so that what each gets of it depends on who is quicker.

    :param generator: On the device of what is drawn, ``None`` for the global one
    :return: Context manager
    """
    return nullcontext() if generator is None else _Drawing(generator)


class _Drawing(TorchDispatchMode):
    """:param generator: What random operations get"""

    def __init__(self, generator: th.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if (fill := _LIKE.get(func.overloadpacket)) is not None:
            return fill(th.empty_like(*args, **given), generator=self.generator)
        if not _takes_generator(func):
            return func(*args, **given)
        return func.overloadpacket(*args, **{**given, "generator": self.generator})


@lru_cache(maxsize=1024)
def _takes_generator(func: Any) -> bool:
    if th.Tag.nondeterministic_seeded not in func.tags:
        return False
    packet = func.overloadpacket
    schemas = (getattr(packet, name)._schema for name in packet.overloads())
    return any(argument.name == "generator" for schema in schemas for argument in schema.arguments)

"""How much memory a computation's tensors take at most."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_INDEXING = (
    th.ops.aten.index.Tensor,
    th.ops.aten.index_put.default,
    th.ops.aten.index_put_.default,
    th.ops.aten._index_put_impl_.default,
)


class TensorMemory(TorchDispatchMode):
    """
    Within it, the memory of tensors is counted from when an operation returns them until nothing refers to them any more. What
    an operation needs by itself for a while does not count.

    Of PyTorch's fake tensors (``FakeTensorMode``), which have a shape but no content, the same is counted: what a model would
    take that does not fit into this machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counted: set[int] = set()
        #: Bytes that tensors take now
        self.n_bytes = 0
        #: Bytes that they took at most
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _INDEXING:
            args = (args[0], _numbers(args[1]), *args[2:])
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given:  # else the result is another look at what was there
                self._count(storage)
        return result

    def _count(self, storage: th.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key not in self._counted:
            self._counted.add(key)
            self.n_bytes += n_bytes
            self.peak = max(self.peak, self.n_bytes)
            weakref.finalize(storage, self._discount, key, n_bytes).atexit = False

    def _discount(self, key: int, n_bytes: int) -> None:
        self._counted.discard(key)
        self.n_bytes -= n_bytes


def peak_memory(device: th.device, work: Callable[[], object]) -> int:
    """
    :param device: Where the work is done
    :param work: The work
    :return: Bytes that its tensors took at most there, beside those that were there before
    """
    if device.type == "cuda":
        before = th.cuda.memory_allocated(device)
        th.cuda.reset_peak_memory_stats(device)
        work()
        return th.cuda.max_memory_allocated(device) - before
    with TensorMemory() as memory:
        work()
    return memory.peak


def _storages(values: Any) -> Iterator[th.UntypedStorage]:
    return (each.untyped_storage() for each in tree_iter(values) if isinstance(each, th.Tensor))


def _numbers(indices: list[th.Tensor | None]) -> list[th.Tensor | None]:
    """
    :param indices: Along each dimension; a mask stands for as many as it has
    :return: The same without masks: what a mask chooses of a fake tensor would have no known size
    """
    numbers: list[th.Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype in (th.bool, th.uint8)
        numbers += list(index.nonzero(as_tuple=True)) if is_mask else [index]  # type: ignore[union-attr]
    return numbers

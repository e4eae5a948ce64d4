"""The processes that train one model together: what they tell and ask each other."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

import torch as th
from torch import distributed as dist

from .launch import LostRank, launched_as

Item = TypeVar("Item")

# Numbers that are added up in one message
_BUCKET = 1 << 24


def join_ranks(device: th.device | str) -> "Ranks":
    """
    Meet the other processes; once is enough, again it costs nothing.

    :param device: Where the model is
    :return: All of them
    :raises ImportError: If there are several, but Accelerate is not installed
    :raises ValueError: If the device is another process's GPU
    """
    if launched_as()[1] == 1:
        return Ranks()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError("training on several processes needs Accelerate: pip install 'sb3-vla[distributed]'") from error
    device = th.device(device)
    own = PartialState(cpu=device.type == "cpu").device
    if device.index not in (None, own.index):
        raise ValueError(f"device is '{device}', but of several processes this one has '{own}': say '{device.type}' or 'auto'")
    return JoinedRanks(own)


@cache
def _control() -> dist.ProcessGroup:
    """:return: Where objects and decisions go: not over NCCL, which holds them in a GPU's memory and can't say who is lost"""
    return dist.new_group(backend="gloo")


class Ranks:
    """
    One process alone, which has nobody to ask: everything is returned as it is given.

    The methods are collective: what one rank calls, all have to call, in the same order.
    """

    #: Number of this process, from 0
    rank: int = 0
    #: How many there are
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def all_gather_object(self, value: Item) -> list[Item]:
        """
        :param value: Anything that can be pickled
        :return: That of each rank
        """
        return [value]

    def broadcast_object(self, value: Item) -> Item:
        """
        :param value: Anything that can be pickled
        :return: That of the first rank
        """
        return value

    def first_does(self, action: Callable[[], object]) -> None:
        """
        Have the first rank alone do something, for which the others wait.

        :param action: What to do; its error is raised on all ranks
        """
        error: Exception | None = None
        if self.is_first:
            try:
                action()
            except Exception as raised:
                error = raised
        error = self.broadcast_object(error)
        if error is not None:
            raise error

    def all(self, value: bool) -> bool:
        """
        :param value: Yes or no
        :return: Whether all ranks say yes
        """
        return value

    def all_reduce(self, tensor: th.Tensor) -> th.Tensor:
        """
        :param tensor: Of the same shape on all ranks
        :return: Sum over the ranks
        """
        return tensor

    def all_reduce_(self, tensors: Sequence[th.Tensor]) -> None:
        """
        :param tensors: Of the same shapes on all ranks, each of which becomes its sum over the ranks
        """

    def broadcast_(self, tensors: Iterable[th.Tensor]) -> None:
        """
        :param tensors: Of the same shapes on all ranks, each of which becomes the first rank's
        """

    def all_gather(self, tensor: th.Tensor) -> th.Tensor:
        """
        :param tensor: ``(n, ...)``, of the same shape on all ranks
        :return: ``(size * n, ...)``, those of all ranks
        """
        return tensor

    def share(self, amount: th.Tensor | int) -> float | th.Tensor:
        """
        :param amount: How much this rank has, a scalar
        :return: Which part of what all have together
        """
        return 1.0


class JoinedRanks(Ranks):
    """
    Several processes, each of which has a rollout of its own.

    :param device: Where this one's model is
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self._control = _control()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def all_gather_object(self, value: Item) -> list[Item]:
        values: list[Any] = [None] * self.size
        with noticing_losses():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast_object(self, value: Item) -> Item:
        values = [value]
        with noticing_losses():
            dist.broadcast_object_list(values, group=self._control)
        return values[0]

    def all(self, value: bool) -> bool:
        saying_yes = th.tensor(int(value))
        with noticing_losses():
            dist.all_reduce(saying_yes, group=self._control)
        return saying_yes.item() == self.size

    def all_reduce(self, tensor: th.Tensor) -> th.Tensor:
        summed = tensor.to(self.device, copy=True)
        with noticing_losses():
            dist.all_reduce(summed)
        return summed.to(tensor.device)

    def all_reduce_(self, tensors: Sequence[th.Tensor]) -> None:
        for bucket in _buckets(tensors):
            summed = th.cat([tensor.detach().flatten() for tensor in bucket]).to(self.device)
            with noticing_losses():
                dist.all_reduce(summed)
            for tensor, part in zip(bucket, summed.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Iterable[th.Tensor]) -> None:
        for tensor in tensors:
            sent = tensor.detach().to(self.device).contiguous()  # itself, as it mostly is
            with noticing_losses():
                dist.broadcast(sent, src=0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)

    def all_gather(self, tensor: th.Tensor) -> th.Tensor:
        own = tensor.contiguous()
        parts = [th.empty_like(own) for _ in range(self.size)]
        with noticing_losses():
            dist.all_gather(parts, own)
        return th.cat(parts)

    def share(self, amount: th.Tensor | int) -> float | th.Tensor:
        own = th.as_tensor(amount, dtype=th.float64)
        return (own / self.all_reduce(own).clamp(min=1e-12)).float()


class RankMail(Generic[Item]):
    """
    Hands items over to a function on every rank: at once where there is one, else when they are exchanged, those of the first
    rank first, so that all do the same.

    :param ranks: The ranks
    :param receive: Gets each item
    """

    def __init__(self, ranks: Ranks, receive: Callable[[Item], None]) -> None:
        self.ranks = ranks
        self.receive = receive
        self._kept: list[Item] = []

    def send(self, item: Item) -> None:
        """
        :param item: Anything that can be pickled
        """
        if self.ranks.size == 1:
            self.receive(item)
        else:
            self._kept.append(item)

    def exchange(self) -> None:
        """Hand over what was sent on all ranks since the last time."""
        kept, self._kept = self._kept, []
        for items in self.ranks.all_gather_object(kept):
            for item in items:
                self.receive(item)


def check_alike(ranks: Ranks, what: str, values: Mapping[str, Any]) -> None:
    """
    :param ranks: The ranks
    :param what: What is held against each other, for the error
    :param values: By name, what must be the same on all
    :raises ValueError: If something differs, on all ranks
    """
    everywhere = ranks.all_gather_object({name: _as_text(value) for name, value in values.items()})
    for rank, theirs in enumerate(everywhere[1:], start=1):
        for name in {**everywhere[0], **theirs}:
            first, other = everywhere[0].get(name, "nothing"), theirs.get(name, "nothing")
            if first != other:
                raise ValueError(
                    f"the ranks differ in {what}: {name} is {first:.200} on rank 0 and {other:.200} on rank {rank}; start all "
                    "of them with the same script, configuration and files"
                )


def _as_text(value: Any) -> str:
    """:return: The value as text, without addresses in memory"""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _buckets(tensors: Sequence[th.Tensor]) -> Iterator[list[th.Tensor]]:
    """
    :param tensors: Tensors
    :return: Iterator over some of them at a time, of one type and device
    """
    alike: dict[Any, list[th.Tensor]] = {}
    for tensor in tensors:
        bucket = alike.setdefault((tensor.dtype, tensor.device), [])
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > _BUCKET:
            yield list(bucket)
            bucket.clear()
        bucket.append(tensor)
    yield from alike.values()


@contextmanager
def noticing_losses() -> Iterator[None]:
    """
    Within it, a message that does not arrive is a :class:`LostRank`.
    """
    try:
        yield
    except th.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRank(
            f"another rank has ended or can't be reached ({str(error).splitlines()[0]:.200}): what it printed says why. The "
            "run goes on from its last checkpoint with --resume, with this or another number of ranks"
        ) from error

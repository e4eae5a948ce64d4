"""Episodes to imitate. How they are written to files: see :mod:`sb3_vla_envs.demonstration_file`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .wrappers.episode_progress import as_task_name

#: The key by which an observation goes that is an array, and no dictionary of some
ARRAY_KEY = "observation"


@dataclass(repr=False, eq=False)
class Demonstration:
    """
    One episode as pairs of an observation and the action chunk to imitate.

    :param task: Name of the task, or a number or anything else that stands for it: it becomes text, ``None`` becomes ""
    :param observations: What the policy sees before each chunk: arrays ``(T, ...)`` by key of the observation space, or what
        ``numpy.asarray`` makes such of; a ``state`` of integers becomes float32. Where the space is no dictionary, one array,
        which goes by the key ``observation``
    :param actions: Action chunks, shape ``(T, h, d)``, float32; what was not executed does not count (an expert's is zero).
        Where actions are no chunks, ``(T, d)``, or as they are
    :param chunk_lengths: How many actions of each chunk were executed, 1..h, shape ``(T,)``, int64
    :param success: Whether the episode succeeded
    :param steps_to_success: Primitive steps until success, where the episode went on after it: the rest is left out
    :param rewards: Reward of each chunk, discounted inside it, shape ``(T,)``, float32; those that are not known count as
        :meth:`sparse_rewards`
    :raises ValueError: If the arrays disagree on T or are no arrays of numbers, a number is not finite, or a length is out of
        range
    """

    task: str
    observations: dict[str, NDArray[Any]]
    actions: NDArray[Any]
    chunk_lengths: NDArray[np.int64]
    success: bool
    steps_to_success: InitVar[int | None] = None
    rewards: NDArray[Any] | None = None

    def __post_init__(self, steps_to_success: int | None) -> None:
        self.task = as_task_name(self.task)
        self.success = bool(self.success)
        # Arrays stay themselves: pictures may lie in a file
        seen = self.observations if isinstance(self.observations, Mapping) else {ARRAY_KEY: self.observations}
        self.observations = {key: self._as_array(key, values) for key, values in seen.items()}
        self.actions = self._as_array("actions", self.actions)
        self.chunk_lengths = self._as_array("chunk_lengths", self.chunk_lengths)
        arrays = {**self.observations, "actions": self.actions}
        if self.rewards is not None:
            arrays["rewards"] = self.rewards = self._as_array("rewards", self.rewards).astype(np.float32, copy=False)
            if self.rewards.ndim != 1:
                raise ValueError(
                    f"'rewards' of a demonstration of task {self.task!r} must be one number a chunk, got shape "
                    f"{self.rewards.shape}"
                )
        lengths = {key: len(value) for key, value in arrays.items()} | {"chunk_lengths": len(self.chunk_lengths)}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"The arrays of a demonstration of task {self.task!r} must have one entry a chunk each, got lengths {lengths}"
            )
        if not len(self):
            raise ValueError(f"A demonstration of task {self.task!r} must have at least one chunk: leave empty episodes out")
        self._check_finite(arrays)
        self._check_chunk_lengths()
        if steps_to_success is not None:
            self._end_after(steps_to_success)

    def __len__(self) -> int:
        return len(self.chunk_lengths)

    def __repr__(self) -> str:
        outcome = "success" if self.success else "failure"
        return f"Demonstration({self.task!r}, {outcome}, {self.n_steps} steps in {len(self)} chunks)"

    @property
    def n_steps(self) -> int:
        """Primitive steps of the episode."""
        return int(self.chunk_lengths.sum())

    def returns(self, gamma: float, rewards: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """
        What followed each observation: ``R_t = r_t + gamma**k_t R_{t+1}``, with k the steps that a chunk executed.

        :param gamma: Discount of a primitive step
        :param rewards: ``(T,)``, by default its own, without :attr:`rewards` :meth:`sparse_rewards`
        :return: ``(T,)``
        """
        if rewards is None:
            rewards = self.sparse_rewards(gamma) if self.rewards is None else self.rewards
        result = np.zeros(len(self) + 1)
        for t in reversed(range(len(self))):
            result[t] = rewards[t] + gamma ** int(self.chunk_lengths[t]) * result[t + 1]
        return result[:-1]

    def sparse_rewards(self, gamma: float) -> NDArray[np.float32]:
        """
        :param gamma: Discount of a primitive step
        :return: ``(T,)``: 1 for the last step of a success, discounted inside its chunk
        """
        rewards = np.zeros(len(self), np.float32)
        rewards[-1] = float(self.success) * gamma ** int(self.chunk_lengths[-1] - 1)
        return rewards

    def chunk(self, number: int, size: int) -> tuple[NDArray[Any], int]:
        """
        The chunk to imitate after an observation. Of a demonstration of single steps (``h`` is 1) it may be of any size: the
        actions from there on, so that chunks begin at every step and overlap.

        :param number: Number of the observation, from 0
        :param size: Length of the chunk: h, or anything where h is 1
        :return: Actions ``(size, d)``, zero after the episode's end where h is 1, and how many of them count
        :raises ValueError: If it is in chunks of another size
        """
        if self.actions.shape[1] == size:
            return self.actions[number], int(self.chunk_lengths[number])
        if self.actions.shape[1] != 1:
            raise ValueError(
                f"this demonstration of task {self.task!r} is in chunks of {self.actions.shape[1]} actions, which can't be "
                f"cut to {size}: collect it with every_step=True"
            )
        steps = self.actions[number : number + size, 0]
        chunk = np.zeros((size, *steps.shape[1:]), steps.dtype)
        chunk[: len(steps)] = steps
        return chunk, len(steps)

    def in_chunks(self, size: int, gamma: float) -> Demonstration:
        """
        :param size: Length of a chunk, h
        :param gamma: Discount of a primitive step, inside a chunk
        :return: This demonstration of single steps in chunks, one after the other
        """
        starts = range(0, len(self), size)
        actions, lengths = zip(*(self.chunk(start, size) for start in starts), strict=True)
        rewards = None
        if self.rewards is not None:
            discounts = gamma ** np.arange(size)
            parts = [self.rewards[start : start + size] for start in starts]
            rewards = np.array([part @ discounts[: len(part)] for part in parts], np.float32)
        return Demonstration(
            task=self.task,
            observations={key: values[::size] for key, values in self.observations.items()},
            actions=np.stack(actions),
            chunk_lengths=np.array(lengths),
            success=self.success,
            rewards=rewards,
        )

    def executed_actions(self) -> NDArray[Any]:
        """
        :return: The primitive actions that were executed, one after the other, ``(n_steps, d)``
        """
        return np.concatenate([chunk[:length] for chunk, length in zip(self.actions, self.chunk_lengths, strict=True)])

    def _as_array(self, name: str, values: Any) -> NDArray[Any]:
        try:
            array = np.asarray(values)
        except ValueError as error:  # rows of several lengths
            raise ValueError(f"{name!r} of a demonstration of task {self.task!r} can't be an array: {error}") from error
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            raise ValueError(
                f"{name!r} of a demonstration of task {self.task!r} must be an array of numbers, one entry a chunk, got "
                f"{array.dtype} of shape {array.shape}: convert it, e.g. by numpy.array(values, dtype=numpy.float32), or "
                "leave it out"
            )
        return array.astype(np.float32) if name == "state" and array.dtype.kind in "iub" else array

    def _check_finite(self, arrays: dict[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
                continue
            chunk = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(
                f"{name!r} of a demonstration of task {self.task!r} must be finite, but chunk {chunk} holds NaN or infinity: "
                "leave this episode out, or this observation if nothing reads it"
            )

    def _check_chunk_lengths(self) -> None:
        lengths, longest = np.asarray(self.chunk_lengths), self.actions.shape[1] if self.actions.ndim > 1 else 1
        if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
            raise ValueError(
                f"'chunk_lengths' of a demonstration of task {self.task!r} must be integers, one a chunk, got "
                f"{lengths.dtype} of shape {lengths.shape}"
            )
        wrong = np.flatnonzero((lengths < 1) | (lengths > longest))
        if len(wrong):
            raise ValueError(
                f"'chunk_lengths' of a demonstration of task {self.task!r} must be in 1..{longest}, the length of its chunks; "
                f"that of chunk {wrong[0]} is {lengths[wrong[0]]}"
            )
        self.chunk_lengths = lengths.astype(np.int64, copy=False)

    def _end_after(self, n_steps: int) -> None:
        """Keep the first steps only."""
        if not 1 <= n_steps <= self.n_steps:
            raise ValueError(
                f"'steps_to_success' of a demonstration of task {self.task!r} must be in 1..{self.n_steps}, the length of its "
                f"episode, got {n_steps}"
            )
        ends = np.cumsum(self.chunk_lengths)
        n_chunks = int(np.searchsorted(ends, n_steps)) + 1
        self.observations = {key: values[:n_chunks] for key, values in self.observations.items()}
        self.actions = self.actions[:n_chunks]
        self.rewards = None if self.rewards is None else self.rewards[:n_chunks]
        self.chunk_lengths = self.chunk_lengths[:n_chunks].copy()
        self.chunk_lengths[-1] -= ends[n_chunks - 1] - n_steps

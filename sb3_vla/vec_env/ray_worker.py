"""What an actor of :class:`RayVecEnv` does: it runs some of the environments, on command."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch as th

from .shared_memory_worker import EnvWorker, reply_to


class RayWorker:
    """An :class:`EnvWorker` whose observations are objects of Ray."""

    def __init__(self) -> None:
        # As many workers as processors, each with one thread. Mesa reads this with the first OpenGL context
        os.environ.setdefault("LP_NUM_THREADS", "0")
        th.set_num_threads(1)
        self._cleanup = ExitStack()
        self._worker = EnvWorker(self._cleanup)

    def do(self, message: bytes, stepped: Sequence[Sequence[int]]) -> Any:
        """
        :param message: Pickled command and its arguments
        :param stepped: Environments whose observations, rewards and dones it changes, in parts
        :return: An object for each part, or just one: these, packed, the first ones with the pickled reply
        """
        reply = reply_to(self._worker, message)
        first, *others = [self._worker.last_steps(part) for part in stepped] or [b""]
        return ((reply, first), *others) if others else (reply, first)

    def close(self) -> None:
        """Close the environments."""
        self._cleanup.close()

"""What an actor of :class:`RayVecEnv` does: it runs some of the environments, on command."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch as th

from .shared_memory_worker import EnvWorker, reply_to


class RayWorker:
    """An :class:`EnvWorker` whose observations go through Ray's object store."""

    def __init__(self) -> None:
        # As many workers as processors, each with one thread. Mesa reads this with the first OpenGL context
        os.environ.setdefault("LP_NUM_THREADS", "0")
        th.set_num_threads(1)
        self._cleanup = ExitStack()
        self._worker = EnvWorker(self._cleanup)

    def do(self, message: bytes, stepped: Sequence[int]) -> tuple[bytes, list[Any]]:
        """
        :param message: Pickled command and its arguments
        :param stepped: Environments whose observations, rewards and dones it changes
        :return: Pickled reply, and these: arrays, which Ray hands over without a copy
        """
        reply = reply_to(self._worker, message)
        return reply, self._worker.last_steps(stepped) if stepped else []

    def close(self) -> None:
        """Close the environments."""
        self._cleanup.close()

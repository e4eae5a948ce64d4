"""States of the global random generators: of Python, NumPy and torch."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th


def get_random_states(device: th.device) -> dict[str, Any]:
    """
    :param device: What torch computes on
    :return: The states, which a file of plain values can hold
    """
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
    return {**states, "cuda": th.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_random_states(states: Mapping[str, Any], device: th.device) -> None:
    """
    :param states: What :func:`get_random_states` returned, maybe for another device
    :param device: What torch computes on
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        th.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def forked_random(device: th.device | None) -> Iterator[None]:
    """
    What is drawn or seeded within it changes no random number that torch draws afterwards, on the CPU or the device.

    :param device: What torch computes on, ``None`` for the CPU
    """
    with th.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        yield

"""Checks of arguments, each of which names the argument, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :param allowed: What may be given
    :raises ValueError: If it is none of them
    """
    if value not in allowed:
        raise ValueError(f"Unknown {name} {value!r}, allowed are {', '.join(map(repr, allowed))}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :param least: The smallest number allowed
    :raises TypeError: If it is no integer
    :raises ValueError: If it is smaller
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_chunk_size(chunk_size: Any, n_action_steps: Any) -> None:
    """
    :param chunk_size: Number of actions in a chunk
    :param n_action_steps: How many of them are executed, ``None`` for all
    :raises TypeError: If one is no integer
    :raises ValueError: If one is out of range
    """
    check_count("chunk_size", chunk_size)
    if n_action_steps is None:
        return
    check_count("n_action_steps", n_action_steps)
    if n_action_steps > chunk_size:
        raise ValueError(f"n_action_steps={n_action_steps} exceeds chunk_size={chunk_size}: lower it or predict longer chunks")


def check_flag(name: str, value: Any) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :raises TypeError: If it is neither true nor false
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def check_gamma(name: str, value: Any) -> None:
    """
    :param name: Of the argument, a discount factor
    :param value: What was given
    :raises TypeError: If it is no number
    :raises ValueError: If it is not in [0, 1]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")

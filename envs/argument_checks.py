"""Checks of arguments, each of which names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Limits:
    """
    What an argument or setting may be: one of some choices, or else a number; ``None`` is no limit.

    :param at_least: Least number allowed
    :param at_most: Greatest number allowed
    :param above: A number that it must be greater than
    :param below: A number that it must be less than
    :param choices: All that is allowed instead of numbers
    :param whole: Whether only integers are allowed
    :param may_be_infinite: Whether infinity is a number of those allowed
    :param others: What is allowed beside numbers, such as ``None``
    :param or_schedule: Whether a function of the progress is allowed beside numbers
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[Any] | None = None
    whole: bool = False
    may_be_infinite: bool = False
    others: Sequence[Any] = ()
    or_schedule: bool = False

    def check(self, name: str, value: Any) -> None:
        """
        :param name: Of the argument, or the full name of a setting
        :param value: Its value
        :raises TypeError: If it is no number, or no integer, and must be
        :raises ValueError: If it is not one of those allowed, or a number that is not finite
        """
        if self.choices is not None:
            if not _is_among(value, self.choices):
                raise ValueError(f"{name} must be {' or '.join(map(repr, self.choices))}, got {value!r:.200}")
        elif not (_is_among(value, self.others) or (self.or_schedule and callable(value))):
            self._check_number(name, value)

    def _check_number(self, name: str, value: Any) -> None:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral if self.whole else Real):
            allowed = ["an integer" if self.whole else "a number", *map(repr, self.others)]
            allowed += ["a function of the progress"] if self.or_schedule else []
            raise TypeError(f"{name} must be {' or '.join(allowed)}, got {value!r:.200}{_mend(value)}")
        if not isinstance(value, Integral) and (math.isnan(value) or (math.isinf(value) and not self.may_be_infinite)):
            raise ValueError(f"{name} must be {'a number' if self.may_be_infinite else 'finite'}, got {value}")
        rules = (
            ("at least", self.at_least, operator.ge),
            ("at most", self.at_most, operator.le),
            ("above", self.above, operator.gt),
            ("below", self.below, operator.lt),
        )
        for words, limit, is_within in rules:
            if limit is not None and not is_within(value, limit):
                raise ValueError(f"{name} must be {words} {limit}, got {value}")


def _is_among(value: Any, allowed: Sequence[Any]) -> bool:
    """Of the same type, too: 1 is not ``True``, and arrays are not compared number by number."""
    plain = value.item() if isinstance(value, np.generic) else value
    return any(type(plain) is type(each) and plain == each for each in allowed)


def _mend(value: Any) -> str:
    """:return: What to write instead, where that is known"""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    return "" if number is None else f", a text: write {number:g} (YAML takes 1e-4 for a text, and 1.0e-4 for a number)"


#: Of a probability, a correlation or a discount
FRACTION = Limits(at_least=0, at_most=1)
#: Of what is or is not
FLAG = Limits(choices=(True, False))
#: Of random numbers, which are other ones each time without
SEED = Limits(at_least=0, whole=True, others=(None,))


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :param allowed: What may be given
    :raises ValueError: If it is none of them
    """
    Limits(choices=allowed).check(name, value)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :param least: The smallest number allowed
    :raises TypeError: If it is no integer
    :raises ValueError: If it is smaller
    """
    Limits(at_least=least, whole=True).check(name, value)


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

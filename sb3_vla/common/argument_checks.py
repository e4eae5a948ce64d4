"""What users pass to constructors, checked where they pass it."""

import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


def check_keywords(name: str, kwargs: Any) -> dict[str, Any]:
    """
    :param name: Of an argument that holds arguments, e.g. ``"head_kwargs"``
    :param kwargs: Its value
    :return: The same as a dictionary, empty for ``None``
    :raises TypeError: If it is no dictionary
    """
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"{name} must be a dictionary of arguments by name, got {kwargs!r:.200}: write {name}=dict(...)")
    return dict(kwargs)


def check_known(name: str, kwargs: Mapping[str, Any], maker: Callable[..., Any], others: Collection[str] = ()) -> None:
    """
    :param name: Of an argument that holds arguments, e.g. ``"head_kwargs"``
    :param kwargs: Its value
    :param maker: What gets them
    :param others: What it gets beside them
    :raises TypeError: If it has no such argument
    """
    parameters = inspect.signature(maker).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    allowed = [parameter.name for parameter in parameters if parameter.name not in others]
    if unknown := [key for key in kwargs if key not in allowed]:
        raise TypeError(f"{name}: {getattr(maker, '__name__', maker)} has no argument {unknown}; it takes {allowed}")


def check_widths(name: str, widths: Any) -> list[int]:
    """
    :param name: Of an argument that gives the widths of a network's hidden layers
    :param widths: Its value
    :return: The same as a list
    :raises TypeError: If it is no sequence of whole numbers
    :raises ValueError: If one is not positive
    """
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not all(map(_is_whole, widths)):
        raise TypeError(f"{name} must be a sequence of whole numbers, the widths of the hidden layers, got {widths!r:.200}")
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} must hold positive numbers, the widths of the hidden layers, got {widths!r:.200}")
    return [int(width) for width in widths]


def check_names(name: str, names: Any) -> tuple[str, ...]:
    """
    :param name: Of an argument that holds names
    :param names: Its value
    :return: The same as a tuple, empty for ``None``
    :raises TypeError: If it is no sequence of names
    """
    if names is None:
        return ()
    if isinstance(names, str):
        raise TypeError(f"{name} must be a sequence of names, got the string {names!r}: give ({names!r},)")
    if not isinstance(names, Collection) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{name} must be a sequence of names, got {names!r:.200}")
    return tuple(names)


@dataclass(frozen=True)
class Limits:
    """
    What an argument or setting may be; ``None`` is no limit.

    :param at_least: Least number allowed
    :param at_most: Greatest number allowed
    :param above: A number that it must be greater than
    :param below: A number that it must be less than
    :param choices: All that is allowed
    :param whole: Whether only whole numbers are allowed
    :param may_be_infinite: Whether infinity is a number of those allowed
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[Any] | None = None
    whole: bool = False
    may_be_infinite: bool = False

    def check(self, name: str, value: Any) -> None:
        """
        :param name: Of the argument, or the full name of a setting
        :param value: Its value; limits of numbers concern numbers alone, as it may be something else, such as a schedule
        :raises TypeError: If it is a number that is not whole, and must be
        :raises ValueError: If it is not one of those allowed, or a number that is not finite
        """
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, self.choices))}, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, Real):
            return
        if self.whole and not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, got {value}")
        if math.isnan(value) or (math.isinf(value) and not self.may_be_infinite):
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

    def check_number(self, name: str, value: Any) -> None:
        """
        The same of what can't be anything but a number.

        :param name: Of the value
        :param value: The value
        :raises TypeError: If it is no number, or not whole, and must be
        :raises ValueError: See :meth:`check`
        """
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r:.200}")
        self.check(name, value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)

"""What users pass to constructors, checked where they pass it."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral
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


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)

"""Sections of settings as dataclasses: which settings there are, what they may be, and errors that say their full names."""

import copy
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from numbers import Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stable_baselines3.common.type_aliases import Schedule

from sb3_vla_envs.argument_checks import Limits

from ..common.schedule_text import with_schedule

_WORDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text", NoneType: "null"}

Section = TypeVar("Section")


def setting(
    *,
    at_least: float | None = None,
    limits: Limits | None = None,
    changes_on_resume: bool = False,
    default: Any = MISSING,
) -> Any:
    """
    A field of a section.

    :param at_least: Least number allowed, ``None`` for no limit
    :param limits: Limits of more kinds instead
    :param changes_on_resume: Whether a run that is resumed may go on with another value
    :param default: Default value, if any
    :return: What ``dataclasses.field`` returns
    """
    limits = Limits(at_least=at_least) if limits is None else limits
    return field(default=default, metadata={"limits": limits, "changes_on_resume": changes_on_resume})


def arguments_of(
    function: Callable[..., Any],
    without: Collection[str] = (),
    at_least: Mapping[str, float] | None = None,
    limits: Mapping[str, Limits] | None = None,
    changes_on_resume: Collection[str] = (),
) -> type[Any]:
    """
    Make a section of the arguments that a function or class documents: of those that have a default, and which YAML can hold.

    :param function: The function or class
    :param without: Names of arguments that are no settings, as others give them
    :param at_least: By name, the least number allowed
    :param limits: By name, limits of more kinds
    :param changes_on_resume: Names of those that a run that is resumed may change
    :return: A frozen dataclass
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and not name.startswith("_") and name not in without
    }
    # Not those of the others, which a module may import for type checkers alone
    annotated: Any = SimpleNamespace(__annotations__={name: parameter.annotation for name, parameter in parameters.items()})
    code: Any = function.__init__ if inspect.isclass(function) else function
    all_limits = {name: Limits(at_least=least) for name, least in (at_least or {}).items()} | dict(limits or {})
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    section_fields = [
        (name, hint, setting(limits=all_limits.get(name), changes_on_resume=name in changes_on_resume, default=defaults[name]))
        for name, hint in get_type_hints(annotated, code.__globals__).items()
        if set(_words(hint)) - {"null"}
    ]
    return make_dataclass(f"{function.__name__}Arguments", section_fields, frozen=True, kw_only=True)


def check_section(name: str, section: type[Any], values: Any) -> None:
    """
    :param name: Name of the section
    :param section: Its dataclass
    :param values: What is to be some of its settings
    :raises ValueError: If it is no mapping, has a name that the section does not have, or a value of a wrong type or size
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a mapping of settings, got {values!r}")
    known, hints = {each.name: each for each in fields(section)}, get_type_hints(section)
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"there is no setting {name}.{key}; {name} takes {', '.join(sorted(known))}")
        check_value(f"{name}.{key}", value, hints[key], known[key].metadata.get("limits"))


def make_section(name: str, section: type[Section], values: Mapping[str, Any]) -> Section:
    """
    :param name: Name of the section
    :param section: Its dataclass, which may check its values itself
    :param values: Its settings, see :func:`check_section`
    :return: The section
    :raises ValueError: If the section refuses a value
    """
    try:
        return section(**values)
    except (TypeError, ValueError) as error:
        first_word = re.match(r"\w*", str(error))
        is_named = first_word is not None and first_word[0] in values
        raise ValueError(f"{name}{'.' if is_named else ': '}{error}") from error


def check_unchanged(now: Any, began: Any, name: str = "") -> None:
    """
    :param now: A section with which a run is to go on
    :param began: The same section as the run began with it
    :param name: Full name of the section and a dot
    :raises ValueError: If they differ in a setting that a run can't change on its way
    """
    for each in fields(now):
        after, before = getattr(now, each.name), getattr(began, each.name)
        if each.metadata.get("changes_on_resume"):
            continue
        if is_dataclass(after):
            check_unchanged(after, before, f"{name}{each.name}.")
        elif plain(after) != plain(before):
            raise ValueError(
                f"{name}{each.name} is {plain(after)!r}, but the run began with {plain(before)!r} and can't change it on its "
                "way: set it back, or start a new run"
            )


def deep_update(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: Nested mappings
    :param changes: What replaces some of their values
    :return: New nested dictionaries
    """
    merged = dict(settings)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_update(old, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged


def plain(value: Any) -> Any:
    """
    :param value: A section, or the value of a setting
    :return: The same in what YAML can hold: numbers, strings, lists and dictionaries
    """
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_value(name: str, value: Any, hint: Any, limits: Limits | None = None) -> None:
    """
    :param name: Full name of a setting
    :param value: Its value
    :param hint: Its type
    :param limits: What it may be, ``None`` for no limits
    :raises ValueError: If the value is of another type, not finite or beyond its limits
    """
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {' or '.join(_words(hint))}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    number = getattr(with_schedule(value), "start", value)
    # What else it may be beside a number, its type has said
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if limits is not None and (limits.choices is not None or is_number):
        limits.check(name, number)


def _fits(value: Any, hint: Any) -> bool:
    """
    :param value: A value out of YAML, or an object in its place
    :param hint: A type
    :return: Whether it is of the type; integers are numbers, too, lists do for any sequence, and a text for a schedule
    """
    if hint == Schedule:
        return with_schedule(value) is not value
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if kind is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if kind is Any or not inspect.isclass(kind):  # Any is a class from Python 3.11 on
        return kind is Any
    if _is_list(kind):
        return isinstance(value, list | tuple) and all(_fits(item, each) for each in arguments[:1] for item in value)
    if issubclass(kind, Mapping):
        of_keys, of_values = arguments or (Any, Any)
        if not isinstance(value, Mapping):
            return False
        return all(_fits(key, of_keys) and _fits(item, of_values) for key, item in value.items())
    return isinstance(value, kind)


def _words(hint: Any) -> list[str]:
    """
    :param hint: A type
    :return: What YAML can hold of it, in words
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return [word for each in arguments for word in _words(each)]
    if kind is Literal:
        return [repr(each) for each in arguments]
    if hint == Schedule:
        return ["'lin_' and one or two numbers"]
    if kind in _WORDS:
        return [_WORDS[kind]]
    if kind is Any or not inspect.isclass(kind):
        return ["anything"] if kind is Any else []
    if _is_list(kind):
        return [f"a list of {_WORDS[arguments[0]].split()[-1]}s" if arguments[:1] in [(int,), (float,)] else "a list"]
    if not issubclass(kind, Mapping):
        return []
    to = f", each to {' or '.join(_words(arguments[1]))}" if arguments[1:] not in ((), (Any,)) else ""
    return ["a mapping" + " of names" * bool(arguments) + to]


def _is_list(kind: type[Any]) -> bool:
    return issubclass(kind, Sequence) and kind is not str

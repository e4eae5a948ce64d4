"""Sections made of signatures, and what they say of values that are not theirs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sb3_vla.runs.settings import (
    arguments_of,
    check_section,
    check_unchanged,
    check_value,
    make_section,
    plain,
    setting,
)
from sb3_vla_envs.argument_checks import Limits


def train(
    env: str,
    learning_rate: float | Callable[[float], float] = 1e-3,
    n_epochs: int = 2,
    normalize: bool | Literal["task"] = True,
    target: float | None = None,
    widths: Sequence[int] = (4, 4),
    kwargs: dict[str, Any] | None = None,
    weights: Mapping[str, int] | None = None,
    optimizer: type | None = None,
    device: str = "auto",
    _setup: bool = True,
    **more: Any,
) -> None:
    """Arguments of all kinds."""


Training = arguments_of(train, without=["device"], at_least={"n_epochs": 1})


def test_a_section_has_the_arguments_with_defaults_that_yaml_can_hold():
    assert vars(Training()) == {
        **{
            "learning_rate": 1e-3,
            "n_epochs": 2,
            "normalize": True,
            "target": None,
            "widths": (4, 4),
            "kwargs": None,
            "weights": None,
        }
    }


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1},
        {"learning_rate": 0.5, "n_epochs": 1},
        {"normalize": "task"},
        {"normalize": False},
        {"target": 3},
        {"widths": []},
        {"widths": (1, 2)},
        {"kwargs": {"a": [1]}},
        {"kwargs": None},
        {"weights": {"a": 2}},
    ],
)
def test_values_of_the_type(values):
    check_section("train", Training, values)
    assert values.items() <= vars(make_section("train", Training, values)).items()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_epochs": "two"}, "train.n_epochs must be an integer, got 'two'"),
        ({"n_epochs": 2.5}, "train.n_epochs must be an integer, got 2.5"),
        ({"n_epochs": True}, "train.n_epochs must be an integer, got True"),
        ({"n_epochs": None}, "train.n_epochs must be an integer, got None"),
        ({"n_epochs": 0}, "train.n_epochs must be at least 1, got 0"),
        ({"learning_rate": "1e"}, "train.learning_rate must be a number or 'lin_' and one or two numbers, got '1e'"),
        ({"learning_rate": float("nan")}, "train.learning_rate must be finite, got nan"),
        ({"normalize": "chunk"}, "train.normalize must be true or false or 'task', got 'chunk'"),
        ({"target": "no"}, "train.target must be a number or null, got 'no'"),
        ({"widths": ["a"]}, "train.widths must be a list of integers, got ['a']"),
        ({"widths": "12"}, "train.widths must be a list of integers, got '12'"),
        ({"kwargs": 3}, "train.kwargs must be a mapping of names or null, got 3"),
        ({"kwargs": {5: 5}}, "train.kwargs must be a mapping of names or null, got {5: 5}"),
        (
            {"weights": {"a": "much"}},
            "train.weights must be a mapping of names, each to an integer or null, got {'a': 'much'}",
        ),
        ({"device": "cpu"}, "there is no setting train.device; train takes kwargs, learning_rate, n_epochs"),
        (3, "train must be a mapping of settings, got 3"),
    ],
)
def test_errors_name_the_setting_in_full(values, message):
    with pytest.raises(ValueError) as error:
        check_section("train", Training, values)
    assert str(error.value).startswith(message)


def test_what_a_section_refuses_itself_is_named_in_full():
    @dataclass
    class Section:
        size: int = 1
        step: int = 1

        def __post_init__(self) -> None:
            if self.step > self.size:
                raise ValueError("step=2 exceeds size=1" if self.size == 1 else "Too far")

    assert make_section("part", Section, {"size": 3}) == Section(3)
    with pytest.raises(ValueError, match=r"^part\.step=2 exceeds"):
        make_section("part", Section, {"step": 2})
    with pytest.raises(ValueError, match=r"^part: Too far"):
        make_section("part", Section, {"step": 4, "size": 3})


def test_a_value_may_be_checked_by_itself():
    check_value("sections", {}, Mapping)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        check_value("seed", -1, int, Limits(at_least=0))


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "words"),
    [
        (Limits(at_least=0, at_most=1), [0, 0.5, 1], [-0.1], "at least 0"),
        (Limits(at_least=0, at_most=1), [], [1.1], "at most 1"),
        (Limits(above=0, below=1), [0.5], [0, -1.0], "above 0"),
        (Limits(above=0, below=1), [], [1, 2.0], "below 1"),
        (Limits(choices=("a", "b")), ["a"], ["c"], "'a' or 'b'"),
        (Limits(above=0), [True, None, "linear"], [0], "above 0"),  # no numbers
    ],
)
def test_limits_of_a_value(limits, allowed, refused, words):
    for value in allowed:
        check_value("part.size", value, Any, limits)
    for value in refused:
        with pytest.raises(ValueError) as error:
            check_value("part.size", value, Any, limits)
        assert str(error.value) == f"part.size must be {words}, got {value!r}"


def test_changes_on_the_way_are_allowed_or_named():
    @dataclass(frozen=True)
    class Inner:
        total: int = setting(changes_on_resume=True, default=1)
        rate: float = 0.1
        views: Sequence[Any] = ()

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)
        device: str = setting(changes_on_resume=True, default="cpu")
        seed: int = 0

    check_unchanged(Outer(Inner(total=5, views=[]), device="cuda"), Outer())
    with pytest.raises(ValueError, match=r"^inner\.rate is 0\.2, but the run began with 0\.1 .*start a new run"):
        check_unchanged(Outer(Inner(rate=0.2)), Outer())
    with pytest.raises(ValueError, match=r"^seed is 1, but the run began with 0"):
        check_unchanged(Outer(seed=1), Outer())


def test_plain_values_of_objects_inside_lists():
    @dataclass
    class Camera:
        name: str
        size: tuple[int, int] = (2, 3)

    assert plain({"a": (Camera("x"), {"name": "y"})}) == {"a": [{"name": "x", "size": [2, 3]}, {"name": "y"}]}

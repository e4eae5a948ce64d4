"""Limits of arguments: what is within them passes, what is not is named with its value."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_vla_envs.argument_checks import FRACTION, Limits, check_count

NO_NUMBERS = [None, "", "many", True, np.True_, [], [1], {}, {"a": 1}, 1j, object(), lambda progress: 1.0]


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(1), np.int64(0), Fraction(1, 2)])
def test_numbers_of_all_kinds_pass(value):
    FRACTION.check("rate", value)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError) as caught:
        FRACTION.check("rate", value)
    assert str(caught.value) == f"rate must be a number, got {value!r}"


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, np.float64(2), math.nan])
def test_what_is_no_integer_is_no_count(value):
    with pytest.raises(TypeError) as caught:
        check_count("n", value)
    assert str(caught.value) == f"n must be an integer, got {value!r}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=f"rate must be finite, got {value}"):
        Limits(at_least=0).check("rate", value)


def test_infinity_may_be_allowed():
    Limits(above=0, may_be_infinite=True).check("norm", math.inf)
    with pytest.raises(ValueError, match="norm must be above 0, got -inf"):
        Limits(above=0, may_be_infinite=True).check("norm", -math.inf)


@given(st.floats(-3, 3) | st.integers(-3, 3), st.sampled_from(["at_least", "at_most", "above", "below"]), st.integers(-2, 2))
def test_limits_are_what_they_say(value, kind, limit):
    is_within = {"at_least": value >= limit, "at_most": value <= limit, "above": value > limit, "below": value < limit}[kind]
    if is_within:
        Limits(**{kind: limit}).check("size", value)
    else:
        with pytest.raises(ValueError, match=f"^size must be {kind.replace('_', ' ')} {limit}, got {value}"):
            Limits(**{kind: limit}).check("size", value)


def test_what_is_allowed_beside_numbers():
    limits = Limits(at_least=1, whole=True, others=(None, "auto"), or_schedule=True)
    for value in (None, "auto", 3, lambda progress: progress):
        limits.check("size", value)
    with pytest.raises(TypeError, match="size must be an integer or None or 'auto' or a function of the progress, got 'all'"):
        limits.check("size", "all")


def test_numbers_that_are_texts_say_what_to_write():
    with pytest.raises(TypeError, match=r"rate must be a number, got '1e-4', a text: write 0.0001 \(YAML takes 1e-4 for a"):
        FRACTION.check("rate", "1e-4")


def test_integers_of_any_size_are_compared():
    check_count("n", 10**400)
    with pytest.raises(ValueError, match="n must be at least 1, got -1000"):
        check_count("n", -(10**400))


def test_choices_need_not_be_numbers():
    limits = Limits(choices=(True, False, "task"))
    for value in ("task", True, np.False_):
        limits.check("normalize", value)
    for value in ("chunk", 7, 1, 0.0, None, [], {}, np.zeros(2)):
        with pytest.raises(ValueError, match="normalize must be True or False or 'task', got "):
            limits.check("normalize", value)

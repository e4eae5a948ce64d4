import numpy as np
import pytest

from sb3_vla.common.argument_checks import Limits, check_keywords, check_known, check_names, check_widths


def test_what_is_good_comes_back_in_one_form():
    assert check_keywords("options", None) == {} and check_keywords("options", {"a": 1}) == {"a": 1}
    assert check_widths("widths", (np.int64(3), 4)) == [3, 4] and check_widths("widths", []) == []
    assert check_names("names", None) == () and check_names("names", ["a"]) == ("a",)


def test_a_maker_that_takes_anything_knows_every_argument():
    check_known("options", {"whatever": 1}, lambda **kwargs: None)
    with pytest.raises(TypeError, match=r"options: .* has no argument \['b', 'first'\]; it takes \['a'\]"):
        check_known("options", {"a": 1, "b": 2, "first": 3}, lambda first, a=0: None, ("first",))


@pytest.mark.parametrize("value", [0, 0.5, np.float32(1), None, "a schedule", lambda progress: -1])
def test_numbers_in_range_and_what_is_no_number_pass(value):
    Limits(at_least=0, at_most=1).check("rate", value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=f"rate must be finite, got {value}"):
        Limits(at_least=0).check("rate", value)

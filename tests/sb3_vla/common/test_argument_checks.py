import numpy as np
import pytest

from sb3_vla.common.argument_checks import check_keywords, check_known, check_names, check_widths


def test_what_is_good_comes_back_in_one_form():
    assert check_keywords("options", None) == {} and check_keywords("options", {"a": 1}) == {"a": 1}
    assert check_widths("widths", (np.int64(3), 4)) == [3, 4] and check_widths("widths", []) == []
    assert check_names("names", None) == () and check_names("names", ["a"]) == ("a",)


def test_a_maker_that_takes_anything_knows_every_argument():
    check_known("options", {"whatever": 1}, lambda **kwargs: None)
    with pytest.raises(TypeError, match=r"options: .* has no argument \['b', 'first'\]; it takes \['a'\]"):
        check_known("options", {"a": 1, "b": 2, "first": 3}, lambda first, a=0: None, ("first",))

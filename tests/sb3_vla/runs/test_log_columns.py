"""Reading what a run has logged."""

import numpy as np
import pytest

from sb3_vla.runs.log_columns import read_columns


def test_columns_of_numbers_are_read_as_far_as_lines_are_whole(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("time/steps,name,train/loss,empty\n1,a,,\n2,b,0.5,\n3,c,0.")
    columns = read_columns(path)
    assert columns.keys() == {"time/steps", "train/loss"}
    np.testing.assert_array_equal(columns["time/steps"], [1, 2])
    np.testing.assert_array_equal(columns["train/loss"], [np.nan, 0.5])


@pytest.mark.parametrize("text", ["", "time/steps", "time/steps\n", "time/steps\nx\n"])
def test_a_log_without_numbers_has_no_columns(tmp_path, text):
    (tmp_path / "progress.csv").write_text(text)
    assert read_columns(tmp_path / "progress.csv") == {}


@pytest.mark.parametrize("damage", [b",7", b"\xff", b"\0"])
def test_a_damaged_cell_costs_no_more_than_its_row(tmp_path, damage):
    (tmp_path / "progress.csv").write_bytes(b"time/steps,train/loss\n1,2" + damage + b"\n3,4\n")
    columns = read_columns(tmp_path / "progress.csv")
    np.testing.assert_array_equal(columns["time/steps"], [1, 3])
    assert columns["train/loss"][1] == 4


def test_a_log_of_which_no_columns_can_be_made_out_is_refused(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text('time/steps\n"' + "1\n" * 100_000)
    with pytest.raises(ValueError, match=r"progress\.csv' is damaged"):
        read_columns(path)

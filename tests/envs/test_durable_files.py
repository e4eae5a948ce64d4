import os
import stat

import pytest

from sb3_vla_envs.durable_files import make_folder, replace_text, replacing


def test_replaces_a_file_and_makes_its_folders(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "sécond"):
        replace_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "b.txt"
    replace_text(path, "old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_for_whom_the_user_lets_read_it(tmp_path):
    mask = os.umask(0o027)
    try:
        replace_text(tmp_path / "b.txt", "text")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "b.txt").stat().st_mode) == 0o640


def test_a_folder_that_is_there_is_no_error(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()

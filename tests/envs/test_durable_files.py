import os
import stat

import pytest

from sb3_vla_envs.durable_files import make_folder, name_folder, replace_text, replacing, sweep


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


def test_a_complete_folder_gets_its_name_and_is_for_whom_the_user_lets_read_it(tmp_path):
    made = tmp_path / "set.part"
    (made / "meta").mkdir(parents=True, mode=0o700)
    (made / "meta/info.json").write_text("{}")
    mask = os.umask(0o027)
    try:
        name_folder(made, tmp_path / "set")
    finally:
        os.umask(mask)
    assert (tmp_path / "set/meta/info.json").read_text() == "{}" and not made.exists()
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o750


def test_a_folder_that_is_there_is_no_error(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    kept = ["file.part", ".hidden", ".notes.part", "20.part/model.zip", ".x.abcdefgh.part/in_a_folder"]
    for name in (*kept, ".model.zip.a1b2c3d_.part", "deeper/still/.results.json.zzzzzzzz.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_what_replacing_leaves_when_it_is_killed_is_swept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path: None)  # as if nothing came after
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "model.zip"):
            raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())

import zipfile

import numpy as np
import pytest

from sb3_vla_envs import Demonstration, load_demonstrations, save_demonstrations


def demonstration(n_chunks, task="push-v3", success=True, seed=0):
    rng = np.random.default_rng(seed)
    return Demonstration(
        task=task,
        observations={
            "image": rng.integers(0, 256, (n_chunks, 6, 5, 3), dtype=np.uint8),
            "state": rng.normal(size=(n_chunks, 4)).astype(np.float32),
        },
        actions=rng.normal(size=(n_chunks, 3, 4)).astype(np.float32),
        chunk_lengths=np.array([3] * (n_chunks - 1) + [2]),
        success=success,
    )


@pytest.fixture
def demos():
    return [demonstration(4), demonstration(1, "reach-v3", success=False, seed=1), demonstration(2, seed=2)]


@pytest.mark.parametrize("name", ["demos.npz", "demos"])
def test_saved_demonstrations_load_unchanged_from_the_very_path(tmp_path, demos, name):
    path = tmp_path / name
    save_demonstrations(str(path), demos)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    loaded = load_demonstrations(path)
    assert [(demo.task, demo.success, len(demo)) for demo in loaded] == [
        ("push-v3", True, 4),
        ("reach-v3", False, 1),
        ("push-v3", True, 2),
    ]
    for ours, theirs in zip(demos, loaded, strict=True):
        assert set(ours.observations) == set(theirs.observations)
        pairs = [(ours.observations[key], theirs.observations[key]) for key in ours.observations]
        for a, b in [*pairs, (ours.actions, theirs.actions), (ours.chunk_lengths, theirs.chunk_lengths)]:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_an_iterator_makes_the_same_file(tmp_path, demos):
    save_demonstrations(tmp_path / "list", demos)
    save_demonstrations(tmp_path / "iterator", iter(demos))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iterator", "list"]
    with np.load(tmp_path / "list") as listed, np.load(tmp_path / "iterator") as iterated:
        assert listed.files == iterated.files
        for name in listed.files:
            np.testing.assert_array_equal(listed[name], iterated[name])
    assert demos[0].observations["image"].any(), "what was given is as it was"
    save_demonstrations(tmp_path / "empty", iter(()))
    assert load_demonstrations(tmp_path / "empty") == []


def test_an_iterator_that_fails_leaves_the_old_file(tmp_path, demos):
    save_demonstrations(tmp_path / "demos", demos[:1])
    with pytest.raises(ValueError, match=r"must have the arrays"):
        save_demonstrations(
            tmp_path / "demos",
            (
                Demonstration("a", {}, demo.actions, demo.chunk_lengths, True) if number else demo
                for number, demo in enumerate(demos)
            ),
        )
    assert len(load_demonstrations(tmp_path / "demos")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def test_file_is_plain_npz_without_pickles(tmp_path, demos):
    save_demonstrations(tmp_path / "demos", demos)
    with np.load(tmp_path / "demos", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert str(arrays["format"]) == "sb3-vla-demonstrations" and int(arrays["version"]) == 2
    assert arrays["actions"].shape == (7, 3, 4) and arrays["observation/image"].shape == (7, 6, 5, 3)
    assert list(arrays["n_chunks"]) == [4, 1, 2]


def test_interrupted_save_leaves_the_old_file(tmp_path, demos, monkeypatch):
    path = tmp_path / "demos"
    save_demonstrations(path, demos[:1])

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(KeyboardInterrupt):
        save_demonstrations(path, demos)
    monkeypatch.undo()
    assert len(load_demonstrations(path)) == 1
    assert list(tmp_path.iterdir()) == [path]
    save_demonstrations(path, demos)
    assert len(load_demonstrations(path)) == 3


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_names_path_and_cause(tmp_path, demos, kept):
    path = tmp_path / "demos"
    save_demonstrations(path, demos)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"demos is not a demonstration file, or a truncated one"):
        load_demonstrations(path)


def test_damaged_file_names_path_and_cause(tmp_path, demos):
    path = tmp_path / "demos"
    save_demonstrations(path, demos)
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 40] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="demos is a damaged demonstration file"):
        load_demonstrations(path)


def test_missing_array_counts_as_damage(tmp_path, demos):
    save_demonstrations(tmp_path / "whole", demos)
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "part", "w") as part:
        for name in whole.namelist():
            if name != "actions.npy":
                part.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match=r"part is a damaged demonstration file, .*actions"):
        load_demonstrations(tmp_path / "part")


def test_other_version_is_named(tmp_path, demos, monkeypatch):
    monkeypatch.setattr("sb3_vla_envs.demonstration_file.VERSION", 3)
    save_demonstrations(tmp_path / "demos", demos)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="demos is a demonstration file of version 3, this sb3-vla reads versions 1 and 2"):
        load_demonstrations(tmp_path / "demos")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "arrays.npz", actions=np.zeros(3))
    for name in ("text", "arrays.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a demonstration file"):
            load_demonstrations(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_demonstrations(tmp_path / "absent")


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", format=np.array([{"a": 1}], dtype=object), version=np.array(1))
    with pytest.raises(ValueError, match=r"evil.npz"):
        load_demonstrations(tmp_path / "evil.npz")


def test_no_demonstrations_at_all_are_a_file_too(tmp_path):
    save_demonstrations(tmp_path / "none", [])
    assert load_demonstrations(tmp_path / "none") == []


def test_mixed_observations_cannot_be_saved(tmp_path, demos):
    smaller = Demonstration(
        "a",
        {"image": demos[0].observations["image"][:, :5], "state": demos[0].observations["state"]},
        demos[0].actions,
        demos[0].chunk_lengths,
        True,
    )
    with pytest.raises(ValueError, match=r"'observation/image' .* of shape \(6, 5, 3\) .* got uint8 of shape \(5, 5, 3\)"):
        save_demonstrations(tmp_path / "demos", [*demos, smaller])
    del demos[1].observations["state"]
    with pytest.raises(
        ValueError,
        match=r"must have the arrays \[.*'image', 'state'\], got \[.*'image'\]",
    ):
        save_demonstrations(tmp_path / "demos", demos)
    assert not list(tmp_path.iterdir())


def as_version_1(path, target):
    """The same file as version 1 had it: compressed, and the number."""
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as old:
        for name in new.namelist():
            if name != "version.npy":
                old.writestr(name, new.read(name))
        with old.open("version.npy", "w") as member:
            np.lib.format.write_array(member, np.array(1))


def same(first, second):
    return len(first) == len(second) and all(
        (a.task, a.success) == (b.task, b.success)
        and np.array_equal(a.actions, b.actions)
        and np.array_equal(a.chunk_lengths, b.chunk_lengths)
        and all(np.array_equal(a.observations[key], b.observations[key]) for key in a.observations)
        for a, b in zip(first, second, strict=True)
    )


def test_version_1_is_read(tmp_path, demos):
    save_demonstrations(tmp_path / "new", demos)
    as_version_1(tmp_path / "new", tmp_path / "old")
    assert same(load_demonstrations(tmp_path / "old"), demos)


@pytest.mark.parametrize("version", [1, 2])
def test_every_flipped_byte_is_noticed_or_without_effect(tmp_path, version):
    demos = [demonstration(2), demonstration(1, "reach-v3", success=False, seed=1)]
    path = tmp_path / "demos"
    save_demonstrations(path, demos)
    if version == 1:
        as_version_1(path, tmp_path / "old")
        path = tmp_path / "old"
    whole, noticed = path.read_bytes(), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = load_demonstrations(path)
        except ValueError:
            noticed += 1
        else:
            assert same(loaded, demos), position
    assert noticed > 0.5 * len(whole)


def test_pictures_stay_in_the_file_and_survive_its_replacement(tmp_path, demos):
    path = tmp_path / "demos"
    save_demonstrations(path, demos)
    loaded = load_demonstrations(path)
    save_demonstrations(path, loaded[:1])  # over the file that they are in
    assert same(loaded, demos)
    assert same(load_demonstrations(path), demos[:1])
    loaded[0].observations["image"][:] = 0  # in memory alone
    assert same(load_demonstrations(path), demos[:1])

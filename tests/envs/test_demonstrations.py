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


def test_length_is_in_chunks_and_n_steps_in_primitive_steps():
    demo = demonstration(4)
    assert len(demo) == 4
    assert demo.n_steps == 3 + 3 + 3 + 2


def test_arrays_must_agree_on_the_number_of_chunks():
    with pytest.raises(ValueError, match=r"'actions': 2.*'chunk_lengths': 3"):
        Demonstration("push-v3", {"state": np.zeros((3, 4))}, np.zeros((2, 3, 4), np.float32), np.ones(3, np.int64), True)


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


def test_file_is_plain_npz_without_pickles(tmp_path, demos):
    save_demonstrations(tmp_path / "demos", demos)
    with np.load(tmp_path / "demos", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert str(arrays["format"]) == "sb3-vla-demonstrations" and int(arrays["version"]) == 1
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
    monkeypatch.setattr("sb3_vla_envs.demonstrations.VERSION", 2)
    save_demonstrations(tmp_path / "demos", demos)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="demos is a demonstration file of version 2, this sb3-vla reads version 1"):
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


def test_nothing_and_mixed_observations_cannot_be_saved(tmp_path, demos):
    with pytest.raises(ValueError, match="no demonstrations to save"):
        save_demonstrations(tmp_path / "demos", [])
    del demos[1].observations["state"]
    with pytest.raises(ValueError, match=r"must have the observations \['image', 'state'\], got \['image'\]"):
        save_demonstrations(tmp_path / "demos", demos)
    assert not list(tmp_path.iterdir())

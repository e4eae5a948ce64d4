"""Whatever the moment of a power cut, what was there before or what was being written is there as a whole."""

import numpy as np
import pytest

from sb3_vla import EvaluationResult, PPOSelfBC
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from sb3_vla_envs import load_demonstrations, save_demonstrations
from sb3_vla_envs.durable_files import replace_text


def test_the_disk_loses_what_is_written_without_care(lossy_disk, tmp_path):
    path = tmp_path / "disk" / "results.json"
    path.write_text("old")
    disk = lossy_disk()
    with disk.watch():
        path.with_name("new").write_text("new")
        path.with_name("new").rename(path)
    assert {"results.json": b""} in disk.states and {"results.json": b"old"} in disk.states
    assert {"results.json": b"new"} not in disk.states


def test_a_text_is_the_old_or_the_new_one_at_each_moment_and_the_new_one_in_the_end(lossy_disk, tmp_path):
    path = tmp_path / "disk" / "results.json"
    path.write_text("old")
    disk = lossy_disk()
    with disk.watch():
        replace_text(path, "new")
    assert {state["results.json"] for state in disk.states} == {b"old", b"new"}
    assert disk.states[-1] == {"results.json": b"new"}


def test_new_folders_reach_the_disk_with_the_file_in_them(lossy_disk, tmp_path):
    disk = lossy_disk()
    with disk.watch():
        replace_text(tmp_path / "disk/a/b/file", "new")
    assert all(state.get("a/b/file", b"new") == b"new" for state in disk.states)
    assert disk.states[-1] == {"a": None, "a/b": None, "a/b/file": b"new"}


def _model(make_model, make_demonstrations, n_episodes):
    model = make_model(seed=n_episodes)
    model.num_timesteps = n_episodes
    model.replay_buffer.extend(make_demonstrations(n_episodes))
    return model


def _result(success):
    return EvaluationResult([EpisodeRecord("push", 0, success, 5 if success else None, 5, 1.0)], {}, {})


@pytest.mark.parametrize("kind", ["model", "policy", "results", "demonstrations"])
def test_a_file_can_be_read_after_a_cut_at_each_moment(kind, lossy_disk, tmp_path, make_model, make_demonstrations):
    path, restored = tmp_path / "disk" / "file.zip", tmp_path / "restored"
    models = [_model(make_model, make_demonstrations, n) for n in (1, 2)]
    write, read = {
        "model": (lambda n: models[n].save(path), lambda file: PPOSelfBC.load(file).num_timesteps - 1),
        "policy": (
            lambda n: models[n].policy.save(path),
            lambda file: int(np.allclose(_weights(type(models[1].policy).load(file)), _weights(models[1].policy))),
        ),
        "results": (lambda n: _result(bool(n)).save(path), lambda file: EvaluationResult.load(file).overall.success),
        "demonstrations": (
            lambda n: save_demonstrations(path, make_demonstrations(n + 1)),
            lambda file: len(load_demonstrations(file)) - 1,
        ),
    }[kind]
    write(0)
    disk = lossy_disk()
    with disk.watch():
        write(1)
    found = []
    for state in disk.states:
        disk.restore(state, restored)
        found.append(read(restored / path.name))
    assert found == sorted(found) and set(found) == {0, 1}, "the old one, and from some moment on the new one"


def _weights(policy):
    return policy.head.log_std.detach().numpy() + next(policy.critic.parameters()).detach().numpy().sum()


def test_a_checkpoint_is_found_after_a_cut_at_each_moment(lossy_disk, tmp_path, make_model, make_vec_env, make_demonstrations):
    folder, restored = tmp_path / "disk", tmp_path / "restored"
    for n in (1, 2):
        save_checkpoint(_model(make_model, make_demonstrations, n), folder)
    disk = lossy_disk()
    third = _model(make_model, make_demonstrations, 3)
    with disk.watch():
        save_checkpoint(third, folder)
    found = []
    for state in disk.states:
        disk.restore(state, restored)
        model = load_checkpoint(newest_checkpoint(restored), make_vec_env(), device="cpu")
        held = sum(map(len, model.replay_buffer.episodes.values()))
        assert held == model.num_timesteps, "all of it is of the same moment"
        found.append(held)
    # Never the first one, and without a warning that the newest was damaged
    assert found == sorted(found) and set(found) == {2, 3}


def test_the_first_checkpoint_is_all_or_nothing(lossy_disk, tmp_path, make_model, make_demonstrations):
    disk = lossy_disk()
    with disk.watch():
        save_checkpoint(_model(make_model, make_demonstrations, 1), tmp_path / "disk/checkpoints")
    for state in disk.states[:-1]:
        names = {name.split("/")[1] for name in state if "/" in name}
        if "1" in names:
            disk.restore(state, tmp_path / "restored")
            assert newest_checkpoint(tmp_path / "restored/checkpoints").name == "1"
    assert "checkpoints/1/model.zip" in disk.states[-1]

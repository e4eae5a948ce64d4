import copy
import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import NormalizeReward
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_vla import PPOSelfBC
from sb3_vla.runs.checkpoint import ResumableCSV, RunCheckpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from sb3_vla.runs.interruption import StopRequest

TIMESTEPS = "time/total_timesteps"


@pytest.fixture
def trained(make_model, make_demonstrations):
    """A model in the middle of its training, with a schedule and demonstrations."""
    model = make_model(learning_rate=_falling_rate, n_epochs=2, bc_batch_size=4, normalize_advantage="task")
    model.replay_buffer.extend(make_demonstrations(3) + make_demonstrations(2, task="pull"))
    model.learn(32)
    return model


def _falling_rate(remaining: float) -> float:
    return 1e-3 * (1 + remaining)


def _draws(model):
    """What each source of random numbers gives next."""
    return (
        random.random(),
        np.random.random(3).tolist(),
        th.rand(3).tolist(),
        model.replay_buffer.rng.random(3).tolist() if model.replay_buffer is not None else None,
    )


def _state(model) -> dict[str, th.Tensor]:
    """Weights and the optimizer's moments."""
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for number, moments in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    return {name: value.clone() for name, value in tensors.items()}


def _train_on(rollout_buffer, model) -> dict[str, th.Tensor]:
    model.rollout_buffer = copy.deepcopy(rollout_buffer)
    model.set_logger(Logger(None, []))
    model.train()
    return _state(model)


def test_next_update_after_a_round_trip_is_the_same_bit_for_bit(trained, make_vec_env, tmp_path, monkeypatch):
    rollouts = []
    with monkeypatch.context() as patch:
        patch.setattr(PPOSelfBC, "train", lambda model: rollouts.append(copy.deepcopy(model.rollout_buffer)))
        trained.learn(16, reset_num_timesteps=False)
    checkpoint = save_checkpoint(trained, tmp_path)
    before, after = _state(trained), _train_on(rollouts[0], trained)
    draws = _draws(trained)
    loaded = load_checkpoint(checkpoint, make_vec_env(), device="cpu")
    assert any(not th.equal(before[name], after[name]) for name in before), "the update must change something"
    assert _state(loaded).keys() == before.keys() and any(name.startswith("optimizer") for name in before)
    for name, value in _state(loaded).items():
        assert th.equal(value, before[name]), name
    assert loaded.num_timesteps == trained.num_timesteps == 48
    assert loaded.num_primitive_steps == trained.num_primitive_steps > 48
    for name, value in _train_on(rollouts[0], loaded).items():
        assert th.equal(value, after[name]), name
    assert _draws(loaded) == draws


@pytest.mark.parametrize("rule", ["advantage", "shortest"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("frozen", [(), ("vision", "connector")], ids=["all of it", "without the image encoder"])
def test_training_that_goes_on_in_the_middle_of_episodes_ends_like_one_that_never_stopped(
    make_model, make_vec_env, tmp_path, rule, normalized, frozen
):
    def environments():
        return VecNormalize(make_vec_env(), norm_obs_keys=["state"]) if normalized else make_vec_env()

    # 7 chunks a rollout: episodes of at most 3 go on in the next one
    settings = {"n_steps": 7, "batch_size": 7, "bc_batch_size": 4, "replay_buffer_kwargs": {"rule": rule}}
    model = make_model(environments(), {"frozen": frozen}, **settings)
    model.learn(14)
    assert not np.all(model._last_episode_starts)
    loaded = load_checkpoint(save_checkpoint(model, tmp_path), environments(), device="cpu")
    assert loaded._last_obs["image"].strides == model._last_obs["image"].strides, "convolutions depend on it"
    for each in (model, loaded):
        random.setstate(random.Random(1).getstate())
        np.random.seed(1)
        th.manual_seed(1)
        each.learn(56 - each.num_timesteps, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps == 56
    for name, value in _state(model).items():
        assert th.equal(value, _state(loaded)[name]), name
    assert model.replay_buffer.summary() == loaded.replay_buffer.summary()
    assert list(model.replay_buffer.episodes) == list(loaded.replay_buffer.episodes)
    assert model._recorder.successes == loaded._recorder.successes and model._recorder.successes


def test_what_begins_anew_is_said_and_why(trained, make_env, tmp_path):
    checkpoint = save_checkpoint(trained, tmp_path)
    envs = DummyVecEnv([lambda: NormalizeReward(make_env())] * 2)
    with pytest.warns(UserWarning, match="environments begin new ones: .* other wrappers"):
        loaded = load_checkpoint(checkpoint, envs, device="cpu")
    loaded.learn(16, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="begin new ones: NormalizeReward can't tell its state"):
        load_checkpoint(save_checkpoint(loaded, tmp_path), envs, device="cpu")


def test_demonstrations_come_back_as_they_were(trained, make_vec_env, tmp_path):
    loaded = load_checkpoint(save_checkpoint(trained, tmp_path), make_vec_env(), device="cpu")
    assert list(loaded.replay_buffer.episodes) == list(trained.replay_buffer.episodes)
    assert loaded.replay_buffer.summary() == trained.replay_buffer.summary() and len(loaded.replay_buffer) > 0
    # Sampling depends on the order of the episodes too, and on what the critic thinks of them
    for model in (loaded, trained):
        model._rate_demonstrations()
    assert len(loaded.replay_buffer) > 0
    ours, theirs = loaded.replay_buffer.sample(16), trained.replay_buffer.sample(16)
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    for key in theirs.observations:
        np.testing.assert_array_equal(ours.observations[key], theirs.observations[key])


def test_resumed_training_ends_at_the_total_with_schedules_in_the_middle(trained, make_vec_env, tmp_path):
    loaded = load_checkpoint(save_checkpoint(trained, tmp_path), make_vec_env(), device="cpu")
    loaded.learn(64 - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps == 64
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(_falling_rate(0.0))
    assert loaded._n_updates == 4 * 2


def test_round_trip_without_behaviour_cloning(make_model, make_vec_env, tmp_path):
    model = make_model(bc_weight=0.0)
    model.learn(16)
    checkpoint = save_checkpoint(model, tmp_path)
    expected = _draws(model)
    loaded = load_checkpoint(checkpoint, make_vec_env(), device="cpu")
    assert loaded.replay_buffer is None and _draws(loaded) == expected


def test_round_trip_before_the_first_success(make_model, make_vec_env, tmp_path):
    checkpoint = save_checkpoint(make_model(), tmp_path)
    assert len(load_checkpoint(checkpoint, make_vec_env(), device="cpu").replay_buffer) == 0


def test_no_checkpoint_is_a_clear_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*repeat the command that began it"):
            newest_checkpoint(folder)


@pytest.fixture
def checkpoints(make_model, tmp_path):
    """A model at 48 timesteps, and the folder of its checkpoints, one each 16."""
    model = make_model()
    for _ in range(3):
        model.learn(16, reset_num_timesteps=False)
        save_checkpoint(model, tmp_path / "checkpoints")
    return model, tmp_path / "checkpoints"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept_and_the_newest_is_found(checkpoints):
    _, folder = checkpoints
    assert _names(folder) == ["32", "48"]
    assert newest_checkpoint(folder) == folder / "48"


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.zip", "replay_buffer.npz", "training_state.safetensors", "checksums.json"])
def test_a_damaged_one_is_named_and_the_one_before_it_used(checkpoints, make_vec_env, name, damage):
    _, folder = checkpoints
    DAMAGES[damage](folder / "48" / name)
    with pytest.warns(UserWarning, match=r"the checkpoint '.*48' is damaged: .*goes on from the one before it, '.*32'"):
        found = newest_checkpoint(folder)
    assert load_checkpoint(found, make_vec_env(), device="cpu").num_timesteps == 32


def test_all_damaged_is_an_error_that_names_them(checkpoints):
    _, folder = checkpoints
    for name in ("32", "48"):
        DAMAGES["cut short"](folder / name / "model.zip")
    with pytest.raises(ValueError, match=r"48' is damaged: model.zip changed.*32' is damaged"):
        newest_checkpoint(folder)


def test_going_on_from_an_earlier_one_replaces_the_damaged_ones(checkpoints, make_vec_env):
    _, folder = checkpoints
    DAMAGES["empty"](folder / "48" / "model.zip")
    with pytest.warns(UserWarning, match="damaged"):
        model = load_checkpoint(newest_checkpoint(folder), make_vec_env(), device="cpu")
    model.num_timesteps = 40
    save_checkpoint(model, folder)
    assert _names(folder) == ["32", "40"]
    assert newest_checkpoint(folder) == folder / "40"


@pytest.mark.parametrize("killed_in", ["save", "save_replay_buffer"])
def test_killed_while_writing_leaves_the_last_one(checkpoints, monkeypatch, killed_in):
    model, folder = checkpoints
    model.num_timesteps = 64
    with monkeypatch.context() as patch:
        patch.setattr(PPOSelfBC, killed_in, _killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(model, folder)
    assert newest_checkpoint(folder) == folder / "48"
    # The half-written one is in nobody's way
    save_checkpoint(model, folder)
    assert _names(folder) == ["48", "64"]


def _killed(*args) -> None:
    raise KeyboardInterrupt


def test_checkpoints_are_taken_between_updates_at_the_distance_asked_for_and_at_the_end(make_model, tmp_path, monkeypatch):
    model = make_model()
    saved = []
    # One update has one epoch here: all rollouts so far have been learned from
    monkeypatch.setattr(
        "sb3_vla.runs.checkpoint.save_checkpoint", lambda m, folder: saved.append((m.num_timesteps, m._n_updates))
    )
    model.learn(80, callback=RunCheckpoint(tmp_path, 20, StopRequest()))
    assert saved == [(32, 2), (64, 4), (80, 5)]


def _log(path: Path, last_timestep: int, rows: list[dict[str, float]]) -> list[dict[str, str]]:
    writer = ResumableCSV(str(path), last_timestep)
    for row in rows:
        writer.write(row, dict.fromkeys(row, ()))
    writer.close()
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_goes_on_after_the_checkpoint_and_drops_what_came_after_it(tmp_path):
    path = tmp_path / "progress.csv"
    first = _log(path, 0, [{TIMESTEPS: t, "loss": t / 10} for t in (16, 32, 48)])
    rows = _log(path, 32, [{TIMESTEPS: 48, "loss": 9.0}, {TIMESTEPS: 64, "loss": 8.0, "extra": 1.0}])
    assert [row[TIMESTEPS] for row in rows] == ["16", "32", "48", "64"]
    assert [row["loss"] for row in rows] == [first[0]["loss"], first[1]["loss"], "9.0", "8.0"]
    assert [row["extra"] for row in rows] == ["", "", "", "1.0"]


def test_csv_survives_half_a_row(tmp_path):
    path = tmp_path / "progress.csv"
    _log(path, 0, [{"loss": t / 10, TIMESTEPS: t, "rate": 1.0} for t in (16, 32)])
    text = path.read_text()
    path.write_text(text[: text.rindex("32") - 2])
    assert [row[TIMESTEPS] for row in _log(path, 16, [{TIMESTEPS: 32}])] == ["16", "32"]


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (b"", []),
        (b"\xff\xfe\x00", []),
        (b"loss\n0.5\n", []),
        (b"time/total_timesteps,loss\n16,0.5\nx,0.5\n\n\xff,\xff\n16,0.5,1\n", ["16"]),
    ],
)
def test_damaged_csv_is_in_nobodys_way(tmp_path, damaged, kept):
    path = tmp_path / "progress.csv"
    path.write_bytes(damaged)
    assert [row[TIMESTEPS] for row in _log(path, 16, [{TIMESTEPS: 32, "loss": 0.5}])] == [*kept, "32"]


def test_csv_of_a_run_killed_before_its_first_row(tmp_path):
    path = tmp_path / "progress.csv"
    path.touch()
    assert _log(path, 0, [{TIMESTEPS: 16}]) == [{TIMESTEPS: "16"}]


def test_checkpoint_is_complete_without_the_run(trained, make_vec_env, tmp_path):
    moved = save_checkpoint(trained, tmp_path / "checkpoints").rename(tmp_path / "copy")
    assert load_checkpoint(moved, make_vec_env(), device="cpu").num_timesteps == 32

import csv
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from PIL import Image

from sb3_vla import PPOSelfBC, make_vla_vec_env
from sb3_vla.common import trusted_names
from sb3_vla.common.folder_lock import LOCK_FILE, locked
from sb3_vla.common.plain_file import load_plain
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EvaluationResult
from sb3_vla.runs import checks, models, pipeline, quickstart, training
from sb3_vla.runs.checkpoint import newest_checkpoint
from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla_envs import load_demonstrations

TASKS = ["handle-press-v3", "coffee-button-v3"]
SETTINGS: dict[str, Any] = {
    "tasks": TASKS,
    "device": "cpu",
    "simulation": {"horizon": 60, "n_goals": 3},
    "wrapping": {"chunk_size": 5, "cameras": [{"name": "corner4", "height": 8, "width": 8}]},
    "policy": {"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
    "demos": {"n_per_task": 2, "n_workers": 1},
    "sft": {"n_epochs": 1},
    "train": {
        "total_timesteps": 48,
        "n_envs": 2,
        "n_steps": 8,
        "batch_size": 8,
        "n_epochs": 1,
        "critic_warmup_steps": 0,
        "bc_batch_size": 4,
        "checkpoint_every": 1,
    },
    "eval": {"n_goals": 1, "n_envs": 1},
}


@pytest.fixture
def settings_file(tmp_path, tiny_config):
    """Settings of a run of seconds, with a backbone of a few thousand weights."""
    path = tmp_path / "tiny.yml"
    policy = {**SETTINGS["policy"], "backbone_kwargs": {"config": tiny_config}}
    path.write_text(yaml.safe_dump({**SETTINGS, "policy": policy}), encoding="utf-8")
    return path


@pytest.fixture
def config_file(settings_file, in_this_process):
    """The same, without worker processes."""
    return settings_file


def test_quickstart_makes_everything_from_nothing(settings_file, tmp_path, capsys):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        assert main(["quickstart", "--config", str(settings_file), "--out", str(tmp_path / "run")]) == 0
        gc.collect()
    assert not [warning for warning in warned if "log.txt" in str(warning.message)], "every file is closed"
    run = RunFolder.open(tmp_path / "run")
    assert [demo.task for demo in load_demonstrations(run.demos)] == [task for task in TASKS for _ in range(2)]
    assert PPOSelfBC.load(run.sft_model).num_timesteps == 0
    assert PPOSelfBC.load(run.model).num_timesteps == 48
    assert list((tmp_path / "run/checkpoints").glob("*/replay_buffer.npz")) and any(run.tensorboard.iterdir())

    results = {name: EvaluationResult.from_dict(content) for name, content in json.loads(run.results.read_text()).items()}
    assert list(results) == ["SFT", "post-trained"]
    for result in results.values():
        assert list(result.tasks) == TASKS and len(result.episodes) == 2
        # The three training goals and the one test goal are other lists
        assert result.settings["goal_split"] == "test" and result.settings["n_goals"] == 1
    assert results["SFT"].is_comparable_to(results["post-trained"])
    assert [result.settings["model_timesteps"] for result in results.values()] == [0, 48]

    out = capsys.readouterr().out
    lines = out.splitlines()
    for part in ("Writing to ", "1/5", "2/5", "3/5", "4/5", "5/5"):
        assert part in out
    header = next(number for number, line in enumerate(lines) if line.split() == ["SFT", "post-trained"])
    assert lines[header + 1].split().count("episodes") == 2
    assert [line.split()[0] for line in lines[header + 2 : header + 4]] == TASKS
    assert lines[header + 5].startswith("mean")

    for path in (run.curves, run.path / "comparison.png"):
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50, path
    films = {f"{prefix}_{task}.gif" for prefix in ("sft", "post_trained", "comparison") for task in TASKS}
    assert {path.name for path in run.gifs.iterdir()} == films
    for path in run.gifs.iterdir():
        with Image.open(path) as film:
            assert film.n_frames > 10
            first = np.asarray(film.convert("RGB"), dtype=float)
            film.seek(film.n_frames - 1)
            assert np.abs(first - np.asarray(film.convert("RGB"), dtype=float)).mean() > 0.1


def test_validation_keeps_the_model_whose_episodes_are_shortest_and_goes_on_when_resumed(config_file, tmp_path):
    def rows():
        return list(csv.DictReader(run.validation.read_text(encoding="utf-8").splitlines()))

    settings = yaml.safe_load(config_file.read_text())
    settings["train"] |= {"validate_every": 16, "n_validation_goals": 2, "total_timesteps": 32}
    config_file.write_text(yaml.safe_dump(settings))
    run, began = RunFolder(tmp_path / "run"), time.monotonic()
    assert main(["train", "--config", str(config_file), "--out", str(run.path)]) == 0
    assert [int(row["timesteps"]) for row in rows()] == [16, 32]
    best = min(rows(), key=lambda row: float(row["episode_steps"]))
    assert PPOSelfBC.load(run.best_model).num_timesteps == int(best["timesteps"])
    for row in rows():  # an episode that fails takes the whole horizon of 60
        assert 0 < float(row["episode_steps"]) <= 60
        assert (float(row["episode_steps"]) == 60) == (float(row["success"]) == 0)

    run.config_file.write_text(run.config_file.read_text().replace("total_timesteps: 32", "total_timesteps: 48"))
    assert main(["train", "--resume", str(run.path)]) == 0
    assert [int(row["timesteps"]) for row in rows()] == [16, 32, 48]
    seconds = [int(row["seconds"]) for row in rows()]
    assert seconds == sorted(seconds) and seconds[-1] <= time.monotonic() - began + 1


# ---------------------------------------------------------------------------------------------------------------------
# A run that is killed


@pytest.fixture
def killed(settings_file, tmp_path):
    """The folder of a training that SIGKILL ended after its first checkpoint, and a copy of that checkpoint."""
    demos, run = tmp_path / "d.npz", tmp_path / "run"
    assert main(["demos", "--config", str(settings_file), "--out", str(demos)]) == 0
    arguments = ["train", "--config", str(settings_file), "--demos", str(demos), "--out", str(run), "--timesteps", "1000000"]
    process: Any = multiprocessing.get_context("forkserver").Process(target=main, args=(arguments,))
    process.start()
    _wait_for(lambda: any((run / "checkpoints").glob("*[0-9]")) or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (run / "model.zip").exists()
    folder = RunFolder.open(run)
    saved = shutil.copytree(newest_checkpoint(folder.checkpoints), tmp_path / "saved")
    # Three updates to go
    content = yaml.safe_load(folder.config_file.read_text())
    total = PPOSelfBC.load(saved / "model.zip", device="cpu").num_timesteps + 48
    content["config"]["train"]["total_timesteps"] = total
    folder.config_file.write_text(yaml.safe_dump(content))
    return folder, saved, total


def _wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _rows(folder: RunFolder) -> list[dict[str, str]]:
    with open(folder.progress, newline="") as file:
        return list(csv.DictReader(file))


def test_killed_run_is_resumed_where_its_checkpoint_left_it(killed, monkeypatch):
    folder, saved, total = killed
    seen: dict[str, Any] = {}

    def collect_rollouts(model, *args, **kwargs):
        if not seen:
            # The first moment at which something random is drawn
            seen.update(
                num_timesteps=model.num_timesteps,
                num_primitive_steps=model.num_primitive_steps,
                n_updates=model._n_updates,
                weights={name: value.clone() for name, value in model.policy.state_dict().items()},
                optimizer={number: dict(state) for number, state in model.policy.optimizer.state_dict()["state"].items()},
                episodes=[demo for held in model.replay_buffer.episodes.values() for demo in held],
                python=random.getstate(),
                numpy=np.random.get_state(),
                torch=th.get_rng_state(),
                buffer=model.replay_buffer.rng.bit_generator.state,
            )
            seen["optimizer"] = {n: {k: v.clone() for k, v in state.items()} for n, state in seen["optimizer"].items()}
        return original(model, *args, **kwargs)

    original = PPOSelfBC.collect_rollouts
    monkeypatch.setattr(PPOSelfBC, "collect_rollouts", collect_rollouts)
    rows, log = _rows(folder), (folder.path / "log.txt").read_text()
    assert main(["train", "--resume", str(folder.path)]) == 0

    model = PPOSelfBC.load(saved / "model.zip", device="cpu")
    assert 16 <= model.num_timesteps == seen["num_timesteps"] == total - 48
    assert seen["num_primitive_steps"] == model.num_primitive_steps and seen["n_updates"] == model._n_updates
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, seen["weights"][name]), name
    moments = model.policy.optimizer.state_dict()["state"]
    assert moments and moments.keys() == seen["optimizer"].keys()
    for number, state in moments.items():
        assert all(th.equal(state[name], seen["optimizer"][number][name]) for name in ("step", "exp_avg", "exp_avg_sq"))

    episodes = load_demonstrations(saved / "replay_buffer.npz")
    assert len(seen["episodes"]) == len(episodes) >= 4
    for ours, theirs in zip(seen["episodes"], episodes, strict=True):
        assert ours.task == theirs.task
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.observations["image"], theirs.observations["image"])

    state = load_plain(saved / "training_state.safetensors")
    assert seen["python"] == state["random"]["python"] and seen["buffer"] == state["demonstrations"]["random"]
    np.testing.assert_array_equal(seen["numpy"][1], state["random"]["numpy"][1])
    assert seen["numpy"][2:] == state["random"]["numpy"][2:]
    assert th.equal(seen["torch"], state["random"]["torch"])

    end = PPOSelfBC.load(folder.model, device="cpu")
    assert end.num_timesteps == total and end._n_updates == total // 16
    resumed = _rows(folder)
    steps = [int(row["time/total_timesteps"]) for row in resumed]
    assert steps == [16 * (number + 1) for number in range(total // 16)]
    primitive = [int(row["time/primitive_steps"]) for row in resumed]
    assert all(a < b for a, b in pairwise(primitive))
    n_kept = model.num_timesteps // 16
    for old, new in zip(rows[:n_kept], resumed[:n_kept], strict=True):
        assert {name: value for name, value in new.items() if value} == {name: value for name, value in old.items() if value}
    # What an update recorded is in the row after it, whether the run was stopped in between or not
    assert all(row["train/approx_kl"] for row in resumed[1:])
    assert (folder.path / "log.txt").read_text().startswith(log)
    assert folder.curves.is_file()


# ---------------------------------------------------------------------------------------------------------------------
# A run that is asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_training_that_is_asked_to_stop_says_how_to_go_on(config_file, tmp_path, monkeypatch, capfd, number):
    run, update = str(tmp_path / "run"), PPOSelfBC.train

    def train(model):
        if model.num_timesteps == 32:
            os.kill(os.getpid(), number)
        update(model)

    with monkeypatch.context() as patch:
        patch.setattr(PPOSelfBC, "train", train)
        assert main(["train", "--config", str(config_file), "--out", run]) == 128 + number
    lines = capfd.readouterr().err.splitlines()
    assert f"{number.name}: the training stops after what it is doing, with a checkpoint" in "\n".join(lines)
    assert lines[-2:] == [f"To go on: sb3-vla train --resume {run}", f"sb3-vla train: stopped by {number.name}"]
    folder = RunFolder.open(run)
    assert newest_checkpoint(folder.checkpoints).name == "32" and not folder.model.exists()
    assert main(["train", "--resume", run]) == 0
    assert f"Going on from {folder.checkpoints / '32'}" in capfd.readouterr().out
    assert PPOSelfBC.load(folder.model).num_timesteps == 48


def test_who_trusted_a_class_of_his_own_is_told_to_do_so_again(config_file, tmp_path, monkeypatch, capfd):
    (tmp_path / "own_heads.py").write_text("from sb3_vla import GaussianHead\n\n\nclass OwnHead(GaussianHead):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from own_heads import OwnHead

    config, run, update = load_config(config_file), str(tmp_path / "run"), PPOSelfBC.train
    env = make_vla_vec_env(config.tasks, 1, **config.env_settings())
    policy_kwargs = {**vars(config.policy), "head": OwnHead}
    PPOSelfBC("VLAPolicy", env, gamma=config.wrapping.gamma, policy_kwargs=policy_kwargs).save(tmp_path / "own.zip")
    env.close()

    def train(model):
        os.kill(os.getpid(), signal.SIGTERM)
        update(model)

    trust = ["--trust", "own_heads:OwnHead"]
    command = ["train", "--config", str(config_file), "--init", str(tmp_path / "own.zip"), "--out", run, *trust]
    with monkeypatch.context() as patch:
        patch.setattr(PPOSelfBC, "train", train)
        assert main(command) == 143
    assert f"To go on: sb3-vla train --resume {run} --trust own_heads:OwnHead" in capfd.readouterr().err
    monkeypatch.setattr(trusted_names, "_trusted", {})
    assert main(["train", "--resume", run]) == 2
    assert "names 'own_heads:OwnHead', which is not trusted" in capfd.readouterr().err
    assert main(["train", "--resume", run, *trust]) == 0


def test_a_quickstart_goes_on_with_the_stage_that_it_was_stopped_in_and_where_more_timesteps_are_wanted(
    config_file, tmp_path, monkeypatch, capfd
):
    run, done, stop_in = RunFolder(tmp_path / "run"), [], []

    def follow(name, work):
        def followed(*args, **kwargs):
            done.append(name)
            if stop_in == [name]:
                os.kill(os.getpid(), signal.SIGTERM)
            return work(*args, **kwargs)

        monkeypatch.setattr(quickstart, name, followed)

    for name in ("collect", "run_sft", "evaluate_model", "post_train", "resume_training"):
        follow(name, getattr(quickstart, name))
    follow("record_comparison", lambda *args: None)
    update, trained_at = PPOSelfBC.train, []

    def train(model):
        trained_at.append(model.num_timesteps)
        if stop_in == ["training"] and model.num_timesteps == 32:
            os.kill(os.getpid(), signal.SIGTERM)
        update(model)

    monkeypatch.setattr(PPOSelfBC, "train", train)

    def stages(*command, stopped_in=None):
        done.clear()
        stop_in[:] = [] if stopped_in is None else [stopped_in]
        assert main(["quickstart", *map(str, command)]) == (0 if stopped_in is None else 143)
        to_go_on = f"To go on: sb3-vla quickstart --resume {run.path}" in capfd.readouterr().err
        assert to_go_on == (stopped_in is not None)
        return done

    resume = ("--resume", run.path)
    assert stages("--config", config_file, "--out", run.path, stopped_in="run_sft") == ["collect", "run_sft"]
    assert stages(*resume, stopped_in="evaluate_model") == ["run_sft", "evaluate_model"]
    assert stages(*resume, stopped_in="training") == ["evaluate_model", "post_train"]
    trained_at.clear()
    after = ["evaluate_model", "record_comparison"]
    assert stages(*resume, stopped_in="record_comparison") == ["resume_training", *after]
    assert trained_at == [48], "the updates before are not done again"
    assert stages(*resume) == ["record_comparison"]
    assert json.loads(run.results.read_text()).keys() == {"SFT", "post-trained"}

    def edit(old, new):
        text = run.config_file.read_text()
        assert old in text
        run.config_file.write_text(text.replace(old, new))

    goals = "  eval:\n    n_goals: "
    edit("total_timesteps: 48", "total_timesteps: 64")
    edit(f"{goals}1", f"{goals}2")
    assert stages(*resume) == ["evaluate_model", "resume_training", *after]
    edit(f"{goals}2", f"{goals}1")
    assert stages(*resume) == ["evaluate_model", *after]
    assert PPOSelfBC.load(run.model).num_timesteps == 64
    for result in json.loads(run.results.read_text()).values():
        assert EvaluationResult.from_dict(result).settings["n_goals"] == 1, "of other goals than before"


# ---------------------------------------------------------------------------------------------------------------------
# Functions


def test_check_builds_what_a_run_builds_without_touching_the_configuration(config_file):
    config = load_config(config_file)
    before = config.to_dict()
    checks.check_training(config)
    assert config.to_dict() == before


def test_one_chunk_an_environment_is_enough_for_an_update(config_file):
    checks.check_training(load_config(config_file, train={"n_steps": 1, "n_envs": 8}))
    with pytest.raises(ValueError, match="n_steps"):
        checks.check_training(load_config(config_file, train={"n_steps": 1, "n_envs": 1}))


def test_collect_never_overwrites(config_file, tmp_path):
    (tmp_path / "d.npz").write_text("all of it")
    with pytest.raises(FileExistsError, match="exists already"):
        pipeline.collect(load_config(config_file), tmp_path / "d.npz")
    assert (tmp_path / "d.npz").read_text() == "all of it"


def test_load_model_takes_what_its_class_saved(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "model.zip")
    loaded = models.load_model(tmp_path / "model.zip", "cpu")
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name])


def test_new_run_starts_from_the_weights_of_the_initial_model(config_file, tmp_path):
    config = load_config(config_file, train={"total_timesteps": 16, "critic_warmup_steps": 16, "n_envs": 1, "bc_weight": 0.0})
    fine_tuned = RunFolder.create(tmp_path / "sft", "sft", config.to_dict())
    demonstrations = pipeline.collect(config, tmp_path / "d.npz")
    initial = pipeline.run_sft(config, demonstrations, fine_tuned)
    run = RunFolder.create(tmp_path / "run", "train", config.to_dict())
    model = training.post_train(config, run, fine_tuned.sft_model, progress=False)
    state = model.policy.state_dict()
    moved = {name for name, value in initial.policy.state_dict().items() if not th.equal(value, state[name])}
    # The critic warms up: nothing else learns
    assert moved and all(name.startswith("critic") for name in moved)
    assert (model.gamma, model.n_steps) == (config.wrapping.gamma, 8)
    assert Path(run.model).is_file()


# ---------------------------------------------------------------------------------------------------------------------
# Two commands at a time


@pytest.mark.parametrize("command", ["train", "quickstart", "sft"])
def test_a_run_folder_in_use_is_an_error_that_leaves_it_alone(config_file, tmp_path, capsys, command):
    run = tmp_path / "run"
    demos = ["--demos", str(tmp_path / "d.npz")] if command == "sft" else []
    if demos:
        assert main(["demos", "--config", str(config_file), "--out", demos[1]]) == 0
    with locked(run):
        assert main([command, "--config", str(config_file), *demos, "--out", str(run)]) == 2
        assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    assert f"'{run}' is in use by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "quickstart"])
def test_a_run_in_use_is_not_resumed(config_file, tmp_path, capsys, command):
    run = RunFolder.create(tmp_path / "run", "sb3-vla train", load_config(config_file).to_dict())
    with locked(run.path):
        assert main([command, "--resume", str(run.path)]) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# What is kept, and what is shown


def test_demonstrations_of_other_tasks_are_kept_when_an_expert_fails(config_file, tmp_path, capsys):
    out = tmp_path / "d.npz"
    settings = yaml.safe_load(config_file.read_text())
    settings |= {"tasks": ["pick-place-wall-v3", "handle-press-v3"], "simulation": {"horizon": 45}}
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["demos", "--config", str(config_file), "--n-per-task", "3", "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "that of pick-place-wall-v3 in only 0 of 20 attempts" in line and line.endswith(f"are in {out}")
    assert [demo.task for demo in load_demonstrations(out)] == ["handle-press-v3"] * 3


def test_training_shows_its_progress_in_lines_and_nothing_after_an_error(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sb3_vla_envs.progress._SECONDS_BETWEEN_LINES", 0.0)
    arguments = ["train", "--config", str(config_file), "--timesteps", "32", "--out"]
    assert main([*arguments, str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("train: 32/32 chunks, success ") and lines[-1].endswith(" 0 s left")
    assert not any("\r" in line for line in lines)

    monkeypatch.setattr(PPOSelfBC, "train", _fail)
    with pytest.raises(ArithmeticError):
        main([*arguments, str(tmp_path / "other")])
    assert capsys.readouterr().err.splitlines()[-1].startswith("train: 16/32 chunks")


def _fail(model):
    raise ArithmeticError

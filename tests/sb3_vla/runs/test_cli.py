"""The commands from the command line to the files, on MetaWorld, with runs of a few seconds."""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sb3_vla import PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EvaluationResult
from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla.runs.parser import build_parser
from sb3_vla_envs import load_demonstrations
from sb3_vla_envs.suite import get_suite

# The scripted experts need about 40 steps
TASKS = ["handle-press-v3", "coffee-button-v3"]
SETTINGS: dict[str, Any] = {
    "tasks": TASKS,
    "device": "cpu",
    "simulation": {"horizon": 60},
    "wrapping": {"chunk_size": 5, "cameras": [{"name": "corner4", "height": 32, "width": 32}]},
    "policy": {"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
    "demos": {"n_per_task": 2, "n_workers": 1},
    "sft": {"n_epochs": 2},
    "train": {
        "total_timesteps": 32,
        "n_envs": 2,
        "n_steps": 8,
        "batch_size": 8,
        "n_epochs": 1,
        "critic_warmup_steps": 0,
        "bc_batch_size": 8,
        "checkpoint_every": 16,
    },
    "eval": {"n_goals": 2, "n_envs": 2},
}


def _write(path: Path, **sections: dict[str, Any]) -> str:
    settings = {
        key: {**value, **sections.pop(key, {})} if isinstance(value, dict) else value for key, value in SETTINGS.items()
    }
    path.write_text(yaml.safe_dump({**settings, **sections}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with what a user makes from demonstrations to a film, one command after the other."""
    folder = tmp_path_factory.mktemp("made")
    config = _write(folder / "tiny.yml")
    demos, sft, run = (str(folder / name) for name in ("demos/d.npz", "sft", "run"))
    for command in (
        ["demos", "--config", config, "--out", demos],
        ["sft", "--config", config, "--demos", demos, "--out", sft],
        ["train", "--config", config, "--init", f"{sft}/sft_model.zip", "--demos", demos, "--out", run, "--seed", "3"],
        ["eval", f"{run}/model.zip", "--n-goals", "1", "--out", f"{folder}/results/model.json"],
        ["record", f"{run}/model.zip", "--tasks", TASKS[0], "--out", f"{folder}/films"],
    ):
        assert main([*command]) == 0, command
    return folder


def test_demos_are_successes_of_each_task_as_the_policy_sees_them(made):
    demonstrations = load_demonstrations(made / "demos/d.npz")
    assert [demo.task for demo in demonstrations] == [task for task in TASKS for _ in range(2)]
    for demo in demonstrations:
        assert demo.success and demo.n_steps <= 60
        assert demo.actions.shape == (len(demo), 5, 4)
        assert demo.observations["image"].shape == (len(demo), 32, 32, 3)
        assert demo.observations["image"].std() > 10


def test_sft_leaves_a_model_that_fits_its_configuration(made):
    model = PPOSelfBC.load(made / "sft/sft_model.zip")
    assert model.action_space.shape == (5, 4)
    assert model.policy.head.hidden_dim == 16
    assert not np.allclose(model.policy.state_normalizer.mean, 0), "the state's statistics come from the demonstrations"
    assert set(path.name for path in (made / "sft").iterdir()) == {
        "config.yaml",
        "began.yaml",
        "versions.json",
        "sft_model.zip",
        "sft_model.json",
    }
    losses = json.loads((made / "sft/sft_model.json").read_text())
    assert len(losses["train_losses"]) == len(losses["held_out_losses"]) == 2 and losses["kept_epoch"] == 1


def test_train_writes_models_checkpoint_and_the_command(made):
    run = RunFolder.open(made / "run")
    assert {path.name for path in run.path.iterdir()} == {
        *("config.yaml", "began.yaml", "versions.json", "model.zip", "checkpoints"),
        *("progress.csv", "log.txt", "tensorboard", "curves.png"),
    }
    content = yaml.safe_load(run.config_file.read_text())
    assert content["command"].startswith("sb3-vla train --config ") and "--seed 3" in content["command"]
    assert content["config"]["seed"] == 3 and content["config"]["simulation"]["horizon"] == 60
    assert content["config"]["sft"]["batch_size"] > 0, "the defaults belong to the configuration"
    assert json.loads(run.versions_file.read_text())["torch"]
    model, sft_model = PPOSelfBC.load(run.model), PPOSelfBC.load(made / "sft/sft_model.zip")
    assert model.num_timesteps == 32 and model.seed == 3
    trained, initial = model.policy.state_dict(), sft_model.policy.state_dict()
    np.testing.assert_array_equal(trained["state_normalizer.mean"], initial["state_normalizer.mean"])
    weight = "head.log_std"
    assert 0 < (trained[weight] - initial[weight]).abs().max() < 0.01, "it starts from the SFT model, and learns"


def test_progress_has_the_columns_that_users_look_for(made):
    with open(made / "run/progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time/total_timesteps"]) for row in rows] == [16, 32]
    assert 64 < float(rows[-1]["time/primitive_steps"]) <= 32 * 5
    for column in (
        *(f"rollout/success_rate/{task}" for task in TASKS),
        *("rollout/success_rate", "train/bc_loss", "train/bc_weight", "train/clip_fraction", "demos/episodes"),
    ):
        assert np.isfinite(float(rows[-1][column])), column
    assert float(rows[-1]["demos/episodes"]) >= 4
    log = (made / "run/log.txt").read_text()
    assert log.count("total_timesteps") == 2 and "bc_loss" in log


def test_tensorboard_reads_the_events(made):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(made / "run/tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/bc_loss", "time/primitive_steps", f"rollout/success_rate/{TASKS[1]}"} <= set(scalars)
    assert [event.step for event in events.Scalars("time/primitive_steps")] == [16, 32]


def test_curves_show_something(made):
    with Image.open(made / "run/curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_evaluation_file_tells_everything(made):
    content = json.loads((made / "results/model.json").read_text())
    settings = content["settings"]
    # The settings of the run, whose config.yaml lies beside the model, but for --n-goals
    assert settings["tasks"] == TASKS and settings["seed"] == 3 and settings["horizon"] == 60 and settings["n_goals"] == 1
    assert settings["goal_split"] == "test" and settings["goal_seed"] == 0 and settings["chunk_size"] == 5
    assert settings["deterministic"] is True
    assert content["versions"]["torch"] and content["versions"]["mujoco"]
    assert [episode["task"] for episode in content["episodes"]] == TASKS
    assert all(episode["n_steps"] <= 60 for episode in content["episodes"])
    for summary in [content["summary"]["overall"], *content["summary"]["tasks"].values()]:
        assert 0 <= summary["success_low"] <= summary["success"] <= summary["success_high"] <= 1
        assert summary["success_high"] - summary["success_low"] > 0.5, "one or two episodes say little"
    assert EvaluationResult.load(made / "results/model.json").to_dict() == content


def test_film_is_a_moving_picture_of_the_task_asked_for(made):
    assert [path.name for path in (made / "films").iterdir()] == [f"model_{TASKS[0]}.gif"]
    with Image.open(made / f"films/model_{TASKS[0]}.gif") as film:
        assert film.n_frames > 10
        frames = []
        for number in (0, film.n_frames // 2, film.n_frames - 1):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
    assert frames[0].std() > 20
    assert all(np.abs(a - b).mean() > 0.1 for a, b in pairwise(frames))


def test_evaluation_prints_its_table_and_is_deterministic(made, tmp_path, capsys):
    assert main(["eval", str(made / "run/model.zip"), "--n-goals", "1", "--out", str(tmp_path / "again.json")]) == 0
    out = capsys.readouterr().out
    assert "success (95 % CI)" in out and all(task in out for task in TASKS)
    again, first = (EvaluationResult.load(path) for path in (tmp_path / "again.json", made / "results/model.json"))
    assert again.episodes == first.episodes


def test_evaluation_prints_its_table_even_if_the_disk_is_full(made, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_vla.evaluation.result.replace_text", full)
    with pytest.raises(OSError, match="No space left"):
        main(["eval", str(made / "run/model.zip"), "--n-goals", "1", "--out", str(tmp_path / "r.json")])
    assert "success (95 % CI)" in capsys.readouterr().out


def test_evaluation_by_anothers_protocol_says_in_its_file_what_that_is(made, tmp_path):
    file = tmp_path / "rlinf.json"
    command = ["eval", str(made / "run/model.zip"), "--protocol", "rlinf", "--n-goals", "1", "--out", str(file)]
    assert main([*command, "--tasks", TASKS[0]]) == 0
    settings = json.loads(file.read_text())["settings"]
    told = {"horizon": 100, "settle_steps": 16, "goal_split": "benchmark", "goal_seed": 42, "n_goals": 1}
    assert told.items() <= settings.items()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["eval", "MODEL", "--n-goals", "10001"], "10001"),
        (["eval", "MODEL", "--protocol", "metaworld", "--n-goals", "51"], "51"),
        (["record", "MODEL", "--goal", "10000", "--out", "OUT"], "10001"),
        (["play", "MODEL", "--n-per-task", "10001", "--out", "OUT/own.npz"], "10001"),
    ],
)
def test_goals_that_there_are_not_are_refused_before_any_work(made, tmp_path, fail, command, words):
    places = {"MODEL": str(made / "run/model.zip"), "OUT": str(tmp_path / "out")}
    assert words in fail(*(part.replace("OUT", places["OUT"]).replace("MODEL", places["MODEL"]) for part in command))


def test_probe_says_of_each_task_what_the_features_know(made, tmp_path, capsys):
    file = tmp_path / "made/probe.json"
    assert main(["probe", str(made / "run/model.zip"), "--episodes", "5", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert all(task in out for task in TASKS) and "object" in out and "goal" in out
    content = json.loads(file.read_text())
    assert list(content["explained"]) == TASKS and content["settings"]["n_episodes"] == 5
    for row in content["explained"].values():
        assert all(share is None or share["features"] <= 1 for share in row.values())


def test_own_episodes_can_teach_a_new_policy(made, tmp_path, config, fail):
    own, out = str(tmp_path / "own.npz"), str(tmp_path / "sft")
    assert main(["play", str(made / "run/model.zip"), "--n-per-task", "2", "--out", own]) == 0
    episodes = load_demonstrations(own)
    assert [episode.task for episode in episodes] == [TASKS[0]] * 2 + [TASKS[1]] * 2
    assert all("privileged" in episode.observations and episode.n_steps <= 60 for episode in episodes)
    command = ["sft", "--demos", str(made / "demos/d.npz"), "--auxiliary", own, "--out", out, "--config"]
    assert "--auxiliary teaches sft.auxiliary_targets: name some" in fail(*command, config())
    assert main([*command, config(sft={"n_epochs": 1, "auxiliary_targets": {"privileged": [0, 1, 2]}})]) == 0
    assert len(json.loads((tmp_path / "sft/sft_model.json").read_text())["unexplained"]) == 1


def test_play_needs_episodes(made, fail, tmp_path):
    command = ["play", str(made / "run/model.zip"), "--n-per-task", "0", "--out", str(tmp_path / "own.npz")]
    assert "--n-per-task must be at least 1, got 0" in fail(*command)


def test_probe_needs_episodes_to_fit_and_to_test(made, fail):
    assert "--episodes must be at least 5, got 4" in fail("probe", str(made / "run/model.zip"), "--episodes", "4")


def test_resuming_a_complete_run_changes_nothing(made, capsys):
    model, progress = (made / "run/model.zip").read_bytes(), (made / "run/progress.csv").read_text()
    assert main(["train", "--resume", str(made / "run")]) == 0
    assert PPOSelfBC.load(made / "run/model.zip").num_timesteps == 32
    assert (made / "run/progress.csv").read_text() == progress
    before, after = made / "before.zip", made / "run/model.zip"
    before.write_bytes(model)
    for ours, theirs in zip(*(PPOSelfBC.load(path).policy.parameters() for path in (before, after)), strict=True):
        assert ours.equal(theirs)


def test_push_writes_a_folder_that_can_be_looked_at_first(made, tmp_path, capsys):
    out = tmp_path / "hub"
    assert main(["push", str(made / "run"), "--repo-id", "ann/toy", "--local", str(out), "--license", "mit"]) == 0
    files = {"README.md", "ppo_self_bc-metaworld.zip", "config.yaml", "versions.json", "curves.png"}
    assert {path.name for path in out.iterdir()} == files
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "ann/toy" in card and "sb3-vla train --config" in card
    said = capsys.readouterr().out
    assert all(name in said for name in files) and f"hf upload ann/toy {out}" in said
    assert f"no results.json: the card has no results (sb3-vla eval {made}/run/model.zip --out " in said
    assert "no gifs/" in said
    # Found by the name of its file, the configuration acts beside the downloaded model
    assert main(["eval", str(out / "ppo_self_bc-metaworld.zip"), "--n-goals", "1"]) == 0
    assert all(task in capsys.readouterr().out for task in TASKS[:1])


def test_push_uploads_to_the_hub(made, tmp_path, monkeypatch, capsys):
    class Api:
        def __init__(self, token: str | None) -> None:
            pass

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> str:
            calls.append(("create", repo_id, private))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("sb3_vla.hub.upload.HfApi", Api)
    monkeypatch.setattr("sb3_vla.hub.upload.get_token", lambda: "hf_token")
    assert main(["push", str(made / "run"), "--repo-id", "ann/toy", "--private", "--with-demos"]) == 0
    files = ["README.md", "config.yaml", "curves.png", "demonstrations.npz", "ppo_self_bc-metaworld.zip", "versions.json"]
    assert calls[0] == ("create", "ann/toy", True) and calls[-1] == ("upload", "ann/toy", files)
    assert "to https://huggingface.co/ann/toy" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.fixture
def fail(capsys, tmp_path):
    """Runs a command that must end with status 2 and one line, having written nothing; returns the line."""

    def fail(*argv: str) -> str:
        capsys.readouterr()
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert main(argv) == 2
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"sb3-vla {argv[0]}: "), lines
        return lines[0]

    return fail


@pytest.fixture
def config(tmp_path):
    """Writes a configuration file."""

    def config(**sections: Any) -> str:
        return _write(tmp_path / f"{len(list(tmp_path.iterdir()))}.yml", **sections)

    return config


@pytest.fixture
def commands(made, tmp_path):
    """Every command as it would work, without its configuration."""
    demos, sft_model, out = str(made / "demos/d.npz"), str(made / "sft/sft_model.zip"), str(tmp_path / "new" / "out")
    return {
        "demos": ["demos", "--out", out],
        "sft": ["sft", "--demos", demos, "--out", out],
        "train": ["train", "--init", sft_model, "--demos", demos, "--out", out],
        "eval": ["eval", sft_model, "--out", out],
        "probe": ["probe", sft_model, "--out", out],
        "play": ["play", sft_model, "--out", out],
        "record": ["record", sft_model, "--out", out],
        "quickstart": ["quickstart", "--out", out],
    }


ALL = ["demos", "sft", "train", "eval", "probe", "play", "record", "quickstart"]
TRAINING = ["sft", "train", "quickstart"]


@pytest.mark.parametrize("command", ALL)
def test_unknown_task(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(), "--tasks", "window-opn-v3")
    assert "'window-opn-v3'" in line and "did you mean 'window-open-v3'" in line


@pytest.mark.parametrize("command", ALL)
def test_unknown_camera(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(wrapping={"cameras": ["corner9"]}))
    assert "'corner9'" in line and "'corner4'" in line and "'gripperPOV'" in line


@pytest.mark.parametrize("command", ALL)
def test_camera_with_an_unknown_field(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(wrapping={"cameras": [{"name": "corner4", "size": 32}]}))
    assert "wrapping" in line and "'size'" in line


@pytest.mark.parametrize("command", ALL)
def test_prompt_longer_than_its_space(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(wrapping={"max_instruction_bytes": 4}))
    assert "only 4 fit" in line and "max_instruction_bytes" in line


def test_no_gl_library(commands, config, tmp_path):
    """In a process of its own, as MuJoCo takes the first library that it is told to for good."""
    program = (
        "import ctypes.util, sys; ctypes.util.find_library = lambda library: None\n"
        "from sb3_vla.runs.cli import main; sys.exit(main())"
    )
    arguments = [sys.executable, "-c", program, *commands["quickstart"], "--config", config()]
    process = subprocess.run(arguments, env={**os.environ, "MUJOCO_GL": "osmesa"}, capture_output=True, text=True)
    assert process.returncode == 2 and not (tmp_path / "new").exists()
    assert "apt-get install libosmesa6" in process.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["sft", "quickstart"])
def test_unknown_backbone(command, commands, config, fail, tmp_path):
    missing = str(tmp_path / "no_such_backbone")
    line = fail(*commands[command], "--config", config(policy={"backbone": missing}))
    assert f"backbone '{missing}'" in line and "'tiny'" in line


@pytest.mark.parametrize("command", ALL)
def test_setting_that_does_not_exist(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(train={"lr": 0.1}))
    assert "no setting train.lr" in line and "learning_rate" in line


@pytest.mark.parametrize("command", TRAINING)
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_steps": "many"}, "train.n_steps must be an integer, got 'many'"),
        ({"batch_size": 1}, "train.batch_size must be at least 2, got 1"),
        ({"ratio_per": "token"}, "train.ratio_per must be 'step' or 'chunk', got 'token'"),
        ({"bc_weight": "sometimes"}, "'sometimes'"),
        ({"n_envs": 0}, "train.n_envs must be at least 1, got 0"),
        ({"total_timesteps": 0}, "train.total_timesteps must be at least 1, got 0"),
    ],
)
def test_setting_that_does_not_work(command, settings, named, commands, config, fail):
    assert named in fail(*commands[command], "--config", config(train=settings))


@pytest.mark.parametrize("command", ["train", "eval", "record"])
def test_chunks_of_another_size_than_the_models(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(wrapping={"chunk_size": 4}))
    assert "4" in line and "5" in line and "chunk_size" in line


@pytest.mark.parametrize("command", ["train", "eval", "record"])
def test_cameras_that_are_not_the_models(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(wrapping={"cameras": [{"name": "corner4", "height": 64, "width": 64}]}))
    assert "32" in line and "64" in line and "cameras" in line


@pytest.mark.parametrize("command", ["train", "eval", "record"])
def test_model_of_another_action_shape(command, commands, config, fail, make_model, tmp_path):
    make_model().save(tmp_path / "toy.zip")
    argv = [str(tmp_path / "toy.zip") if part.endswith("sft_model.zip") else part for part in commands[command]]
    assert "3" in fail(*argv, "--config", config())


@pytest.mark.parametrize("command", ["train", "eval", "record"])
def test_file_that_is_no_model(command, commands, config, fail, made, tmp_path):
    whole = (made / "sft/sft_model.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    for path, named in (
        (tmp_path / "short.zip", "can't be loaded"),
        (made / "demos/d.npz", "can't be loaded"),
        (tmp_path / "nowhere.zip", "there is no model"),
        (tmp_path, "there is no model"),
    ):
        argv = [str(path) if part.endswith("sft_model.zip") else part for part in commands[command]]
        line = fail(*argv, "--config", config())
        assert str(path) in line and named in line


@pytest.mark.parametrize("command", ["sft", "train"])
def test_demonstrations_that_cannot_be_read(command, commands, config, fail, made, tmp_path):
    whole = (made / "demos/d.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    with np.load(made / "demos/d.npz") as archive:
        np.savez(tmp_path / "newer.npz", **{**archive, "version": np.array(99)})
    for name, named in (
        ("short.npz", "truncated"),
        ("newer.npz", "version 99, this sb3-vla reads"),
        ("nowhere.npz", "No such file"),
    ):
        argv = [str(tmp_path / name) if part.endswith("d.npz") else part for part in commands[command]]
        line = fail(*argv, "--config", config())
        assert name in line and named in line


def test_demonstrations_of_other_cameras(commands, config, fail):
    camera = SETTINGS["wrapping"]["cameras"][0]
    line = fail(*commands["sft"], "--config", config(wrapping={"cameras": [{**camera, "height": 64, "width": 64}]}))
    assert "32" in line and "64" in line and "cameras" in line
    line = fail(*commands["sft"], "--config", config(wrapping={"cameras": [camera, {**camera, "name": "gripperPOV"}]}))
    assert "image_gripperPOV" in line and "cameras" in line


def test_demonstrations_of_other_chunks(commands, config, fail):
    line = fail(*commands["sft"], "--config", config(wrapping={"chunk_size": 4}))
    assert "(5, 4)" in line and "(4, 4)" in line and "chunk_size" in line


@pytest.mark.parametrize("command", TRAINING)
def test_run_folder_that_holds_something(command, commands, config, fail, tmp_path):
    (tmp_path / "new/out").mkdir(parents=True)
    (tmp_path / "new/out/thesis.tex").write_text("all of it")
    line = fail(*commands[command], "--config", config())
    assert str(tmp_path / "new/out") in line and "never overwritten" in line


@pytest.mark.parametrize("command", ["demos", "eval"])
def test_file_that_exists(command, commands, config, fail, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/out").write_text("all of it")
    line = fail(*commands[command], "--config", config())
    assert str(tmp_path / "new/out") in line and "exists already" in line


def test_film_that_exists(commands, config, fail, tmp_path):
    film = tmp_path / "new/out" / f"sft_model_{TASKS[1]}.gif"
    film.parent.mkdir(parents=True)
    film.write_text("all of it")
    assert str(film) in fail(*commands["record"], "--config", config())


def test_goal_that_is_not_there(commands, config, fail, tmp_path):
    line = fail("record", commands["record"][1], "--out", str(tmp_path / "films"), "--config", config(), "--goal", "-1")
    assert "--goal must be at least 0, got -1" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--n-goals", "0"], "eval.n_goals must be at least 1, got 0"),
        (["--suite", "mars"], "no suite 'mars'"),
        (["--protocol", "mars"], "has no protocol 'mars', only ['lerobot', 'metaworld', 'rlinf']"),
        (["--suite", "nowhere:mars"], "no module 'nowhere'"),
    ],
)
def test_options_out_of_range_are_named_as_settings(option, message, commands, config, fail):
    assert message in fail(*commands["eval"], "--config", config(), *option)


@pytest.mark.parametrize("command", ["demos", "quickstart"])
def test_suite_without_an_expert(command, commands, config, fail, monkeypatch):
    monkeypatch.setattr(get_suite("metaworld"), "has_expert", lambda task: task != TASKS[1], raising=False)
    line = fail(*commands[command], "--config", config())
    assert f"'metaworld' has no expert for {TASKS[1]}:" in line and "sb3-vla sft --demos" in line


def test_train_needs_either_a_new_run_or_an_old_one(fail, tmp_path):
    assert "either --out FOLDER for a new run or --resume" in fail("train")
    assert "either --out" in fail("train", "--out", str(tmp_path / "a"), "--resume", str(tmp_path / "b"))


@pytest.mark.parametrize(
    "option",
    [
        ["--config", "a.yml"],
        ["--tasks", "MT10"],
        ["--seed", "0"],
        ["--init", "a"],
        ["--demos", "a"],
        ["--timesteps", "9"],
    ],
)
def test_resumed_run_keeps_its_configuration(option, made, fail):
    assert f"leave out {option[0]}" in fail("train", "--resume", str(made / "run"), *option)


def test_resuming_what_is_no_run_or_has_no_checkpoint(fail, tmp_path):
    assert "no run folder" in fail("train", "--resume", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "not a run folder" in fail("train", "--resume", str(tmp_path / "empty"))
    RunFolder.create(tmp_path / "early", "sb3-vla train", load_config(_write(tmp_path / "c.yml")).to_dict())
    assert "there is no checkpoint" in fail("train", "--resume", str(tmp_path / "early"))


def test_push_of_what_cannot_be_pushed(made, fail, tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_vla.hub.upload.get_token", lambda: None)
    run, repo = str(made / "run"), ["--repo-id", "ann/toy"]
    assert "no owner: give 'user/toy'" in fail("push", run, "--repo-id", "toy")
    assert "no run folder" in fail("push", str(tmp_path / "nowhere"), *repo)
    assert "not a run folder" in fail("push", str(tmp_path), *repo)
    assert "hf auth login" in fail("push", run, *repo)
    (tmp_path / "thesis.tex").write_text("all of it")
    assert "already holds something" in fail("push", run, *repo, "--local", str(tmp_path))
    assert "no demonstration buffer" in fail("push", str(made / "sft"), *repo, "--with-demos")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("train", {"learning_rate": 1e-3}, "train.learning_rate is 0.001, but the run began with 7e-05"),
        ("simulation", {"horizon": 61}, "simulation.horizon is 61, but the run began with 60"),
        ("train", {"total_timesteps": 16}, "train.total_timesteps must be at least 32"),
        ("train", {"total_timesteps": "many"}, "train.total_timesteps must be an integer, got 'many'"),
        ("train", {"total_timestep": 64}, "no setting train.total_timestep;"),
        ("eval", {"n_goals": "all"}, "eval.n_goals must be an integer, got 'all'"),
    ],
)
def test_resuming_with_an_edit_that_cannot_be_applied(section, change, message, made, fail, tmp_path):
    run = shutil.copytree(made / "run", tmp_path / "edited")
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["config"][section] |= change
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert message in fail("train", "--resume", str(run))


def test_resuming_applies_a_longer_training_and_settings_of_the_evaluation(made, tmp_path):
    run = RunFolder(shutil.copytree(made / "run", tmp_path / "longer"))
    content = yaml.safe_load(run.config_file.read_text())
    content["config"]["train"]["total_timesteps"] = 48
    content["config"]["eval"]["n_goals"] = 1
    run.config_file.write_text(yaml.safe_dump(content))
    assert main(["train", "--resume", str(run.path)]) == 0
    assert PPOSelfBC.load(run.model).num_timesteps == 48
    assert main(["eval", str(run.model), "--out", str(tmp_path / "longer.json")]) == 0
    assert EvaluationResult.load(tmp_path / "longer.json").settings["n_goals"] == 1


def test_resumed_run_may_change_its_device(made, fail):
    assert "nonsense" in fail("train", "--resume", str(made / "run"), "--device", "nonsense")


def test_error_in_the_work_itself_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug, not a mistake of the user's")

    monkeypatch.setattr("sb3_vla.runs.commands.demos.collect", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["demos", "--config", _write(tmp_path / "c.yml"), "--out", str(tmp_path / "d.npz")])


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def test_config_prints_what_can_be_given_again(config, tmp_path, capsys):
    assert main(["config", "--config", config(), "--seed", "5"]) == 0
    printed = tmp_path / "printed.yml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed).to_dict() == load_config(config(seed=5)).to_dict()
    assert main(["config", "--suite", "fetch"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tasks"] == list(get_suite("fetch").default_tasks)


# ---------------------------------------------------------------------------------------------------------------------
# Help


def _parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


@pytest.mark.parametrize("command", [*ALL, "config", "doctor", "memory", "push", "report"])
def test_help_describes_every_option(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "metaworld" not in text.lower()
    for action in _parsers()[command]._actions:
        for name in action.option_strings or [action.metavar]:
            assert name in text
        assert action.help and " ".join(action.help.split()) in text, action


def test_help_lists_every_command(capsys):
    assert sorted(_parsers()) == sorted([*ALL, "config", "doctor", "memory", "push", "report"])
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in [*ALL, "config", "doctor", "memory", "push", "report"])


def test_unknown_option_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--epochs", "3"])
    assert end.value.code == 2 and "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"], ["train", "--epochs", "3"]])
def test_help_and_usage_do_not_wait_for_torch(argv):
    program = (
        "import atexit, sys; from sb3_vla.runs.cli import main\n"
        "atexit.register(lambda: print([name for name in ('torch', 'numpy', 'gymnasium') if name in sys.modules]))\n"
        "main(sys.argv[1:])"
    )
    process = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "[]"

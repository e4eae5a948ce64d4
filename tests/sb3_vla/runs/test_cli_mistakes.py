"""Mistakes on the command line: one line that says what is wrong, and nothing is written."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from sb3_vla import PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EvaluationResult
from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla_envs.suite import get_suite

from .small_settings import ALL, SETTINGS, TASKS, TRAINING, write_settings

pytestmark = pytest.mark.usefixtures("in_this_process")


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
        ("nowhere.npz", "there is no demonstration file"),
    ):
        argv = [str(tmp_path / name) if part.endswith("d.npz") else part for part in commands[command]]
        line = fail(*argv, "--config", config())
        assert name in line and named in line


@pytest.mark.parametrize("command", ["sft", "train"])
def test_demonstrations_of_other_tasks(command, commands, config, fail):
    line = fail(*commands[command], "--config", config(tasks=[TASKS[0], "reach-v3"]))
    assert f"demonstrations of the tasks {TASKS[1]}, but those of this run are {TASKS[0]}, reach-v3: say it by --tasks" in line


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


def test_films_are_not_made_where_they_cannot_be_written(commands, config, fail):
    assert "can't write to '/proc/nowhere'" in fail(*commands["record"][:-1], "/proc/nowhere", "--config", config())


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"nonsense": 1}, "no setting train.policy_kwargs.nonsense;"),
        ({"frozen": ["eyes"]}, "no part 'eyes' to freeze"),
        ({"head_kwargs": {"hidden_dim": 24}}, "train.policy_kwargs make another network of the policy"),
        ({"head": "token", "head_kwargs": None}, "train.policy_kwargs make another network of the policy"),
    ],
)
def test_the_policy_in_training_is_checked_before_the_stages_before_it(policy_kwargs, message, commands, config, fail):
    train = {**SETTINGS["train"], "policy_kwargs": policy_kwargs}
    assert message in fail(*commands["quickstart"], "--config", config(train=train))


def test_train_needs_either_a_new_run_or_an_old_one(fail, tmp_path):
    assert "either --out FOLDER for a new run or --resume" in fail("train")
    assert "either --out" in fail("train", "--out", str(tmp_path / "a"), "--resume", str(tmp_path / "b"))
    assert "either --out" in fail("sft", "--demos", str(tmp_path / "d.npz"))


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
    RunFolder.create(tmp_path / "early", "sb3-vla train", load_config(write_settings(tmp_path / "c.yml")).to_dict())
    assert "there is no checkpoint" in fail("train", "--resume", str(tmp_path / "early"))


def test_sft_goes_on_with_its_own_runs_alone(made, fail):
    demos = ("--demos", str(made / "demos" / "d.npz"))
    assert "is a run of another command than sft: go on with it by `sb3-vla train --resume`" in fail(
        "sft", "--resume", str(made / "run"), *demos
    )
    assert "leave out --epochs" in fail("sft", "--resume", str(made / "sft"), *demos, "--epochs", "3")


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
    assert "can't write to '/proc/nowhere'" in fail("push", run, *repo, "--local", "/proc/nowhere")
    assert "hf auth login" not in fail("push", run, *repo, "--license", "MIT License")  # nothing is made on the Hub before
    licence = fail("push", run, *repo, "--local", str(tmp_path / "new"), "--license", "MIT License")
    assert "license must look like one of the Hub's names" in licence and "'MIT License'" in licence


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
        main(["demos", "--config", write_settings(tmp_path / "c.yml"), "--out", str(tmp_path / "d.npz")])

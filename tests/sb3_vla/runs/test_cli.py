"""The commands from the command line to the files, on MetaWorld, with runs of a few seconds."""

import csv
import json
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
from sb3_vla_envs import load_demonstrations
from sb3_vla_envs.suite import get_suite

from .small_settings import TASKS

pytestmark = pytest.mark.usefixtures("in_this_process")


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


def test_config_prints_what_can_be_given_again(config, tmp_path, capsys):
    assert main(["config", "--config", config(), "--seed", "5"]) == 0
    printed = tmp_path / "printed.yml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed).to_dict() == load_config(config(seed=5)).to_dict()
    assert main(["config", "--suite", "fetch"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tasks"] == list(get_suite("fetch").default_tasks)

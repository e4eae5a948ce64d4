import contextlib
import io
import os
import signal
import sys
import time

import cloudpickle
import pytest
import torch as th
import yaml

from sb3_vla import PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EvaluationResult
from sb3_vla.imitation.demonstration_buffer import DemonstrationBuffer
from sb3_vla.runs.cli import main
from sb3_vla_envs import collect_demonstrations, save_demonstrations

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


TASKS = ["handle-press-v3", "coffee-button-v3"]
CAMERAS = [{"name": "corner4", "height": 8, "width": 8}]


@pytest.fixture
def config_file(tmp_path, tiny_config):
    settings = {
        "tasks": TASKS,
        "device": "cpu",
        "simulation": {"horizon": 20, "n_goals": 3},
        "wrapping": {"chunk_size": 5, "cameras": CAMERAS},
        "policy": {
            **{"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
            "backbone_kwargs": {"config": tiny_config},
        },
        "train": {
            **{"total_timesteps": 64, "n_envs": 1, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "critic_warmup_steps": 0},
            **{"bc_batch_size": 4, "checkpoint_every": 1, "validate_every": 32, "n_validation_goals": 1},
        },
        "eval": {"n_goals": 3, "n_envs": 1},
    }
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def change(config_file, **settings):
    content = yaml.safe_load(open(config_file, encoding="utf-8"))
    content["train"].update(settings)
    with open(config_file, "w", encoding="utf-8") as file:
        yaml.safe_dump(content, file)


def command(*argv):
    """Exit status, what went to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue()


def train_and_evaluate(config_file, run, result):
    trained = command("train", "--config", config_file, "--out", run)
    th.distributed.barrier()  # the model is written
    return trained, command("eval", f"{run}/model.zip", "--out", result)


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_on_two_ranks_makes_the_files_of_one(start_ranks, config_file, tmp_path, shard):
    change(config_file, shard=shard)
    run, result = tmp_path / "run", tmp_path / "eval.json"
    first, second = start_ranks(train_and_evaluate, 2, config_file, str(run), str(result)).results()
    assert [status for status, _, _ in (*first, *second)] == [0] * 4
    assert f"Wrote {run}/model.zip" in first[0][1] and second[0][1] == second[1][1] == ""
    folder = RunFolder.open(run)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"48", "64"}
    timesteps = [line.split(",") for line in folder.progress.read_text().splitlines()]
    column = timesteps[0].index("time/total_timesteps")
    assert [row[column] for row in timesteps[1:]] == ["16", "32", "48", "64"], "one rollout is 8 chunks of each rank"
    assert len(folder.validation.read_text().splitlines()) == 3
    assert PPOSelfBC.load(folder.model).num_timesteps == 64

    alone = tmp_path / "alone.json"
    assert command("eval", str(folder.model), "--out", str(alone))[0] == 0
    shared, one = EvaluationResult.load(result), EvaluationResult.load(alone)
    assert shared.settings == one.settings and shared.overall.success == one.overall.success
    assert [(each.task, each.goal_index, each.n_steps) for each in shared.episodes] == [
        (each.task, each.goal_index, each.n_steps) for each in one.episodes
    ]


def train_until_one_is_killed(config_file, run, when):
    collect, update = PPOSelfBC.collect_rollouts, PPOSelfBC.train

    def die(model):
        if model.ranks.rank == 1 and model.num_timesteps >= 32:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_collect(model, *args, **kwargs):
        if when == "rollout":
            die(model)
        return collect(model, *args, **kwargs)

    def watched_update(model):
        if when == "update":
            die(model)
        update(model)

    PPOSelfBC.collect_rollouts, PPOSelfBC.train = watched_collect, watched_update
    return command("train", "--config", config_file, "--out", run)


@pytest.mark.parametrize(("when", "shard"), [("rollout", False), ("update", False), ("rollout", True), ("update", True)])
def test_a_killed_rank_stops_the_other_and_the_run_goes_on_alone(start_ranks, config_file, tmp_path, when, shard):
    change(config_file, shard=shard)
    run = tmp_path / "run"
    start = time.monotonic()
    (status, _, error), nothing = start_ranks(train_until_one_is_killed, 2, config_file, str(run), when).results(60)
    assert nothing is None and time.monotonic() - start < 60
    assert status == 1
    assert f"To go on: sb3-vla train --resume {run}" in error
    assert "sb3-vla train (rank 0): another rank has ended or can't be reached" in error
    # Nothing is learned from the rollout in which a rank is lost, and a rank alone can't save what is sharded
    newest = "32" if when == "rollout" and not shard else "16"
    assert max(path.name for path in (run / "checkpoints").iterdir()) == newest
    status, out, _ = command("train", "--resume", str(run))
    assert status == 0 and f"checkpoints/{newest}" in out
    assert PPOSelfBC.load(run / "model.zip").num_timesteps == 64


def resume(run):
    drawn, sample = [], DemonstrationBuffer.sample

    def watched_sample(buffer, *args, **kwargs):
        drawn.append(buffer.rng.bit_generator.state["state"]["state"])
        return sample(buffer, *args, **kwargs)

    DemonstrationBuffer.sample = watched_sample
    return command("train", "--resume", run)[0], drawn


def test_a_run_of_one_process_goes_on_with_two(start_ranks, config_file, tmp_path):
    run = tmp_path / "run"
    change(config_file, replay_buffer_kwargs={"rule": "shortest"})
    demos = tmp_path / "demos.npz"
    save_demonstrations(demos, collect_demonstrations(TASKS, 1, chunk_size=5, cameras=CAMERAS, progress=False))
    begin = ("--config", config_file, "--demos", str(demos), "--out", str(run), "--timesteps", "16")
    assert command("train", *begin)[0] == 0
    text = (run / "config.yaml").read_text().replace("total_timesteps: 16", "total_timesteps: 48")
    (run / "config.yaml").write_text(text)
    (first, drawn), (second, drawn_elsewhere) = start_ranks(resume, 2, str(run)).results()
    assert first == second == 0
    assert drawn and drawn_elsewhere and not {*drawn} & {*drawn_elsewhere}, "other demonstrations on each rank"
    assert PPOSelfBC.load(run / "model.zip").num_timesteps == 48


def stop_one(config_file, run):
    update = PPOSelfBC.train

    def watched_update(model):
        update(model)
        if model.ranks.rank == 1 and model.num_timesteps == 32:
            os.kill(os.getpid(), signal.SIGTERM)

    PPOSelfBC.train = watched_update
    return command("train", "--config", config_file, "--out", run)


def test_who_stops_one_rank_stops_all_with_a_checkpoint(start_ranks, config_file, tmp_path):
    run = tmp_path / "run"
    first, second = start_ranks(stop_one, 2, config_file, str(run)).results()
    assert first[0] == second[0] == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in first[2] and "To go on" in first[2]
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "32"


def differing(config_file, run, argv):
    own = ["--seed", "5"] if os.environ["RANK"] == "1" else []
    return command(*argv, "--config", config_file, "--out", run, *own)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["train"], "the ranks differ in configuration: seed is 0 on rank 0 and 5 on rank 1"),
        (["quickstart"], "quickstart runs in one process, but the launcher has started 2"),
    ],
)
def test_mistakes_are_one_line_a_rank_and_nothing_is_written(start_ranks, config_file, tmp_path, argv, text):
    run = tmp_path / "run"
    for rank, (status, out, error) in enumerate(start_ranks(differing, 2, config_file, str(run), argv).results()):
        assert status == 2 and out == "" and error.count("\n") == 1
        assert error.startswith(f"sb3-vla {argv[0]} (rank {rank}): ") and text in error
    assert not run.exists()

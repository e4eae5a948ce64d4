"""Fine-tunings that are stopped, on the command line."""

import os
import signal

import pytest
import torch as th

from sb3_vla import PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.imitation import sft
from sb3_vla.runs import quickstart
from sb3_vla.runs.cli import main
from sb3_vla_envs import load_demonstrations, save_demonstrations

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def config_file(config, tiny_config):
    return config(
        wrapping={"cameras": [{"name": "corner4", "height": 8, "width": 8}]},
        policy={"backbone_kwargs": {"config": tiny_config}},
        sft={"n_epochs": 2, "batch_size": 4, "checkpoint_every": 2},
        eval={"n_goals": 1, "n_envs": 1},
    )


@pytest.fixture
def fine_tuning(monkeypatch):
    """Runs a command whose fine-tuning a signal stops after so many batches, or none does; returns how many it did."""
    update = sft.Progress.update

    def run(*command, stop_after=None):
        done = []

        def counted(progress, n=1, **figures):
            done.extend([n] * n)
            if n and len(done) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            update(progress, n, **figures)

        with monkeypatch.context() as patch:
            patch.setattr(sft, "Progress", type("Counted", (sft.Progress,), {"update": counted}))
            assert main([str(part) for part in command]) == (0 if stop_after is None else 143)
        return len(done)

    return run


def test_fine_tuning_that_is_stopped_says_how_to_go_on_and_ends_as_if_it_had_not_been(
    config_file, tmp_path, fine_tuning, capfd
):
    demos, run, other = tmp_path / "d.npz", RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    assert main(["demos", "--config", str(config_file), "--out", str(demos)]) == 0
    given = ("--config", config_file, "--demos", demos)
    n_batches = fine_tuning("sft", *given, "--out", other.path)
    assert n_batches > 3 and not other.sft_checkpoint.exists()
    fine_tuning("sft", *given, "--out", run.path, stop_after=3)
    going_on = f"sb3-vla sft --resume {run.path} --demos {demos}"
    assert capfd.readouterr().err.splitlines()[-2:] == [f"To go on: {going_on}", "sb3-vla sft: stopped by SIGTERM"]
    assert main(["sft", *map(str, given), "--out", str(run.path)]) == 2
    assert "go on with the run in it, by --resume" in capfd.readouterr().err
    assert fine_tuning(*going_on.split()[1:]) == n_batches - 2
    assert run.sft_model.exists() and not run.sft_checkpoint.exists()
    first, second = (PPOSelfBC.load(each.sft_model).policy.state_dict() for each in (run, other))
    assert all(th.equal(value, second[name]) for name, value in first.items())
    assert run.sft_model.with_suffix(".json").read_text() == other.sft_model.with_suffix(".json").read_text()
    assert fine_tuning(*going_on.split()[1:]) == 0
    assert "is there already: this fine-tuning is complete" in capfd.readouterr().out


def test_fine_tuning_goes_on_with_what_it_began_with_alone(config_file, tmp_path, fine_tuning, capfd):
    demos, run = tmp_path / "d.npz", RunFolder(tmp_path / "run")
    assert main(["demos", "--config", str(config_file), "--out", str(demos)]) == 0
    others = [*load_demonstrations(demos)]
    others[0].actions *= -1.0
    save_demonstrations(tmp_path / "others.npz", others)
    fine_tuning("sft", "--config", config_file, "--demos", demos, "--out", run.path, stop_after=3)
    content = run.sft_checkpoint.read_bytes()
    going_on = ["sft", "--resume", str(run.path), "--demos"]

    def check_refused(*command, about):
        capfd.readouterr()
        assert main([*command]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert about in line

    check_refused(*going_on, str(tmp_path / "others.npz"), about="is of a fine-tuning with other demonstrations: give what it")
    for command in ("train", "quickstart"):
        about = f"is a run of another command than {command}: go on with it by `sb3-vla sft --resume`"
        check_refused(command, "--resume", str(run.path), about=about)
    run.sft_checkpoint.write_bytes(content[:-9])
    check_refused(*going_on, str(demos), about="is truncated, damaged or no file of sb3-vla")
    run.sft_checkpoint.unlink()  # it begins anew
    assert main([*going_on, str(demos)]) == 0
    run.sft_checkpoint.write_bytes(content)  # as if the power had gone just before the end
    assert main([*going_on, str(demos)]) == 0
    assert not run.sft_checkpoint.exists()


def test_quickstart_goes_on_in_the_middle_of_its_fine_tuning(config_file, tmp_path, fine_tuning, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(quickstart, "record_comparison", lambda *args: None)
    fine_tuning("quickstart", "--config", config_file, "--out", run, stop_after=3)
    n_batches = fine_tuning("quickstart", "--resume", run)
    assert n_batches + 2 == fine_tuning("quickstart", "--config", config_file, "--out", tmp_path / "other")

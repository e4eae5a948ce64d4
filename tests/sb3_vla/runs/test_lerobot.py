"""``sb3-vla demos`` to and from LeRobot datasets, on MetaWorld."""

import json

import numpy as np
import pytest
import yaml

from sb3_vla.runs.checks import check_training
from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla_envs import Demonstration, encode_instruction, load_demonstrations, save_demonstrations, write_lerobot
from sb3_vla_envs.metaworld.instructions import INSTRUCTIONS

TASK = "handle-press-v3"
SETTINGS = {
    "tasks": [TASK],
    "simulation": {"privileged": False},
    "wrapping": {"chunk_size": 5, "cameras": [{"name": "corner4", "height": 32, "width": 32}]},
}


def episode(n_steps, chunk_size=1, instruction="squash it"):
    rng = np.random.default_rng(n_steps)
    return Demonstration(
        task=TASK,
        observations={
            "image": rng.integers(0, 256, (n_steps, 32, 32, 3), dtype=np.uint8),
            "state": rng.normal(size=(n_steps, 4)).astype(np.float32),
            "instruction": np.tile(encode_instruction(instruction, 64), (n_steps, 1)),
        },
        actions=rng.uniform(-1, 1, (n_steps, chunk_size, 4)).astype(np.float32),
        chunk_lengths=np.full(n_steps, chunk_size),
        success=True,
    )


def config_file(folder, **sections):
    (folder / "config.yml").write_text(yaml.safe_dump({**SETTINGS, **sections}))
    return str(folder / "config.yml")


def test_demonstrations_of_other_tasks_are_not_written_as_the_configurations(tmp_path, capsys):
    save_demonstrations(tmp_path / "demos.npz", [episode(6)])
    written = ["--demos", str(tmp_path / "demos.npz"), "--to-lerobot", str(tmp_path / "set")]
    assert main(["demos", "--suite", "fetch", *written]) == 2
    assert f"demonstrations of the tasks {TASK}, but those of this run are FetchReach-v4" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("chunk_size", "fps"), [(1, 80), (5, 16)])
def test_there_and_back(tmp_path, capsys, chunk_size, fps):
    demos, folder, again = (str(tmp_path / name) for name in ("demos.npz", "set", "new/again.npz"))
    save_demonstrations(demos, [episode(6, chunk_size), episode(7, chunk_size)])
    config = config_file(tmp_path, lerobot={"use_videos": False, "keys": {"image": "observation.images.top"}})
    assert main(["demos", "--config", config, "--demos", demos, "--to-lerobot", folder]) == 0
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["fps"] == fps and info["features"]["observation.images.top"]["dtype"] == "image"
    config = config_file(
        tmp_path,
        demos={"every_step": chunk_size == 1},
        lerobot={"keys": {"image": "observation.images.top"}, "tasks": {"squash it": TASK}},
    )
    assert main(["demos", "--config", config, "--from-lerobot", folder, "--out", again]) == 0
    assert f"Wrote 2 demonstrations to {again}: 2 of {TASK}" in capsys.readouterr().out
    check_training(load_config(config), demonstrations=load_demonstrations(again))
    for ours, theirs in zip(load_demonstrations(demos), load_demonstrations(again), strict=True):
        assert ours.task == theirs.task
        for key in ("image", "state"):
            np.testing.assert_array_equal(ours.observations[key], theirs.observations[key])
        np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_the_suites_own_wordings_need_no_names_and_become_what_the_environment_says(tmp_path):
    write_lerobot(tmp_path / "set", [episode(6, instruction="push down on the handle")], fps=80)
    out = str(tmp_path / "demos.npz")
    assert main(["demos", "--config", config_file(tmp_path), "--from-lerobot", str(tmp_path / "set"), "--out", out]) == 0
    (demo,) = load_demonstrations(out)
    assert demo.task == TASK and demo.actions.shape == (2, 5, 4)
    assert bytes(demo.observations["instruction"][0]).rstrip(b"\0") == b"press the handle down"


def test_an_instruction_of_two_tasks_has_to_be_decided(tmp_path, capsys, monkeypatch):
    other, text = "handle-press-side-v3", "push down on the handle"
    monkeypatch.setitem(INSTRUCTIONS, other, (text,))
    write_lerobot(tmp_path / "set", [episode(6, instruction=text)], fps=80)
    command = ["demos", "--from-lerobot", str(tmp_path / "set"), "--out", str(tmp_path / "demos.npz"), "--config"]
    assert main([*command, config_file(tmp_path, tasks=[TASK, other])]) == 2
    assert f"{text!r} is an instruction of both {TASK!r} and {other!r}" in capsys.readouterr().err
    assert main([*command, config_file(tmp_path, tasks=[TASK, other], lerobot={"tasks": {text: other}})]) == 0
    assert [demo.task for demo in load_demonstrations(tmp_path / "demos.npz")] == [other]


def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, capsys):
    write_lerobot(tmp_path / "set", [episode(6), episode(7)], fps=30)
    known = {"tasks": {"squash it": TASK}}
    out, source = str(tmp_path / "demos.npz"), str(tmp_path / "set")
    for settings, message in (
        ({"lerobot": known}, "info.json says 30 frames a second, the environment takes 80 steps"),
        ({"lerobot": {"tasks": {"press": "reach-v3"}}}, "lerobot.tasks names the tasks ['reach-v3'], but those of this run"),
        ({"lerobot": {"fps": 30}}, "has no episode of these tasks"),
        ({"simulation": {"privileged": True}}, "has no feature 'observation.environment_state' for 'privileged'"),
    ):
        assert main(["demos", "--config", config_file(tmp_path, **settings), "--from-lerobot", source, "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    video = tmp_path / "set/videos/observation.image/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:500])
    config = config_file(tmp_path, lerobot={**known, "fps": 30})
    assert main(["demos", "--config", config, "--from-lerobot", source, "--out", out]) == 2
    error = capsys.readouterr().err
    assert "file-000.mp4 is truncated" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yml", "set"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say where to write: --out FILE"),
        (["--to-lerobot", "set"], "--demos FILE --to-lerobot FOLDER belong together"),
        (["--demos", "demos.npz", "--out", "other.npz"], "--demos FILE --to-lerobot FOLDER belong together"),
        (["--from-lerobot", "set", "--out", "demos.npz", "--n-per-task", "3"], "leave out --n-per-task"),
    ],
)
def test_options_that_do_not_go_together(capsys, options, message):
    assert main(["demos", *options]) == 2
    assert message in capsys.readouterr().err

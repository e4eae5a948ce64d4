"""A suite in a file of its own works with everything that takes a suite, by its module's name too."""

import re
import sys
from pathlib import Path

import pytest

from sb3_vla import make_vla_vec_env
from sb3_vla.evaluation.gif import record_tasks
from sb3_vla.runs.cli import main
from sb3_vla_envs import collect_demonstrations, get_suite, load_demonstrations
from sb3_vla_envs import suite as suite_module

EXAMPLES = Path(__file__).parents[2] / "examples"
SUITE = "own_suite:hills"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    get_suite(SUITE)
    return sys.modules["own_suite"]


def test_one_file_of_less_than_60_lines():
    assert len((EXAMPLES / "own_suite.py").read_text().splitlines()) < 60


def test_demonstrations_fine_tuning_evaluation(example, capsys):
    result = example.main(["--demonstrations", "2", "--epochs", "1", "--eval-goals", "1"])
    assert re.search(r"^climb .* 1\nrace .* 1\n-+\nmean .* 2$", capsys.readouterr().out, re.MULTILINE)
    assert [episode.task for episode in result.episodes] == ["climb", "race"]


def test_expert_succeeds_from_every_start(example):
    demonstrations = collect_demonstrations("hills", 5, suite=SUITE, progress=False)
    assert {demo.task for demo in demonstrations} == {"climb", "race"}
    assert all(demo.success and demo.n_steps < 200 for demo in demonstrations)


def test_worker_processes_find_the_suite_by_its_module(example):
    env = make_vla_vec_env("hills", n_envs=2, suite=SUITE)
    observation = env.reset()
    assert observation["image"].shape == (2, 96, 96, 3)
    assert [info["task"] for info in env.step([env.action_space.sample()] * 2)[3]] == ["climb", "race"]
    env.close()


def test_films(example, tmp_path):
    from sb3_vla import PPOSelfBC

    model = PPOSelfBC("VLAPolicy", make_vla_vec_env("climb", n_envs=1, suite=SUITE, horizon=16), n_steps=8, batch_size=8)
    (film,) = record_tasks(model, "climb", tmp_path, "own", suite=SUITE, horizon=16)
    assert film.name == "own_climb.gif" and film.stat().st_size > 1000


def test_command_line_takes_the_suite_by_its_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # As if no test before this one had imported it
    monkeypatch.setattr(suite_module, "_SUITES", {k: suite for k, suite in suite_module._SUITES.items() if k != "hills"})
    monkeypatch.delitem(sys.modules, "own_suite", raising=False)
    assert main(["demos", "--suite", SUITE, "--n-per-task", "1", "--out", str(tmp_path / "demos.npz")]) == 0
    assert [demo.task for demo in load_demonstrations(tmp_path / "demos.npz")] == ["climb", "race"]

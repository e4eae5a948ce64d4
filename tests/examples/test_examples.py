"""Every example runs, small, and says what its docstring promises."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_checker import check_env

EXAMPLES = Path(__file__).parents[2] / "examples"

# Name of each example, its arguments in a test, and what it prints of its result
CASES = {
    "chunked_ppo": (
        ["--timesteps", "1024"],
        r"^1024 chunks, return of an episode: -\d+ before, -\d+ after$",
    ),
    "chunked_recurrent_ppo": (
        ["--timesteps", "1024"],
        r"^1024 chunks, primitive steps of an episode: \d+ before, \d+ after$",
    ),
    "chunked_sac": (
        ["--timesteps", "520"],
        r"^520 chunks, 4160 primitive steps\n.*: \d+ in the first ten, \d+ in the last ten\nsuccess in .*: [01]\.\d\d$",
    ),
    "chunked_tqc": (
        ["--timesteps", "120"],
        r"^120 chunks, 240 primitive steps\nreturn of an episode: -\d+ in the first five, -\d+ in the last five$",
    ),
    "cleanrl_style_ppo": (
        ["--timesteps", "3000"],
        r"^\d+ primitive steps, of an episode: \d+ in the first 20, \d+ in the last 20$",
    ),
    "own_environment": (
        ["--timesteps", "960", "--demonstrations", "4", "--epochs", "1", "--eval-episodes", "1"],
        r"^After \d{4} primitive steps of post-training\ntask .*\nred .* 1\ngreen .* 1\nblue .* 1\n-+\nmean .* 3$",
    ),
}
# Those with a file of tests of their own
OF_THEIR_OWN = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_own_*.py")}


@pytest.mark.parametrize("name", sorted(OF_THEIR_OWN))
def test_what_is_added_to_the_package_takes_one_short_file(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(CASES) | OF_THEIR_OWN
    listed = re.findall(r"`python examples/(\w+)\.py`", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("chunked_")])
def test_others_algorithms_run_on_chunks(name, load_example, capsys):
    arguments, result = CASES[name]
    example = load_example(name)
    model = example.main(arguments)
    assert re.search(result, capsys.readouterr().out, re.MULTILINE)
    assert model.action_space.shape[0] == example.CHUNK_SIZE
    executed = getattr(example, "EXECUTED", example.CHUNK_SIZE)
    assert model.gamma == example.GAMMA**executed == model.env.get_attr("chunk_gamma")[0] ** executed
    assert model._n_updates > 0


def test_own_environment(load_example, capsys):
    arguments, result = CASES["own_environment"]
    model = load_example("own_environment").main(arguments)
    assert re.search(result, capsys.readouterr().out, re.MULTILINE)
    # Most chunks are whole, so that a chunk is nearly CHUNK_SIZE primitive steps
    assert 3 * 960 < model.num_primitive_steps <= 4 * 960
    assert set(model.replay_buffer.episodes) == {"red", "green", "blue"}


@pytest.mark.filterwarnings("error")
def test_own_environment_meets_the_contract(load_example):
    example = load_example("own_environment")
    check_env(example.ReachTarget())
    env = example.make_vla_ready()
    check_env(env)
    assert set(env.observation_space) == {"image", "state", "instruction", "privileged"}
    observation, _ = env.reset(seed=0)
    robot = env.unwrapped
    assert bytes(observation["instruction"]).rstrip(b"\0").decode() == f"go to the {robot.task} target"
    # The hand is white: where it is in the picture is where the state says it is
    rows, columns = np.nonzero((observation["image"] == 255).all(axis=2))
    assert observation["state"] == pytest.approx([2 * columns.mean() / 63 - 1, 2 * rows.mean() / 63 - 1], abs=0.05)


def test_own_environments_expert_succeeds_at_every_task(load_example):
    example = load_example("own_environment")
    for task in example.COLOURS:
        assert all(example.demonstrate(example.make_vla_ready(), task, seed).success for seed in range(4))


def test_cleanrl_style_ppo_needs_no_sb3():
    arguments, result = CASES["cleanrl_style_ppo"]
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert 'stable_baselines3' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(EXAMPLES / "cleanrl_style_ppo.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(result, run.stdout, re.MULTILINE)


def test_cleanrl_style_ppo_learns(load_example):
    episodes = load_example("cleanrl_style_ppo").main(["--timesteps", "20000"])
    assert np.mean(episodes[:20]) < 30 and np.mean(episodes[-20:]) > 60


def test_cleanrl_style_ppo_discounts_by_primitive_step(load_example):
    example = load_example("cleanrl_style_ppo")
    args = example.parse(["--gamma", "0.5", "--gae-lambda", "0.8"])
    # Two environments: chunks of 3 and 2 steps, then a reset (length 0), then a chunk of 1. The second chunk ends the episode,
    # in the first environment by itself, in the second by a time limit, which is bootstrapped from
    lengths = th.tensor([[3, 3], [2, 2], [0, 0], [1, 1]])
    done = th.tensor([[False, False], [True, True], [False, False], [False, False]])
    terminated = done & th.tensor([True, False])
    rewards = th.tensor([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0], [4.0, 4.0]])
    values = th.tensor([[8.0, 8.0], [16.0, 16.0], [32.0, 32.0], [64.0, 64.0], [128.0, 128.0]])
    advantages = example.advantages_of(rewards, values, lengths, terminated, done, args)
    last = 4 + 0.5 * 128 - 64
    ended = [2 - 16, 2 + 0.25 * 32 - 16]
    first = [1 + 0.125 * 16 - 8 + 0.125 * 0.8 * following for following in ended]
    assert advantages[[0, 1, 3]].numpy() == pytest.approx(np.array([first, ended, [last, last]]))


def test_cleanrl_style_ppo_ignores_what_was_not_executed(load_example):
    example = load_example("cleanrl_style_ppo")
    args = example.parse(["--chunk-size", "3"])
    th.manual_seed(0)
    agent = example.Agent(observation_dim=4, chunk_size=3, n_actions=2)
    batch = {"observations": th.randn(2, 4), "actions": th.zeros(2, 3, dtype=th.long), "lengths": th.tensor([3, 1])}
    batch |= {"log_probs": th.full((2, 3), -0.7), "advantages": th.tensor([1.0, -1.0]), "returns": th.zeros(2)}
    loss = example.loss_of(agent, batch, args)
    batch["actions"][1, 1:] = 1
    assert example.loss_of(agent, batch, args) == loss
    batch["actions"][1, 0] = 1
    assert example.loss_of(agent, batch, args) != loss


def test_a_vector_environments_reset_counts_as_no_step(load_example):
    example = load_example("cleanrl_style_ppo")
    infos = {"chunk_length": np.array([3, 0]), "_chunk_length": np.array([True, False])}
    assert example.chunk_lengths(infos, 2).tolist() == [3, 0]
    assert example.chunk_lengths({}, 2).tolist() == [0, 0]

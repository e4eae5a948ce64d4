import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from sb3_vla_envs.fetch.goals import sample_fetch_goals
from sb3_vla_envs.fetch.simulator import build_simulator
from sb3_vla_envs.fetch.tasks import TASKS


class Dictated:
    """Stands in for random numbers."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, *args, **kwargs):
        return self.numbers.pop(0)


def benchmark_at(task, goal):
    """Gymnasium-Robotics' own environment, having drawn a goal of ours."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    env = gym.make(task).unwrapped
    offset = np.array([TASKS[task].target_offset, 0.0, 0.0])
    in_the_air = [0.0 if goal[4] > 0 else 1.0, goal[4]] if TASKS[task].target_in_the_air else []
    env.np_random = Dictated(*([goal[:2]] if env.has_object else []), goal[2:] - offset, *in_the_air)
    return env, env.reset()[0]


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_those_of_the_benchmark_to_the_last_bit(task):
    goal = sample_fetch_goals(task, "train")[3]
    theirs, expected = benchmark_at(task, goal)
    ours = build_simulator(task)
    for _ in range(2):  # also after another episode
        seen = ours.begin(goal)
        np.testing.assert_array_equal(seen["observation"], expected["observation"])
        np.testing.assert_allclose(seen["desired_goal"], expected["desired_goal"], atol=1e-15)
        rng = np.random.default_rng(0)
        for _ in range(50):
            seen, *_ = ours.step(rng.uniform(-1, 1, 4).astype(np.float32))
    rng = np.random.default_rng(0)
    ours.begin(goal)
    for _ in range(50):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        expected, _, _, _, expected_info = theirs.step(action)
        seen, reward, _, _, info = ours.step(action)
        np.testing.assert_array_equal(seen["observation"], expected["observation"])
        assert info == expected_info
        assert reward == pytest.approx(-np.linalg.norm(expected["achieved_goal"] - expected["desired_goal"]))


def test_missing_simulator_names_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "gymnasium_robotics"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-vla\[fetch\]'"):
        build_simulator("FetchReach-v4")


def test_nothing_is_imported_or_printed_before_a_simulator_is_needed():
    program = """
import sys
import sb3_vla_envs
suite = sb3_vla_envs.find_suite("FetchReach-v4")
sb3_vla_envs.sample_fetch_goals("FetchReach-v4", "test")
env = sb3_vla_envs.FetchEnv("FetchReach-v4")
assert not {"gymnasium_robotics", "mujoco"} & set(sys.modules)
env.reset()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

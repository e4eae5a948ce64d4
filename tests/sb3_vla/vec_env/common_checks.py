"""What vectorised environments with workers have in common, and toy environments to see it with."""

import os
import signal
import sys
import time
from functools import partial

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing
from stable_baselines3.common.monitor import Monitor

# Workers can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPACES = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "image": spaces.Box(0, 255, (5, 4, 3), np.uint8),
    "float64": spaces.Box(-1, 1, (), np.float64),
    "discrete": spaces.Discrete(7),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict(
        {"image": spaces.Box(0, 255, (5, 4, 3), np.uint8), "number": spaces.Discrete(4), "state": spaces.Box(-1, 1, (3,))}
    ),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (3,)), spaces.MultiBinary(2))),
}


class ToyEnv(gym.Env):
    """Observes and is rewarded at random; episodes end at random, in both ways."""

    def __init__(self, number=0, space="box", action_space=None, render_mode=None, fault=None, armed=True):
        self.number, self.render_mode, self.fault, self.armed = number, render_mode, fault, armed
        self.observation_space = SPACES[space] if isinstance(space, str) else space
        self.action_space = action_space or spaces.Box(-1, 1, (2,), np.float32)
        self.happens("build")

    def happens(self, where):
        """Do what ``fault`` says, if it says it of this place."""
        if self.armed and self.fault and self.fault[0] == where:
            self.fault[1]()

    def arm(self):
        self.armed = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.happens("reset")
        return self._observe(), {"seed": seed, "options": options, "draw": self.np_random.random()}

    def step(self, action):
        self.happens("step")
        terminated, truncated = (bool(self.np_random.random() < 0.15) for _ in range(2))
        reward = float(self.np_random.normal() + np.sum(action))
        return self._observe(), reward, terminated, truncated, {"number": self.number, "action": action}

    def render(self):
        return np.full((4, 4, 3), self.number, np.uint8) if self.render_mode == "rgb_array" else f"<{self.number}>"

    def pid(self):
        return os.getpid()

    def settings(self):
        ignored = [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]
        return os.environ["LP_NUM_THREADS"], th.get_num_threads(), all(ignored)

    def _observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


def toy_env_fns(n=5, **kwargs):
    return [partial(ToyEnv, number, **kwargs) for number in range(n)]


def fail(error=ValueError, *args):
    raise error(*(args or ["the spring broke"]))


def assert_same(one, two):
    """Equal in value, type, shape and dtype."""
    assert isinstance(one, type(two)) or isinstance(two, type(one))
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_array_equal(one, two, strict=isinstance(one, np.ndarray))


def check_every_step(env, dummy):
    """Of five environments."""
    assert env.observation_space == dummy.observation_space and env.action_space == dummy.action_space
    rng = np.random.default_rng(0)
    n_ends = {"terminated": 0, "truncated": 0}
    for seed in (3, None):
        for venv in (env, dummy):
            if seed is not None:
                assert list(venv.seed(seed)) == [3, 4, 5, 6, 7]
                venv.set_options([{"goal": number} for number in range(5)])
        assert_same(env.reset(), dummy.reset())
        assert_same(env.reset_infos, dummy.reset_infos)
        for _ in range(30):
            actions = rng.uniform(-1, 1, (5, 2))  # float64, which arrives as such
            results = env.step(actions)
            assert_same(results, dummy.step(actions))
            assert_same(env.reset_infos, dummy.reset_infos)
            for done, info in zip(*results[2:], strict=True):
                assert done == ("terminal_observation" in info)
                n_ends["truncated" if info["TimeLimit.truncated"] else "terminated"] += int(done)
    assert min(n_ends.values()) > 5


def check_seeds_and_options_hold_for_one_reset(env):
    """Of environments that observe a dictionary with ``state``."""
    n = env.num_envs
    env.seed(10)
    env.set_options({"goal": 1})
    first = env.reset()
    assert [info["seed"] for info in env.reset_infos] == list(range(10, 10 + n))
    assert [info["options"] for info in env.reset_infos] == [{"goal": 1}] * n
    second = env.reset()
    assert [(info["seed"], info["options"]) for info in env.reset_infos] == [(None, None)] * n
    assert (first["state"] != second["state"]).all()


def check_attributes_and_methods_by_index(env):
    """Of at least four environments in an ``OrderEnforcing``."""
    numbers = list(range(env.num_envs))
    assert env.get_attr("number") == numbers
    assert env.get_attr("number", indices=[3, 0, 3, -1]) == [3, 0, 3, numbers[-1]]
    assert env.get_attr("number", indices=2) == [2]
    assert env.has_attr("number") and not env.has_attr("nummer")
    env.set_attr("mark", "here", indices=[1, 2])
    assert env.get_attr("mark", indices=[1, 2]) == ["here"] * 2
    with pytest.raises(AttributeError, match="mark"):
        env.get_attr("mark")
    assert env.get_attr("number") == numbers, "a query that failed leaves everything open and in order"
    assert env.env_method("get_wrapper_attr", "number", indices=1) == [1]
    assert env.env_method("get_wrapper_attr", name="number", indices=range(1, 3)) == [1, 2]
    assert env.env_is_wrapped(OrderEnforcing, indices=[0, 3]) == [True, True]
    assert env.env_is_wrapped(Monitor) == [False] * len(numbers)
    with pytest.raises(IndexError):
        env.get_attr("number", indices=len(numbers))


def check_reset_drops_the_step_under_way(env, dummy):
    for venv in (env, dummy):
        venv.seed(0)
        venv.reset()
    actions = np.zeros((env.num_envs, 2))
    env.step_async(actions)
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        env.get_attr("number")
    env.seed(1)
    dummy.seed(1)
    assert_same(env.reset(), dummy.reset())
    assert_same(env.step(actions), dummy.step(actions))


#: By number of the environment, what goes wrong while another one works
AN_ERROR_BESIDE_WORK = {1: ("step", partial(time.sleep, 60)), 2: ("step", fail)}


def check_an_error_is_not_held_up_by_other_workers(env):
    """Of environments, some of which have :data:`AN_ERROR_BESIDE_WORK`; they are closed afterwards."""
    env.reset()
    start = time.monotonic()
    with pytest.raises(ValueError, match="the spring broke"):
        env.step(np.zeros((env.num_envs, 2)))
    assert time.monotonic() - start < 15
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()
    with pytest.raises(RuntimeError, match="no step to wait for"):
        env.step_wait()

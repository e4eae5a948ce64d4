import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, TimeLimit, TransformReward
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_vla import SharedMemoryVecEnv
from sb3_vla.vec_env.env_state import get_env_state, set_env_state
from sb3_vla.vec_env.vec_env_state import get_states, set_states
from sb3_vla_envs import ChunkedActionWrapper


class Walk(gym.Env):
    """A random walk that can tell where it is."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.zeros(1)
        return self.place.copy(), {}

    def step(self, action):
        self.place += self.np_random.normal() + action
        return self.place.copy(), float(self.place[0]), False, False, {}

    def get_state(self):
        return {"place": self.place.copy(), "random": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.place = state["place"].copy()
        self.np_random.bit_generator.state = state["random"]


class Counting(gym.Wrapper):
    """One that may keep anything."""


def _walk():
    return Monitor(ChunkedActionWrapper(TimeLimit(OrderEnforcing(Walk()), 7), 2))


def _steps(env, n):
    seen = []
    for _ in range(n):
        observation, reward, terminated, truncated, info = env.step(np.full((2, 1), 0.5))
        ended = {name: value for name, value in info.get("episode", {}).items() if name != "t"}
        seen.append((observation.tolist(), reward, truncated, info["chunk_length"], ended))
        if terminated or truncated:
            seen.append(env.reset()[0].tolist())
    return seen


def test_another_environment_goes_on_through_wrappers_and_later_steps_change_nothing():
    env, other = _walk(), _walk()
    env.reset(seed=0)
    _steps(env, 2)
    state = get_env_state(env)
    expected = _steps(env, 9)
    assert any(step[2] for step in expected if len(step) > 1), "a time limit must be reached"
    set_env_state(other, state)
    assert _steps(other, 9) == expected
    set_env_state(other, state)
    assert _steps(other, 9) == expected


def test_what_only_translates_keeps_nothing():
    env, other = (TransformReward(Walk(), lambda reward: 2 * reward) for _ in range(2))
    env.reset(seed=0)
    set_env_state(other, get_env_state(env))
    assert env.step(np.ones(1))[:2] == other.step(np.ones(1))[:2]


@pytest.mark.parametrize(("env", "name"), [(Counting(Walk()), "Counting"), (gym.make("CartPole-v1"), "CartPoleEnv")])
def test_what_can_not_tell_is_named(env, name):
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match=f"{name} can't tell its state"):
        get_env_state(env)


def test_other_wrappers_are_refused():
    env = _walk()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="other wrappers"):
        set_env_state(env.env, get_env_state(env))


def _vec_steps(venv, n):
    return [[np.asarray(part).tolist() for part in venv.step(np.full((3, 2, 1), 0.5))[:3]] for _ in range(n)]


def test_vectorised_environments_of_both_kinds_go_on():
    envs = [DummyVecEnv([_walk] * 3), SharedMemoryVecEnv([_walk] * 3, n_workers=2)]
    try:
        for source, target in (envs, envs[::-1]):
            source.seed(1)
            source.reset()
            _vec_steps(source, 2)
            states = get_states(source)
            expected = _vec_steps(source, 6)
            set_states(target, states)
            assert _vec_steps(target, 6) == expected
        with pytest.raises(ValueError, match="states of 2 environments for 3"):
            set_states(envs[0], states[:2])
    finally:
        for env in envs:
            env.close()


def test_those_that_can_not_tell_stay_open():
    env = SharedMemoryVecEnv([gym.vector.utils.CloudpickleWrapper(lambda: gym.make("CartPole-v1"))] * 2, n_workers=1)
    try:
        env.reset()
        with pytest.raises(NotImplementedError, match="CartPoleEnv can't tell"):
            get_states(env)
        env.step([0, 1])
    finally:
        env.close()
    with pytest.raises(NotImplementedError, match="SubprocVecEnv"):
        get_states(SubprocVecEnv.__new__(SubprocVecEnv))

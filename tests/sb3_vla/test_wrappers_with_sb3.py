"""Other people's algorithms on ``ChunkedActionWrapper``, and the wrapper on either side of ``Monitor``."""

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import TQC, RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC
from sb3_vla_envs import ChunkedActionWrapper

SMALL = {"device": "cpu", "seed": 0}
ON_POLICY = {"n_steps": 8, **SMALL}
OFF_POLICY = {"learning_starts": 4, "batch_size": 4, "policy_kwargs": {"net_arch": [8]}, **SMALL}


@pytest.mark.parametrize(
    ("algorithm", "policy", "env_id", "kwargs"),
    [
        (PPO, "MlpPolicy", "Pendulum-v1", {"batch_size": 8, "n_epochs": 1, **ON_POLICY}),
        (PPO, "MlpPolicy", "CartPole-v1", {"batch_size": 8, "n_epochs": 1, **ON_POLICY}),
        (A2C, "MlpPolicy", "Pendulum-v1", ON_POLICY),
        (A2C, "MlpPolicy", "CartPole-v1", ON_POLICY),
        (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
        (TQC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
        (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {"batch_size": 8, "n_epochs": 1, **ON_POLICY}),
        (RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", {"batch_size": 8, "n_epochs": 1, **ON_POLICY}),
        (PPOSelfBC, "MlpPolicy", "Pendulum-v1", {"batch_size": 8, "n_epochs": 1, "gamma": 1.0, **ON_POLICY}),
        (PPOSelfBC, "MlpPolicy", "CartPole-v1", {"batch_size": 8, "n_epochs": 1, "gamma": 1.0, **ON_POLICY}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_algorithms_learn_on_chunks(algorithm, policy, env_id, kwargs):
    env = ChunkedActionWrapper(gym.make(env_id), 3)
    model = algorithm(policy, env, **kwargs)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16)
    assert model.num_timesteps == 16
    assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action) and action.shape[0] == 3
    env.step(action)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_passes_sb3s_env_checker(env_id):
    check_env(ChunkedActionWrapper(gym.make(env_id), 4), warn=False)


def episode_info(env) -> dict:
    model = PPO("MlpPolicy", DummyVecEnv([lambda: env]), batch_size=8, n_epochs=1, **ON_POLICY)
    model.learn(16)
    return model.ep_info_buffer[0]


def test_monitor_inside_counts_primitive_steps_and_outside_chunks():
    def pendulum():
        return gym.make("Pendulum-v1", max_episode_steps=7)

    inside = episode_info(ChunkedActionWrapper(Monitor(pendulum()), 3))
    outside = episode_info(Monitor(ChunkedActionWrapper(pendulum(), 3)))
    assert inside["l"] == 7 and outside["l"] == 3
    # Same seed, same actions: the same return either way
    assert inside["r"] == pytest.approx(outside["r"], abs=1e-4)


@pytest.mark.parametrize("monitor_inside", [True, False])
def test_success_rate_is_logged_whichever_side_monitor_stands(monitor_inside):
    class Succeeds(gym.Wrapper):
        def step(self, action):
            *rest, info = self.env.step(action)
            return (*rest, {**info, "is_success": True})

    env = Succeeds(gym.make("Pendulum-v1", max_episode_steps=4))
    env = ChunkedActionWrapper(Monitor(env), 3) if monitor_inside else Monitor(ChunkedActionWrapper(env, 3))
    model = PPOSelfBC("MlpPolicy", env, gamma=1.0, batch_size=8, n_epochs=1, **ON_POLICY).learn(8)
    assert list(model.ep_success_buffer) == [True] * 4
    assert [demo.n_steps for demo in model.replay_buffer.episodes[""]] == [4] * 4
    assert len(model.ep_info_buffer) == 4
    assert np.isfinite(model.ep_info_buffer[0]["r"])

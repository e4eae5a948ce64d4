"""Other people's algorithms on ``ChunkedActionWrapper``, and the wrapper on either side of ``Monitor``."""

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import TQC, RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import EpisodeSchedule, PPOSelfBC, SuccessEvalCallback, episode_jobs, evaluate
from sb3_vla_envs import ChunkedActionWrapper

SMALL = {"device": "cpu", "seed": 0}
ON_POLICY = {"n_steps": 8, **SMALL}
# Keeps every success, whatever its reward
SELF_BC = {"gamma": 1.0, "batch_size": 8, "n_epochs": 1, "replay_buffer_kwargs": {"rule": "shortest"}, **ON_POLICY}
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
            return (*rest, {**info, "is_success": rest[-1]})

    env = Succeeds(gym.make("Pendulum-v1", max_episode_steps=4))
    env = ChunkedActionWrapper(Monitor(env), 3) if monitor_inside else Monitor(ChunkedActionWrapper(env, 3))
    model = PPOSelfBC("MlpPolicy", env, **SELF_BC).learn(8)
    assert list(model.ep_success_buffer) == [True] * 4
    assert [demo.n_steps for demo in model.replay_buffer.episodes[""]] == [4] * 4
    assert len(model.ep_info_buffer) == 4
    assert np.isfinite(model.ep_info_buffer[0]["r"])


class SucceedsInPassing(gym.Env):
    """Success is reported at the third of seven steps, and not afterwards; the task is a tuple."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, self.t == 7, {"is_success": self.t == 3, "task": (1, "b")}


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_success_at_any_step_is_success_in_rollouts_callback_and_evaluation(chunk_size, tmp_path):
    def make():
        return Monitor(SucceedsInPassing() if chunk_size is None else ChunkedActionWrapper(SucceedsInPassing(), chunk_size))

    model = PPOSelfBC("MlpPolicy", make(), **{**SELF_BC, "n_steps": 16})
    callback = SuccessEvalCallback(make(), n_eval_episodes=2, eval_freq=16, log_path=str(tmp_path), verbose=0)
    model.learn(16, callback=callback)
    n_episodes = 16 // 7 if chunk_size is None else 16 // 4
    # As far as success: three steps, of two chunks where there are such
    assert [demo.n_steps for demo in model.replay_buffer.episodes["(1, 'b')"]] == [3] * n_episodes
    assert list(model.ep_success_buffer) == [True] * n_episodes
    assert callback.evaluations_successes == [[True, True]] and callback.evaluations_steps_to_success == [[3, 3]]
    result = evaluate(model, DummyVecEnv([lambda: EpisodeSchedule(make())]), episode_jobs([""], 2), progress=False)
    assert [(e.success, e.steps_to_success, e.n_steps) for e in result.episodes] == [(True, 3, 7)] * 2

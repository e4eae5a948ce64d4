"""What is not finite stops a training, which leaves checkpoints that can be gone on from."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla.runs.checkpoint import RunCheckpoint, load_checkpoint, newest_checkpoint
from sb3_vla.runs.interruption import StopRequest


class NaNOnce(gym.Wrapper):
    """Its reward is NaN in one of its steps."""

    def __init__(self, env: gym.Env, at: int) -> None:
        super().__init__(env)
        self.at, self.n = at, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.n += 1
        return obs, np.nan if self.n == self.at else reward, terminated, truncated, info


class NaNGradient:
    """A hook on a parameter, whose gradient it makes NaN once."""

    def __init__(self, at: int) -> None:
        self.at, self.n = at, 0

    def __call__(self, gradient: th.Tensor) -> th.Tensor:
        self.n += 1
        return gradient * (np.nan if self.n == self.at else 1.0)


def _check_good(folder, env):
    """The newest checkpoint holds finite weights and moments, and learns on."""
    checkpoint = newest_checkpoint(folder)
    model = load_checkpoint(checkpoint, env, device="cpu")
    moments = [value for state in model.policy.optimizer.state_dict()["state"].values() for value in state.values()]
    assert moments and all(th.isfinite(value).all() for value in (*moments, *model.policy.state_dict().values()))
    model.learn(16, reset_num_timesteps=False)
    return checkpoint.name


@pytest.mark.parametrize("warmup", [0, 1_000])
def test_one_reward(warmup, make_env, make_vec_env, make_model, tmp_path):
    model = make_model(DummyVecEnv([make_env, lambda: NaNOnce(make_env(task="pull"), 20)]), critic_warmup_steps=warmup)
    with pytest.raises(FloatingPointError, match=r"the reward of environment 1 \(task 'pull'\) is nan"):
        model.learn(160, callback=RunCheckpoint(tmp_path, 1, StopRequest()))
    assert _check_good(tmp_path, make_vec_env()) == "32"


@pytest.mark.parametrize("warmup", [0, 1_000])
def test_one_gradient_of_the_critic(warmup, make_vec_env, make_model, tmp_path):
    model = make_model(critic_warmup_steps=warmup)
    next(model.policy.critic.parameters()).register_hook(NaNGradient(at=5))  # two minibatches an update
    with pytest.raises(FloatingPointError, match="the gradient of the critic is nan"):
        model.learn(160, callback=RunCheckpoint(tmp_path, 1, StopRequest()))
    assert _check_good(tmp_path, make_vec_env()) == "32"

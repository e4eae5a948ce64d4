import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import ConstantWeight, GradientBalance, PPOSelfBC, SuccessDriven, TanhWarmup

from .small_training import collect


class Broken(gym.Wrapper):
    """From its tenth step on, an observation or the reward is not finite."""

    def __init__(self, env: gym.Env, what: str, value: float) -> None:
        super().__init__(env)
        self.what, self.value, self.n = what, value, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.n += 1
        if self.n >= 10:
            if self.what == "reward":
                reward = self.value
            else:
                obs = {**obs, self.what: np.full_like(obs[self.what], self.value)}
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["reward", "state", "privileged"])
def test_training_stops_with_the_name_of_what_is_not_finite(what, value, make_env, make_model, tmp_path):
    env = DummyVecEnv([make_env, lambda: Broken(make_env(task="pull"), what, value)])
    model = make_model(env, critic_warmup_steps=1_000)
    model.learn(16)
    model.save(tmp_path / "good.zip")
    with pytest.raises(FloatingPointError, match=rf"{what}.* environment 1 \(task 'pull'\)"):
        model.learn(16, reset_num_timesteps=False)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    model.save(tmp_path / "good.zip")


class BrokenSometimes(gym.Wrapper):
    """Not finite is what it shows first, or what it shows last before the time limit."""

    def __init__(self, env: gym.Env, when: str, key: str) -> None:
        super().__init__(env)
        self.when, self.key = when, key

    def broken(self, obs):
        return {**obs, self.key: np.full_like(obs[self.key], np.nan)}

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return (self.broken(obs) if self.when == "first" else obs), {**info, "task": "pull"}

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return (self.broken(obs) if truncated and self.when == "last" else obs), reward, terminated, truncated, info


def test_what_is_shown_first_is_checked(make_env, make_model):
    env = DummyVecEnv([make_env, lambda: BrokenSometimes(make_env(task="pull"), "first", "state")])
    model = make_model(env)
    for reset in (True, False):
        with pytest.raises(FloatingPointError, match=r"observation 'state' of environment 1 \(task 'pull'\) has NaN"):
            model.learn(16, reset_num_timesteps=reset)


@pytest.mark.parametrize("privileged", [True, False])
def test_what_is_shown_last_is_checked_where_its_value_counts(privileged, make_env, make_model):
    def env(key: str) -> DummyVecEnv:
        tasks = {"push": lambda env: env, "pull": lambda env: BrokenSometimes(env, "last", key)}
        return DummyVecEnv(
            [
                lambda task=task, wrap=wrap: wrap(make_env(task=task, goal=99, privileged=privileged))
                for task, wrap in tasks.items()
            ]
        )

    read = "privileged" if privileged else "state"
    with pytest.raises(
        FloatingPointError, match=rf"info\['terminal_observation'\], '{read}' of environment 1 \(task 'pull'\) has NaN"
    ):
        make_model(env(read)).learn(16)
    if privileged:
        make_model(env("state")).learn(16)


def test_arrays_that_are_shown_last_are_checked_too():
    class Pendulum(gym.Wrapper):
        def step(self, action):
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs * (np.nan if truncated else 1), reward, terminated, truncated, info

    env = Pendulum(gym.make("Pendulum-v1", max_episode_steps=5))
    model = PPOSelfBC("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    with pytest.raises(FloatingPointError, match=r"info\['terminal_observation'\], 'observation' of environment 0 has NaN"):
        model.learn(16)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["head", "backbone"])
def test_weights_that_are_not_finite_do_not_act(part, value, make_model):
    model = make_model(critic_warmup_steps=1_000)
    name, weight = next(iter(getattr(model.policy, part).named_parameters()))
    with th.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(FloatingPointError, match=f"the policy's {part}.{name} holds NaN or infinity: it can't act, load the"):
        model.learn(16)


@pytest.mark.parametrize("part", ["head", "critic", "backbone"])
def test_a_gradient_that_is_not_finite_is_not_applied(part, make_model):
    model = make_model(bc_weight=0)
    parameter = next(getattr(model.policy, part).parameters())
    parameter.register_hook(lambda gradient: gradient * np.nan)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=f"gradient of the {part} is nan.*weights are still those of before"):
        model.learn(16)
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "model.zip")
    good = (tmp_path / "model.zip").read_bytes()
    with th.no_grad():
        next(model.policy.head.parameters())[0] = np.nan
    with pytest.raises(FloatingPointError, match=r"head\.log_std holds NaN or infinity: it is not saved"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == good
    assert PPOSelfBC.load(tmp_path / "model.zip", device="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize(
    "make",
    [
        ConstantWeight,
        TanhWarmup,
        lambda value: SuccessDriven(minimum=value),
        lambda value: GradientBalance(maximum=value),
        lambda value: PPOSelfBC("MlpPolicy", "CartPole-v1", bc_weight=value),
    ],
)
def test_weights_of_behaviour_cloning_are_finite(make, value):
    with pytest.raises(ValueError, match=f"of the BC loss must be (finite|at least 0), got {value}"):
        make(value)


@pytest.mark.parametrize("target_kl", [None, 0.02])
def test_a_divergence_that_is_not_a_number_is_no_large_one(target_kl, make_model):
    model = make_model(target_kl=target_kl)
    model.learn(16)
    collect(model)
    with th.no_grad():
        next(model.policy.head.parameters()).fill_(np.nan)
    with pytest.raises(FloatingPointError, match="head"):
        model.train()

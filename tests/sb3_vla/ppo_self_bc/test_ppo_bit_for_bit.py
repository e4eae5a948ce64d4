import copy

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.envs import (
    BitFlippingEnv,
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_vla import PPOSelfBC

from .small_training import constant_demonstration, drift, parameters_equal

ENVIRONMENTS = {
    "box": ("MlpPolicy", drift),
    "discrete": ("MlpPolicy", lambda: IdentityEnv(4, ep_length=9)),
    "multi_discrete": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(3, ep_length=9)),
    "multi_binary": ("MlpPolicy", lambda: IdentityEnvMultiBinary(3, ep_length=9)),
    "images": ("CnnPolicy", lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=3, discrete=False)),
    "dict": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=True)),
    "goal": ("MultiInputPolicy", lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=5)),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ENVIRONMENTS),
        ("box", {"clip_range_vf": 0.1, "ent_coef": 0.01, "vf_coef": 0.7, "clip_range": lambda progress: 0.1 + 0.1 * progress}),
        ("box", {"normalize_advantage": False, "learning_rate": lambda progress: 1e-3 * progress, "max_grad_norm": 0.05}),
        ("box", {"use_sde": True, "sde_sample_freq": 3, "ent_coef": 0.01}),
        ("box", {"use_sde": True, "policy_kwargs": {"squash_output": True}, "ent_coef": 0.01}),
        ("box", {"target_kl": 1e-4, "n_epochs": 5}),
        ("discrete", {"target_kl": 1e-4, "n_epochs": 5, "clip_range_vf": 0.2}),
        ("multi_discrete", {"gamma": 0.9, "gae_lambda": 1.0, "ent_coef": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_without_bc_it_is_ppo_bit_for_bit(name, options, record_logs):
    policy, make_env = ENVIRONMENTS[name]
    settings = {
        "n_steps": 12,
        # Does not divide the 24 transitions of a rollout
        "batch_size": 10,
        "n_epochs": 3,
        "learning_rate": 3e-3,
        "seed": 3,
        "device": "cpu",
        **options,
    }
    if policy != "MlpPolicy":
        settings["n_epochs"] = 1

    def make_seeded_env():
        env = Monitor(make_env())
        # Some of SB3's toy environments draw from their spaces, which seeding the environment does not seed
        env.observation_space.seed(0)
        env.action_space.seed(0)
        return env

    models, logs = [], []
    for algorithm, extra in ((PPO, {}), (PPOSelfBC, {"bc_weight": 0})):
        model = algorithm(policy, DummyVecEnv([make_seeded_env] * 2), **copy.deepcopy(settings), **extra)
        logs.append(record_logs(model))
        models.append(model.learn(72, log_interval=1))
    assert parameters_equal(*models)
    ppo_logs, our_logs = logs
    assert len(ppo_logs) == len(our_logs) > 0
    for theirs, ours in zip(ppo_logs, our_logs, strict=True):
        for key in theirs:
            if key not in ("time/fps", "time/time_elapsed"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, nan_ok=True), key
        # SB3's names, and two of ours
        assert set(ours) - set(theirs) <= {"time/primitive_steps", "rollout/steps_to_success"}
    if "target_kl" in options:
        assert our_logs[-1]["train/n_updates"] < 2 * options["n_epochs"], "the KL limit was meant to bind"


def test_bit_for_bit_in_subprocesses_with_normalisation():
    models = []
    for algorithm, extra in ((PPO, {}), (PPOSelfBC, {"bc_weight": 0})):
        env = VecNormalize(SubprocVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=5)] * 2))
        model = algorithm("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=2, seed=1, device="cpu", **extra)
        models.append(model.learn(32))
        env.close()
    assert parameters_equal(*models)


def test_with_bc_it_is_not_ppo():
    # Guards the tests above: what they compare can differ
    models = []
    for weight in (0, 1):
        model = PPOSelfBC("MlpPolicy", drift(), bc_weight=weight, n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
        if weight:
            model.replay_buffer.add(constant_demonstration())
        models.append(model.learn(16))
    assert not parameters_equal(*models)

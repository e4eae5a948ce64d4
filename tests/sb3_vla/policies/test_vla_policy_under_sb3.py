"""VLAPolicy is an SB3 policy like any other."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO

from sb3_vla import VLAPolicy, fine_tune


@pytest.mark.parametrize(("algorithm", "settings"), [(PPO, {"batch_size": 8, "n_epochs": 2}), (A2C, {})])
def test_sb3s_own_algorithms_train_it(algorithm, settings, make_vec_env, policy_kwargs, tmp_path):
    common = {"policy_kwargs": policy_kwargs, "n_steps": 8, "seed": 0, "device": "cpu", "gamma": 0.9}
    model = algorithm(VLAPolicy, make_vec_env(), learning_rate=1e-3, **common, **settings)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    for part in ("backbone", "head", "critic"):
        assert any(not th.equal(before[name], after[name]) for name in before if name.startswith(part)), part
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=make_vec_env())
    observation = make_vec_env().reset()
    assert np.array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))


def test_first_ratio_of_sb3s_ppo_is_one(make_vec_env, policy_kwargs):
    model = PPO(VLAPolicy, make_vec_env(), n_steps=8, batch_size=16, policy_kwargs=policy_kwargs, device="cpu", seed=0)
    _, callback = model._setup_learn(16)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    (data,) = model.rollout_buffer.get()
    _, log_prob, entropy = model.policy.evaluate_actions(data.observations, data.actions)
    assert log_prob.shape == entropy.shape == data.old_log_prob.shape == (16,)
    assert th.allclose(log_prob, data.old_log_prob, atol=1e-4)


def test_a_model_of_sb3_is_fine_tuned_like_ours(make_vec_env, policy_kwargs, make_demonstrations):
    model = PPO(VLAPolicy, make_vec_env(), n_steps=8, batch_size=16, policy_kwargs=policy_kwargs, device="cpu", seed=0)
    assert not model.policy.is_fine_tuned
    result = fine_tune(model, make_demonstrations(4), n_epochs=8, batch_size=8, learning_rate=1e-2, progress=False)
    assert result.train_losses[-1] < result.train_losses[0] and model.policy.is_fine_tuned


def test_a_head_whose_likelihood_needs_more_than_the_actions_is_refused_by_sb3s_algorithms(make_vec_env, policy_kwargs):
    head_kwargs = {**policy_kwargs["head_kwargs"], "noise_probability": 0.5}
    model = PPO(
        VLAPolicy, make_vec_env(), n_steps=4, batch_size=4, policy_kwargs={**policy_kwargs, "head_kwargs": head_kwargs}
    )
    with pytest.raises(ValueError, match=r"'noise_probability': 0.5.*train it with PPOSelfBC"):
        model.learn(8)


def test_pposelfbc_learns_with_noise_in_some_chunks(make_model):
    make_model(policy_kwargs={"head_kwargs": {"hidden_dim": 16, "noise_probability": 0.5}}).learn(64)

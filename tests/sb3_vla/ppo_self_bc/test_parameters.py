"""Loading a model with other ``policy_kwargs``."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import PPOSelfBC, fine_tune


@pytest.fixture
def saved(make_model, make_demonstrations, tmp_path):
    """A model that has trained, and its file."""
    model = make_model()
    model.replay_buffer.extend(make_demonstrations(3))
    model.learn(16)
    model.save(tmp_path / "model.zip")
    return model, tmp_path / "model.zip"


def test_the_dictionary_of_its_creation_changes_nothing(saved, policy_kwargs, make_vec_env):
    model, path = saved
    loaded = PPOSelfBC.load(path, env=make_vec_env(), policy_kwargs=policy_kwargs)
    assert all(th.equal(value, loaded.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    ours, theirs = loaded.policy.optimizer.state_dict(), model.policy.optimizer.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    assert all(th.equal(ours["state"][i]["exp_avg"], theirs["state"][i]["exp_avg"]) for i in ours["state"])


def test_parts_can_be_frozen_and_trained_again(saved, make_vec_env, tmp_path):
    model, path = saved
    frozen = PPOSelfBC.load(path, env=make_vec_env(), policy_kwargs={"frozen": ("vision", "connector")})
    vision = frozen.policy.backbone.parts["vision"]
    assert not any(p.requires_grad for p in vision.parameters())
    assert all(th.equal(value, frozen.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    groups = {group["name"]: group["params"] for group in frozen.policy.optimizer.param_groups}
    state = frozen.policy.optimizer.state
    assert all(p in state for p in groups["head"] + groups["critic"]), "what is trained as before goes on"
    assert not any(p in state for p in groups["backbone"]), "what is not begins anew"
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    frozen.learn(16, reset_num_timesteps=False)
    assert all(th.equal(value, before[name]) for name, value in vision.state_dict().items())
    frozen.save(tmp_path / "frozen.zip")
    trained = PPOSelfBC.load(tmp_path / "frozen.zip", env=make_vec_env(), policy_kwargs={"frozen": ()}, learning_rate=0.01)
    trained.learn(16, reset_num_timesteps=False)
    again = trained.policy.backbone.parts["vision"].state_dict()
    assert any(not th.equal(value, before[name]) for name, value in again.items())


def test_what_was_changed_once_can_be_changed_back(make_model, make_vec_env, tmp_path):
    make_model(policy_kwargs={"frozen": ("vision",)}).save(tmp_path / "model.zip")
    for frozen in ((), ("vision",)):
        loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(), policy_kwargs={"frozen": frozen})
        assert loaded.policy.frozen == frozen
        assert any(p.requires_grad for p in loaded.policy.backbone.parts["vision"].parameters()) == (not frozen)
        loaded.save(tmp_path / "model.zip")


@pytest.mark.parametrize("given", [None, {}, {"head": "gaussian", "autocast": None}])
def test_nothing_and_defaults_change_nothing(given, saved):
    model, path = saved
    loaded = PPOSelfBC.load(path, policy_kwargs=given)
    assert all(th.equal(value, loaded.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())


def test_another_optimizer_begins_anew_and_its_settings_count(saved, make_vec_env):
    _, path = saved
    decayed = PPOSelfBC.load(path, env=make_vec_env(), policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.1}})
    assert (
        all(group["weight_decay"] == 0.1 for group in decayed.policy.optimizer.param_groups) and decayed.policy.optimizer.state
    )
    other = PPOSelfBC.load(path, env=make_vec_env(), policy_kwargs={"optimizer_class": th.optim.SGD})
    assert not other.policy.optimizer.state
    other.learn(16, reset_num_timesteps=False)


def test_settings_of_the_head_are_changed_one_by_one(saved, make_vec_env):
    _, path = saved
    loaded = PPOSelfBC.load(path, env=make_vec_env(), policy_kwargs={"head_kwargs": {"noise_correlation": 1.0}})
    assert loaded.policy.head.noise_correlation == 1.0 and loaded.policy.head.hidden_dim == 16


@pytest.mark.parametrize(
    "change", [{"backbone": "some/checkpoint"}, {"backbone_kwargs": {"image_size": 32}}, {"critic_net_arch": [8, 8]}]
)
def test_another_network_is_refused_in_a_line(change, saved):
    _, path = saved
    with pytest.raises(ValueError, match="can't be changed when a model is loaded") as error:
        PPOSelfBC.load(path, policy_kwargs=change)
    assert len(str(error.value)) < 400


def test_warm_up_of_the_critic_happens_once_in_a_models_life(make_model, make_vec_env, tmp_path):
    """Loops of short calls, each of which counts timesteps from zero, train the policy, too."""
    model = make_model(critic_warmup_steps=32)
    before = model.policy.head.log_std.clone()
    for _ in range(2):
        model.learn(16)
    assert th.equal(model.policy.head.log_std, before)
    model.learn(16)
    assert not th.equal(model.policy.head.log_std, before) and model.num_timesteps == 16
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    before = loaded.policy.head.log_std.clone()
    loaded.learn(16)
    assert not th.equal(loaded.policy.head.log_std, before)


def test_training_goes_on_with_observations_normalised_as_before(make_model, make_vec_env, tmp_path):
    model = make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)).learn(16)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    with pytest.raises(ValueError, match=r"\['state'\] normalised by VecNormalize, but of this environment \[\] are"):
        loaded.learn(16)
    plain = make_model().learn(16)
    plain.set_env(VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9))
    with pytest.raises(ValueError, match=r"observations \[\] normalised by VecNormalize, but of this environment \['state'\]"):
        plain.learn(16)


def test_rollouts_can_be_collected_without_learn(make_model):
    model = make_model()
    _, callback = model._setup_learn(16)  # as SB3's own tests do
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.train()


def test_fine_tuning_is_remembered_even_where_the_state_is_always_zero(make_model, make_demonstrations, tmp_path):
    model = make_model()
    demonstrations = make_demonstrations(2)
    for demonstration in demonstrations:
        demonstration.observations["state"] = np.zeros_like(demonstration.observations["state"])
    assert not model.policy.is_fine_tuned
    fine_tune(model, demonstrations, n_epochs=1, progress=False)
    assert model.policy.is_fine_tuned
    model.save(tmp_path / "model.zip")
    assert PPOSelfBC.load(tmp_path / "model.zip").policy.is_fine_tuned

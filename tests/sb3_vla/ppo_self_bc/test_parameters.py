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


@pytest.mark.parametrize(("name", "value", "old"), [("hidden_dim", 32, 16), ("log_std_init", 0.0, -1.5)])
def test_what_makes_the_heads_weights_is_refused_by_name(name, value, old, saved):
    _, path = saved
    message = rf"head_kwargs={{'{name}'.*can't be changed.*made with \({old}\).*leave it out.*after loading.*log_std"
    with pytest.raises(ValueError, match=message):
        PPOSelfBC.load(path, policy_kwargs={"head_kwargs": {name: value}})
    loaded = PPOSelfBC.load(path, policy_kwargs={"head_kwargs": {name: old}})
    loaded.policy.log_std.data.fill_(-1.0)
    assert loaded.policy.head.metrics()["std"] == pytest.approx(np.exp(-1))


def test_first_weights_of_sb3s_policies_are_refused_too(tmp_path):
    PPOSelfBC("MlpPolicy", "Pendulum-v1", device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"'log_std_init' can't be changed.*made with \(0.0\)"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"log_std_init": -1.0})


def test_unknown_arguments_are_refused(saved):
    _, path = saved
    with pytest.raises(TypeError, match=r"load: PPOSelfBC has no argument \['lerning_rate'\]; it takes \['learning_rate', "):
        PPOSelfBC.load(path, lerning_rate=1e-3)
    assert PPOSelfBC.load(path, learning_rate=1e-3, num_timesteps=0).learning_rate == 1e-3


@pytest.mark.parametrize("how", [tuple, list, np.array])
def test_arguments_may_be_arrays(how, make_model, policy_kwargs, tmp_path):
    backbone_kwargs = {**policy_kwargs["backbone_kwargs"], "image_mean": how([0.5, 0.4, 0.3])}
    make_model(policy_kwargs={"backbone_kwargs": backbone_kwargs}).save(tmp_path / "model.zip")
    PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"backbone_kwargs": {**backbone_kwargs}})
    backbone_kwargs["image_mean"] = np.array([0.5, 0.4, 0.2])
    with pytest.raises(ValueError, match="'backbone_kwargs' can't be changed"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"backbone_kwargs": backbone_kwargs})


def test_parameters_of_a_file_fit_a_model_with_other_frozen_parts(saved, make_model):
    model, path = saved
    frozen = make_model(policy_kwargs={"frozen": ("vision", "connector")})
    frozen.set_parameters(str(path))
    assert all(th.equal(value, frozen.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    assert all(p in frozen.policy.optimizer.state for p in frozen.policy.head.parameters())
    frozen.learn(16)
    model.set_parameters(frozen.get_parameters())
    model.learn(16)


def test_weights_of_another_network_are_refused_by_name(saved, make_model):
    model, path = saved
    other = make_model(policy_kwargs={"head_kwargs": {"hidden_dim": 8}})
    for weights in (str(path), model.get_parameters()):
        with pytest.raises(
            ValueError, match=r"another network: head\.mean_net\.0\.weight has the shape \(16, 16\), and \(8, 16\)"
        ):
            other.set_parameters(weights)


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


def normalized(venv):
    return VecNormalize(venv, norm_obs_keys=["state"], gamma=0.9)


def test_an_environment_must_normalise_what_the_model_learned_with(make_model, make_vec_env, tmp_path):
    """
    Refused where it is handed over, be it for training or, as SB3's users do, only for evaluation (``load(path, env=venv)``,
    then ``evaluate_policy(model, model.get_env())``): without its VecNormalize the model would act on what it never saw.
    """
    make_model(normalized(make_vec_env())).learn(16).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"\['state'\] normalised by VecNormalize, but of this environment \[\] are"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=normalized(make_vec_env()))
    before = loaded.get_env()
    with pytest.raises(ValueError, match=r"\['state'\] normalised by VecNormalize, but of this environment \[\] are"):
        loaded.set_env(make_vec_env())
    assert loaded.get_env() is before
    loaded.learn(16)
    plain = make_model().learn(16)
    with pytest.raises(ValueError, match=r"observations \[\] normalised by VecNormalize, but of this environment \['state'\]"):
        plain.set_env(normalized(make_vec_env()))
    plain.learn(16)
    PPOSelfBC.load(tmp_path / "model.zip").set_env(normalized(make_vec_env(2)))


def test_a_model_that_was_only_fine_tuned_has_learned_too(make_model, make_vec_env, make_demonstrations, tmp_path):
    model = make_model()
    fine_tune(model, make_demonstrations(2), n_epochs=1, progress=False)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"observations \[\] normalised by VecNormalize, but of this environment \['state'\]"):
        PPOSelfBC.load(tmp_path / "model.zip", env=normalized(make_vec_env()))
    PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env()).learn(16)


def test_a_model_that_has_not_learned_takes_any_environment(make_model, make_vec_env, tmp_path):
    make_model().save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=normalized(make_vec_env())).learn(16)
    assert loaded.normalized_keys == loaded.policy.normalized_keys == ("state",)
    fresh = make_model(normalized(make_vec_env()))
    fresh.set_env(make_vec_env())
    assert fresh.learn(16).policy.normalized_keys == ()


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

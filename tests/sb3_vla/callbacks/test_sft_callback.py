import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC, SFTCallback, fine_tune, make_vla_vec_env
from sb3_vla_envs import load_demonstrations, make_vla_env, save_demonstrations


@pytest.fixture
def demonstrations(make_demonstrations, tmp_path):
    path = tmp_path / "demos.npz"
    save_demonstrations(path, make_demonstrations(4, "push") + make_demonstrations(4, "pull"))
    return path


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def test_training_starts_from_a_fine_tuned_policy_and_its_demonstrations(make_model, demonstrations):
    # A learning rate of zero leaves what fine-tuning made
    model = make_model(learning_rate=0.0, policy_kwargs={"frozen": ("vision",)})
    before = weights(model)
    model.learn(16, callback=SFTCallback(demonstrations=demonstrations, n_epochs=2, batch_size=4, verbose=0))
    after = weights(model)
    # Parts that are frozen in post-training are fine-tuned, too, and frozen again
    for part in ("vision", "head"):
        assert any(part in name and not th.equal(before[name], after[name]) for name in before)
    assert all(not p.requires_grad for p in model.policy.backbone.parts["vision"].parameters())
    assert {task: row["episodes"] >= 4 for task, row in model.replay_buffer.summary().items()} == {"pull": True, "push": True}


def test_frozen_parts_are_computed_anew_after_fine_tuning(make_model, demonstrations):
    # What is precomputed of the first rollout is what the fine-tuned vision makes: the first likelihood ratio is one
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")}, n_steps=4, batch_size=8, bc_weight=0.0)
    model.learn(8, callback=SFTCallback(demonstrations=demonstrations, n_epochs=1, batch_size=4, verbose=0))
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6


@pytest.mark.parametrize("how", ["trained", "fine-tuned", "stopped in the critic's warm-up"])
def test_a_model_that_was_trained_before_is_left_alone(how, make_model, make_vec_env, demonstrations, tmp_path):
    warmup = 32 if "warm-up" in how else 0
    model = make_model(learning_rate=0.0, critic_learning_rate=0.0, critic_warmup_steps=warmup)
    if how == "fine-tuned":
        fine_tune(model.policy, load_demonstrations(demonstrations), n_epochs=1, batch_size=4, progress=False)
    else:
        callback = SFTCallback(demonstrations=demonstrations, n_epochs=1, batch_size=4, verbose=0) if warmup else None
        model.learn(16, callback=callback)
    model.save(tmp_path / "model.zip")
    model = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    before = weights(model)
    model.learn(16, callback=SFTCallback(demonstrations=demonstrations, n_epochs=1, batch_size=4, verbose=0))
    assert all(th.equal(value, before[name]) for name, value in weights(model).items())


def by_gymnasium(**kwargs):
    return DummyVecEnv([lambda: gym.make("MetaWorldVLA/drawer-close-v3", **kwargs)])


def by_function(**kwargs):
    return DummyVecEnv([lambda: make_vla_env("drawer-close-v3", **kwargs)])


def in_processes(**kwargs):
    return make_vla_vec_env(["drawer-close-v3", "window-open-v3"], n_envs=2, **kwargs)


@pytest.mark.parametrize("make_env", [by_gymnasium, by_function, in_processes])
def test_metaworlds_experts_demonstrate_in_the_training_environment(make_env):
    env = make_env(chunk_size=16, horizon=150, cameras=["corner4"])
    model = PPOSelfBC("VLAPolicy", env, n_steps=2, batch_size=2, n_epochs=1)
    model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
    env.close()
    held = model.replay_buffer.episodes
    # Those of all tasks, even where an environment has one
    assert set(held) == {"drawer-close-v3", *(["window-open-v3"] if make_env is in_processes else [])}
    assert all(len(demos) == 2 and demos[0].actions.shape[1:] == (16, 4) for demos in held.values())


def test_demonstrations_follow_the_models_seed():
    def demonstrated(seed):
        model = PPOSelfBC("VLAPolicy", by_function(chunk_size=16, cameras=["corner4"]), n_steps=2, batch_size=2, seed=seed)
        model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
        return model.replay_buffer.episodes["drawer-close-v3"][0].observations["privileged"].tolist()

    assert demonstrated(0) == demonstrated(0) != demonstrated(1)


def test_without_experts_a_file_is_asked_for(make_model):
    with pytest.raises(ValueError, match="demonstrations=FILE"):
        make_model().learn(16, callback=SFTCallback())


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="got PPO with ActorCriticPolicy"):
        PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8, callback=SFTCallback())

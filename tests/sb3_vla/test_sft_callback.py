import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC, SFTCallback
from sb3_vla_envs import save_demonstrations


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


def test_a_model_that_was_trained_before_is_left_alone(make_model, demonstrations):
    model = make_model(learning_rate=0.0)
    model.learn(16)
    before = weights(model)
    model.learn(16, callback=SFTCallback(demonstrations=demonstrations, n_epochs=1, batch_size=4, verbose=0))
    assert all(th.equal(value, before[name]) for name, value in weights(model).items())


def test_metaworlds_experts_demonstrate_in_the_training_environment():
    def make_env():
        return gym.make("MetaWorldVLA/drawer-close-v3", chunk_size=16, horizon=150, cameras=["corner4"])

    model = PPOSelfBC("VLAPolicy", DummyVecEnv([make_env]), n_steps=2, batch_size=2, n_epochs=1)
    model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
    (demos,) = model.replay_buffer.episodes.values()
    assert len(demos) == 2 and demos[0].actions.shape[1:] == (16, 4)


def test_without_experts_a_file_is_asked_for(make_model):
    with pytest.raises(ValueError, match="demonstrations=FILE"):
        make_model().learn(16, callback=SFTCallback())


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="got PPO with ActorCriticPolicy"):
        PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8, callback=SFTCallback())

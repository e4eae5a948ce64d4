import sys
from functools import partial

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_vla import PPOSelfBC, SFTCallback, fine_tune, make_vla_vec_env
from sb3_vla_envs import (
    GymSuite,
    GymTask,
    collect_demonstrations,
    load_demonstrations,
    make_vla_env,
    register_suite,
    save_demonstrations,
)

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


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


def test_it_is_fine_tune_of_the_whole_model_through_its_normalisation(make_model, make_vec_env, demonstrations):
    def make(frozen):
        env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
        return make_model(env, {"frozen": frozen}, learning_rate=0.0, critic_learning_rate=0.0)

    expected = make(())
    expected.env.reset()
    fine_tune(expected, load_demonstrations(demonstrations), n_epochs=2, batch_size=4, progress=False)
    statistics = expected.get_vec_normalize_env().obs_rms["state"]
    for frozen in ((), ("vision", "text")):
        model = make(frozen)
        seen = []

        class See(BaseCallback):
            def _on_training_start(self):
                normalizer = self.model.get_vec_normalize_env()
                seen.append(normalizer.obs_rms["state"].mean.copy())  # noqa: B023
                first = normalizer.normalize_obs(normalizer.get_original_obs())["state"]
                np.testing.assert_array_equal(self.model._last_obs["state"], first, "what it acts upon first is, too")

            def _on_step(self):
                return True

        model.learn(16, callback=[SFTCallback(demonstrations=demonstrations, n_epochs=2, batch_size=4, verbose=0), See()])
        assert weights(model).keys() == weights(expected).keys()
        assert all(th.equal(value, weights(expected)[name]) for name, value in weights(model).items())
        assert np.allclose(seen[0], statistics.mean), (
            "the training environment's statistics are those of the demonstrations, too"
        )


def test_it_learns_to_look_as_fine_tune_does(make_model, demonstrations):
    how = {"n_epochs": 2, "batch_size": 4, "max_shift": 1, "auxiliary_targets": {"state": [0, 2]}}
    plain, expected, model = (make_model(learning_rate=0.0, critic_learning_rate=0.0) for _ in range(3))
    fine_tune(plain, load_demonstrations(demonstrations), **{**how, "auxiliary_targets": None}, progress=False)
    fine_tune(expected, load_demonstrations(demonstrations), **how, progress=False)
    model.learn(16, callback=SFTCallback(demonstrations=demonstrations, **how, verbose=0))
    assert all(th.equal(value, weights(expected)[name]) for name, value in weights(model).items())
    assert any(not th.equal(value, weights(plain)[name]) for name, value in weights(model).items())


def learn_on_a_rank(make_model, make_vec_env, path, head, **kwargs):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    model = make_model(env, {"head": head, "head_kwargs": {}}, learning_rate=0.0, critic_learning_rate=0.0, **kwargs)
    callback = None if path is None else SFTCallback(demonstrations=path, n_epochs=1, batch_size=4, verbose=0)
    model.learn(16 * model.ranks.size, callback=callback)
    return weights(model), env.obs_rms["state"].count


def test_of_several_ranks_all_go_on_with_what_one_made(start_ranks, make_model, make_vec_env, demonstrations):
    # A flow head draws noise for its loss, on each rank another
    rank = (learn_on_a_rank, 2, make_model, make_vec_env)
    (weights_of_first, count), (weights_of_second, count_of_second) = start_ranks(*rank, demonstrations, "flow").results()
    assert all(th.equal(value, weights_of_second[name]) for name, value in weights_of_first.items())
    _, count_without = start_ranks(*rank, None, "flow").results()[0]
    n_pairs = learn_on_a_rank(make_model, make_vec_env, demonstrations, "gaussian")[1]
    n_pairs -= learn_on_a_rank(make_model, make_vec_env, None, "gaussian")[1]
    # Each demonstration once, and not what the second rank's two environments showed when they were reset, before that
    assert count == count_of_second and count - count_without == pytest.approx(n_pairs - 2)


def test_sharded_layers_are_refused(start_ranks, make_model, make_vec_env, demonstrations):
    learn = partial(learn_on_a_rank, shard=True)
    errors = start_ranks(learn, 2, make_model, make_vec_env, demonstrations, "flow").results()
    for error in errors:
        assert isinstance(error, ValueError) and "SFTCallback can't fine-tune layers that are sharded" in str(error)


@pytest.mark.parametrize("normalize", [False, True])
def test_frames_of_demonstrations_are_stacked(normalize, make_model, make_vec_env, demonstrations):
    env = VecFrameStack(make_vec_env(), 2)
    env = VecNormalize(env, norm_obs_keys=["state"], gamma=0.9) if normalize else env
    model = make_model(env, {"frozen": ("vision",)}, learning_rate=0.0)
    model.learn(16, callback=SFTCallback(demonstrations=demonstrations, n_epochs=3, batch_size=4, verbose=0))
    assert model.policy.is_fine_tuned and model.policy.state_normalizer.mean.shape == (6,)
    held = [demo for demos in model.replay_buffer.episodes.values() for demo in demos]
    assert len(held) >= 8 and all(demo.observations["state"].shape[1:] == (6,) for demo in held)


def test_a_state_that_is_always_zero_does_not_look_untrained(make_model, make_vec_env, make_demonstrations, tmp_path):
    demonstrations = make_demonstrations(4)
    for demo in demonstrations:
        demo.observations["state"][:] = 0
    save_demonstrations(tmp_path / "demos.npz", demonstrations)
    model = make_model(learning_rate=0.0)
    fine_tune(model, demonstrations, n_epochs=1, batch_size=4, progress=False)
    model.save(tmp_path / "model.zip")
    model = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    before = weights(model)
    model.learn(16, callback=SFTCallback(demonstrations=tmp_path / "demos.npz", n_epochs=1, batch_size=4, verbose=0))
    assert all(th.equal(value, before[name]) for name, value in weights(model).items())


def by_gymnasium(**kwargs):
    return DummyVecEnv([lambda: gym.make("MetaWorldVLA/drawer-close-v3", **kwargs)])


def by_function(**kwargs):
    return DummyVecEnv([lambda: make_vla_env("drawer-close-v3", **kwargs)])


def of_fetch(**kwargs):
    return DummyVecEnv([lambda: make_vla_env("FetchReach-v4", **{**kwargs, "cameras": None})])


def in_processes(**kwargs):
    return make_vla_vec_env(["drawer-close-v3", "window-open-v3"], n_envs=2, **kwargs)


@pytest.mark.parametrize(
    ("make_env", "tasks"),
    [
        (by_gymnasium, {"drawer-close-v3"}),
        (by_function, {"drawer-close-v3"}),
        (of_fetch, {"FetchReach-v4"}),
        # Those of all tasks, even where an environment has one
        (in_processes, {"drawer-close-v3", "window-open-v3"}),
    ],
)
def test_the_suites_experts_demonstrate_in_the_training_environment(make_env, tasks):
    env = make_env(chunk_size=16, horizon=150, cameras=["corner4"])
    model = PPOSelfBC("VLAPolicy", env, n_steps=2, batch_size=2, n_epochs=1, seed=0)
    model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
    env.close()
    held = model.replay_buffer.episodes
    assert set(held) == tasks
    assert all(len(demos) == 2 and demos[0].actions.shape[1:] == (16, 4) for demos in held.values())


def test_what_it_is_told_is_checked_before_any_work():
    with pytest.raises(TypeError, match=r"auxiliary_targets must be a dictionary.*\[4, 5\]"):
        SFTCallback(auxiliary_targets=[4, 5])
    with pytest.raises(ValueError, match=r"max_shift.*-1"):
        SFTCallback(max_shift=-1)


def test_the_experts_demonstrate_as_they_are_told():
    settings = {"chunk_size": 16, "horizon": 150, "cameras": ["corner4"]}
    how = {"action_noise": 0.2, "every_step": True}
    env = by_function(**settings)
    model, expected = (
        PPOSelfBC("VLAPolicy", env, 0.0, n_steps=2, batch_size=2, critic_learning_rate=0.0, seed=0) for _ in range(2)
    )
    model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, **how, verbose=0))
    env.close()
    demonstrations = collect_demonstrations("drawer-close-v3", 2, **how, seed=0, progress=False, **settings)
    fine_tune(expected, demonstrations, n_epochs=1, progress=False)
    assert all(th.equal(value, weights(expected)[name]) for name, value in weights(model).items())
    held = model.replay_buffer.episodes["drawer-close-v3"]
    assert [demo.actions.shape[1:] for demo in held] == [(16, 4)] * 2


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_experts_of_a_suite_that_is_not_registered_demonstrate(n_envs):
    task = GymTask("Pendulum-v1", "swing up")
    success = lambda obs, reward, terminated, info: True  # noqa: E731  # does not go through pickle
    suite = GymSuite("pendulums", {"swing": task}, success=success, expert=lambda env: [1.0], horizon=4)
    env = make_vla_vec_env("swing", n_envs, suite=suite, chunk_size=2)
    model = PPOSelfBC("VLAPolicy", env, n_steps=2, batch_size=2, n_epochs=1)
    model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
    env.close()
    # Beside the agent's own, in an order that its critic has found
    assert sum(demo.actions[0, 0] == 1.0 for demo in model.replay_buffer.episodes["swing"]) == 2


def test_demonstrations_follow_the_models_seed():
    def demonstrated(seed):
        model = PPOSelfBC("VLAPolicy", by_function(chunk_size=16, cameras=["corner4"]), n_steps=2, batch_size=2, seed=seed)
        model.learn(2, callback=SFTCallback(n_per_task=2, n_epochs=1, verbose=0))
        return model.replay_buffer.episodes["drawer-close-v3"][0].observations["privileged"].tolist()

    assert demonstrated(0) == demonstrated(0) != demonstrated(1)


def test_without_experts_a_file_is_asked_for(make_model):
    with pytest.raises(ValueError, match="demonstrations=FILE"):
        make_model().learn(16, callback=SFTCallback())


def test_a_suite_without_experts_says_so():
    class Still(gym.Env):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
        observation_space = gym.spaces.Dict(
            {"image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), "state": gym.spaces.Box(-1, 1, (1,))}
        )
        action_space = gym.spaces.Box(-1, 1, (1,))

        def __init__(self, render_mode=None):
            pass

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {"is_success": False}

    gym.register("Still-v0", entry_point=Still)
    register_suite(GymSuite("still", {"still": GymTask("Still-v0", "keep still")}))
    model = PPOSelfBC("VLAPolicy", make_vla_env("still"), n_steps=2, batch_size=2)
    with pytest.raises(ValueError, match="The suite 'still' has no expert for still"):
        model.learn(2, callback=SFTCallback())


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="got PPO with ActorCriticPolicy"):
        PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8, callback=SFTCallback())

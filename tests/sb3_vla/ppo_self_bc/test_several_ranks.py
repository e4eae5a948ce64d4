"""Ranks that train one model take the step that one process with all of their rollouts takes."""

import sys

import cloudpickle
import numpy as np
import pytest
import torch as th

from sb3_vla.imitation.demonstration_set import DemonstrationSet

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# SGD, as Adam blows up the rounding of gradients that are nearly zero
POLICY = {"head_kwargs": {"log_std_init": -0.7}, "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}
# Two environments of 8 steps a rank: minibatches of all 16 samples, or of one rank's 16 and the other's
CASES = {
    "bc": {"n_epochs": 3, "learning_rate": 0.1, "max_grad_norm": 0.2, "ent_coef": 0.01},
    "bc-accumulated": {"n_epochs": 2, "learning_rate": 0.1, "micro_batch_size": 5},
    "bc-per-chunk": {"n_epochs": 2, "learning_rate": 0.1, "ratio_per": "chunk", "bc_loss": "nll"},
    "kl-stop": {"n_epochs": 20, "learning_rate": 0.1, "target_kl": 0.02, "normalize_advantage": "task"},
    "balanced": {"n_epochs": 1, "learning_rate": 0.1, "bc_weight": "gradient_balance", "bc_weight_kwargs": {"maximum": 100.0}},
    "critic": {"n_epochs": 1, "learning_rate": 0.1, "critic_epochs": 4, "clip_range_vf": 0.2, "normalize_advantage": False},
}
ROLLOUT = ("actions", "rewards", "advantages", "returns", "values", "log_probs", "episode_starts", "chunk_lengths", "tasks")


def demonstrated(model, demonstrations, rank, size):
    """Makes each rank draw its own part of always the same pairs, and one process alone all of them."""
    held = DemonstrationSet(model.adapter.read_space, model.action_space, demonstrations)
    pairs = [(demo, t) for demos in held.episodes.values() for demo in demos for t in range(len(demo))]
    own = pairs[rank : len(pairs) // 2 * 2 : size]

    def sample(batch_size, env=None, cache=None, host_keys=()):
        return held.batch(own, "cpu", env, None, host_keys)

    model.replay_buffer.extend(demonstrations)
    model.replay_buffer.sample = sample
    return len(own)


def train_once(make_model, make_vec_env, demonstrations, name):
    """What a rank begins an update with, and what comes of it."""
    env = make_vec_env(goal=3, horizon=5)
    model = make_model(env, n_steps=8, batch_size=16, policy_kwargs=POLICY, **CASES[name])
    model.bc_batch_size = demonstrated(model, demonstrations, model.ranks.rank, model.ranks.size)
    seen = {}
    train = model.train

    def watched():
        buffer = model.rollout_buffer
        seen["before"] = {key: value.clone() for key, value in model.policy.state_dict().items()}
        seen["rollout"] = {key: np.copy(getattr(buffer, key)) for key in ROLLOUT}
        seen["rollout"]["observations"] = {key: np.copy(value) for key, value in buffer.observations.items()}
        train()
        seen["after"] = {key: value.clone() for key, value in model.policy.state_dict().items()}
        seen["n_updates"] = model._n_updates
        seen["log"] = dict(model.logger.name_to_value)

    model.train = watched
    model.learn(32)
    return {**seen, "num_timesteps": model.num_timesteps, "pairs": len(model.replay_buffer), "verbose": model.verbose}


def train_all(*arguments):
    return {name: train_once(*arguments, name) for name in CASES}


@pytest.fixture(scope="module")
def trained(start_ranks):
    """Each case on two ranks, all in the same two processes."""
    made = {}

    def train(*arguments):
        if not made:
            made["ranks"] = start_ranks(train_all, 2, *arguments).results()
        return made["ranks"]

    return train


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_take_the_step_of_one_process_with_both_rollouts(
    trained, name, make_model, make_vec_env, make_demonstrations
):
    demonstrations = [*make_demonstrations(2, "push"), *make_demonstrations(1, "pull", goal=7, horizon=9)]
    ranks = trained(make_model, make_vec_env, demonstrations)
    assert not any(isinstance(rank, Exception) for rank in ranks), ranks
    first, second = (rank[name] for rank in ranks)
    for key, weight in first["after"].items():
        assert th.equal(weight, second["after"][key]) and th.equal(first["before"][key], second["before"][key])
    assert not np.array_equal(first["rollout"]["actions"], second["rollout"]["actions"])

    env = make_vec_env(4, goal=3, horizon=5)
    one = make_model(env, n_steps=8, batch_size=32, policy_kwargs=POLICY, **CASES[name])
    one.bc_batch_size = demonstrated(one, demonstrations, 0, 1)
    one.learn(0)
    one.policy.load_state_dict(first["before"])
    one.lifetime_timesteps, one._current_progress_remaining = 32, 0.0
    fill(one.rollout_buffer, first["rollout"], second["rollout"])
    one.train()
    moved = 0.0
    for key, weight in one.policy.state_dict().items():
        np.testing.assert_allclose(weight, first["after"][key], rtol=0, atol=2e-6, err_msg=key)
        moved = max(moved, float((weight.float() - first["before"][key].float()).abs().max()))
    assert moved > 1e-3
    assert one._n_updates == first["n_updates"] == second["n_updates"]
    if name == "kl-stop":
        assert 1 < one._n_updates < 20
    for key, value in one.logger.name_to_value.items():
        if key.startswith("train/"):
            assert first["log"][key] == second["log"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def rate_otherwise(make_model, make_vec_env, demonstrations):
    """With a critic that expects more on the second rank than there is to be had."""
    model = make_model(make_vec_env(goal=3, horizon=5), replay_buffer_kwargs={"episodes_per_task": 3})
    critic_values = model.adapter.critic_values
    model.adapter.critic_values = lambda batch: critic_values(batch) + 2.0 * model.ranks.rank
    model.replay_buffer.extend(demonstrations)
    model.lifetime_timesteps = 10**6
    model._rate_demonstrations()
    return {task: [demo.actions for demo in held] for task, held in model.replay_buffer.episodes.items()}


def test_ranks_agree_on_what_the_critic_thinks_of_demonstrations(start_ranks, make_model, make_vec_env, make_demonstrations):
    first, second = start_ranks(rate_otherwise, 2, make_model, make_vec_env, make_demonstrations(8)).results()
    assert first["push"] and len(first["push"]) == len(second["push"]) < 8
    for one, other in zip(first["push"], second["push"], strict=True):
        np.testing.assert_array_equal(one, other)


def fill(buffer, *rollouts):
    """As if one process had collected them."""
    buffer.reset()
    for key in ROLLOUT:
        setattr(buffer, key, np.concatenate([rollout[key] for rollout in rollouts], axis=1))
    buffer.observations = {
        key: np.concatenate([rollout["observations"][key] for rollout in rollouts], axis=1)
        for key in rollouts[0]["observations"]
    }
    buffer.steps_apart, buffer.full = True, True

"""Ranks that shard the backbone's layers take the steps of ranks that don't."""

import os
import sys

import cloudpickle
import numpy as np
import pytest
import torch as th

from sb3_vla import PPOSelfBC

from ..policies.backbones.tiny_checkpoints import TINY_FAMILIES

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Its epsilon, as Adam blows up the rounding of gradients that are nearly zero
POLICY = {"head_kwargs": {"log_std_init": -0.7}, "optimizer_kwargs": {"eps": 1e-2}}
ROLLOUT = 32  # of two ranks with two environments of 8 steps
CASES = {
    "bc": {"n_epochs": 3, "max_grad_norm": 0.2, "ent_coef": 0.01},
    "accumulated": {"n_epochs": 2, "micro_batch_size": 5},
    "kl-stop": {"n_epochs": 20, "target_kl": 0.02, "normalize_advantage": "task"},
    "critic": {"n_epochs": 1, "critic_epochs": 3, "bc_weight": 0},
    "features": {"n_epochs": 1, "critic_epochs": 3, "bc_weight": 0, "micro_batch_size": 3, "privileged": False},
    "frozen": {"n_epochs": 2, "policy_kwargs": {**POLICY, "frozen": ("vision", "connector")}},
}


def make(make_model, make_vec_env, **kwargs):
    env = make_vec_env(goal=3, horizon=5, privileged=kwargs.pop("privileged", True))
    settings = {"n_steps": 8, "batch_size": 8, "learning_rate": 0.01, "policy_kwargs": POLICY, **kwargs}
    # By advantage the toy's episodes, which are nearly alike, would be ordered by rounding
    settings["replay_buffer_kwargs"] = {"rule": "shortest"}
    return make_model(env, **settings)


def watch_steps(model):
    """How many numbers of gradients, and of what the optimizer keeps, a rank has of the layers at a step."""
    kept = []
    optimizer = model.policy.optimizer
    step = optimizer.step

    def watched(*args, **kwargs):
        result = step(*args, **kwargs)
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        kept.append([sum(map(own_numbers, tensors)) for tensors in zip(*of_each(optimizer, weights), strict=True)])
        return result

    optimizer.step = watched
    return kept


def of_each(optimizer, weights):
    return [(weight.grad, optimizer.state[weight]["exp_avg"]) for weight in weights]


def own_numbers(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()


def learn(model, n_rollouts):
    kept = watch_steps(model)
    model.learn(n_rollouts * ROLLOUT, reset_num_timesteps=False)
    layers = sum(weight.numel() for layer in model.policy.learning_layers for weight in layer.parameters())
    acting = {name: weight.detach().clone() for name, weight in model.policy.named_parameters()}
    parameters = model.get_parameters()
    moments = {
        f"optimizer.{number}.{name}": value
        for number, state in parameters["policy.optimizer"]["state"].items()
        for name, value in state.items()
    }
    return {
        "weights": {name: value.detach() for name, value in {**parameters["policy"], **moments}.items()},
        "acting": acting,
        "log": {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")},
        "n_updates": model._n_updates,
        "pairs": 0 if model.replay_buffer is None else len(model.replay_buffer),
        "kept": np.array(kept),
        "in_layers": layers,
    }


def learn_all(make_model, make_vec_env, demonstrations):
    found = {}
    for name, settings in CASES.items():
        for shard in (False, True):
            model = make(make_model, make_vec_env, shard=shard, **settings)
            if model.replay_buffer is not None:
                model.replay_buffer.extend(demonstrations)
            found[name, shard] = learn(model, 2)
    return found


@pytest.fixture(scope="module")
def learned(start_ranks):
    """Each case with and without, on the same two ranks."""
    made = {}

    def learn(*arguments):
        if not made:
            made["ranks"] = start_ranks(learn_all, 2, *arguments).results()
        return made["ranks"]

    return learn


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_sharded_ranks_learn_what_ranks_that_have_all_learn(learned, name, make_model, make_vec_env, make_demonstrations):
    ranks = learned(make_model, make_vec_env, make_demonstrations(3, "push"))
    assert not any(isinstance(rank, Exception) for rank in ranks), ranks
    whole, sharded = (ranks[0][name, shard] for shard in (False, True))
    assert_close(sharded["weights"], whole["weights"])
    assert sharded["n_updates"] == whole["n_updates"] and sharded["pairs"] == whole["pairs"]
    assert sharded["log"].keys() == whole["log"].keys()
    for key, value in whole["log"].items():
        assert sharded["log"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    # Of what is in layers each has about half, and all of the weights after the update
    own, others = (rank[name, True]["kept"] for rank in ranks)
    everything, in_layers = whole["kept"], whole["in_layers"]
    of_policy = everything[0, 0] == everything.max()
    assert of_policy and (own[0] + others[0] == 2 * everything[0] - in_layers).all()
    assert (np.maximum(own, others)[0] < everything[0] - 0.4 * in_layers).all()
    for weight, value in ranks[0][name, True]["acting"].items():
        assert th.equal(value, ranks[1][name, True]["acting"][weight])
        assert th.equal(value, sharded["weights"][weight]), weight


def learn_with_adapters(make_model, make_vec_env, checkpoint):
    lora = {"backbone": checkpoint, "backbone_kwargs": {"gradient_checkpointing": True}, "lora": {"r": 4}}
    # Without clipping: shards add up the norm in another order, and bfloat16 makes a last bit's difference large
    settings = {"policy_kwargs": {**POLICY, **lora}, "max_grad_norm": 1e9}
    return [learn(make(make_model, make_vec_env, shard=shard, **settings), 2) for shard in (False, True)]


def test_adapters_beside_pretrained_weights_with_gradient_checkpointing(start_ranks, make_model, make_vec_env, tmp_path):
    pytest.importorskip("peft")
    TINY_FAMILIES["smolvlm"].save(tmp_path / "checkpoint")
    arguments = make_model, make_vec_env, str(tmp_path / "checkpoint")
    (whole, sharded), _ = start_ranks(learn_with_adapters, 2, *arguments).results()
    assert_close(sharded["weights"], whole["weights"])
    assert sharded["kept"][0, 0] < whole["kept"][0, 0]


def test_accelerate_says_whether_to_shard(start_ranks, make_model, make_vec_env):
    def learn(use_fsdp):
        os.environ["ACCELERATE_USE_FSDP"] = use_fsdp
        model = make(make_model, make_vec_env, batch_size=16)
        return watch_and_learn(model), model.is_sharded

    wanted, unwanted = (start_ranks(learn, 2, value).results()[0] for value in ("true", "false"))
    assert wanted[1] and not unwanted[1]
    assert wanted[0] < unwanted[0]


def watch_and_learn(model):
    kept = watch_steps(model)
    model.learn(ROLLOUT)
    return kept[0][0]


def learn_and_save(make_model, make_vec_env, path):
    model = make(make_model, make_vec_env, shard=True, n_epochs=2)
    learn(model, 2)
    model.save(path)
    actions = model.predict(make_vec_env(goal=3, horizon=5).reset(), deterministic=True)[0]
    with pytest.raises(RuntimeError, match="sharded, from the first learn"):
        model.set_parameters(str(path))
    model.learn(ROLLOUT, reset_num_timesteps=False)
    return actions, model.num_timesteps


def load_and_learn(make_vec_env, path):
    found = []
    for shard in (False, True):
        model = PPOSelfBC.load(path, make_vec_env(goal=3, horizon=5), device="cpu", shard=shard)
        model.set_random_seed(model.rank_seed)
        found.append(learn(model, 2)["weights"])
    return found


def test_what_is_saved_is_whole_and_goes_on_with_any_number_of_ranks(start_ranks, make_model, make_vec_env, tmp_path):
    path = tmp_path / "model.zip"
    results = start_ranks(learn_and_save, 2, make_model, make_vec_env, path).results()
    assert not any(isinstance(result, Exception) for result in results), results
    (actions, timesteps), (others, _) = results
    assert timesteps == 3 * ROLLOUT
    model = PPOSelfBC.load(path, make_vec_env(goal=3, horizon=5), device="cpu")
    assert model.shard
    np.testing.assert_array_equal(actions, others)
    np.testing.assert_allclose(
        model.predict(make_vec_env(goal=3, horizon=5).reset(), deterministic=True)[0], actions, atol=1e-6
    )
    state = model.policy.optimizer.state_dict()["state"]
    assert len(state) > 20 and all(float(moments["step"]) == 8 for moments in state.values())
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    model.learn(16, reset_num_timesteps=False)
    assert not th.equal(before, th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    for results in start_ranks(load_and_learn, 2, make_vec_env, path).results()[:1]:
        assert_close(*results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlap": True}, "does not go with overlap=True"),
        ({"micro_batch_size": "auto"}, "does not go with micro_batch_size='auto'"),
        ({"bc_weight": "gradient_balance"}, "does not go with bc_weight='gradient_balance', which compares gradients"),
        ({"policy_kwargs": {"frozen": ("all",)}}, "finds no layer of SmolVLMBackbone that learns"),
        ({"policy_kwargs": {"compile": True}}, "does not go with policy_kwargs=.*compile=True"),
    ],
)
def test_what_it_does_not_go_with_is_named(make_model, arguments, message):
    with pytest.raises(ValueError, match=f"shard=True {message}"):
        make_model(shard=True, **arguments)


def test_policies_without_layers_are_refused():
    with pytest.raises(ValueError, match="shard=True needs VLAPolicy, whose backbone has layers: ActorCriticPolicy has none"):
        PPOSelfBC("MlpPolicy", "CartPole-v1", shard=True)

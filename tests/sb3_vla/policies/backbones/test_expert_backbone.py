import shutil

import numpy as np
import pytest
import torch as th

from sb3_vla import PPOSelfBC, fine_tune
from sb3_vla.policies.backbones.key_value_prefix import KeyValuePrefix

KINDS = pytest.mark.parametrize("kind", ["pi0", "smolvla"])


@KINDS
@pytest.mark.parametrize("noise", ["noise", "sde"])
def test_fine_tuned_trained_saved_and_loaded_without_its_files(kind, noise, make_expert_model, make_demonstrations, tmp_path):
    model = make_expert_model(kind, head_kwargs={"noise": noise, "n_flow_steps": 2})
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    result = fine_tune(model, make_demonstrations(8), n_epochs=10, learning_rate=3e-3, held_out_fraction=0.25)
    assert result.train_losses[-1] < result.train_losses[0]
    model.learn(16)
    changed = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    assert any(name.startswith("head.expert.") for name in changed)
    assert any(name.startswith("backbone.model.") for name in changed)
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    shutil.rmtree(tmp_path / kind)
    loaded = PPOSelfBC.load(tmp_path / "model.zip")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)


@KINDS
def test_first_likelihood_ratio_of_an_update_is_one(kind, make_expert_model, record_logs):
    frozen = {"frozen": ("vision", "connector")}
    model = make_expert_model(kind, n_epochs=1, batch_size=16, bc_weight=0.0, policy_kwargs=frozen)
    logs = record_logs(model)
    model.learn(16)
    assert abs(logs[0]["train/approx_kl"]) < 1e-4 and logs[0]["train/clip_fraction"] == 0


@KINDS
def test_adapters_beside_its_language_model(kind, make_expert_model, tmp_path):
    model = make_expert_model(kind, policy_kwargs={"lora": {"r": 2, "base_dtype": "float32"}})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    loaded = PPOSelfBC.load(tmp_path / "model.zip")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)


@KINDS
def test_other_heads_learn_from_it(kind, make_expert_model):
    model = make_expert_model(kind, head="gaussian")
    before = model.policy.head.mean_net[0].weight.detach().clone()
    model.learn(16)
    assert not th.equal(model.policy.head.mean_net[0].weight, before)


def test_numbers_beside_keys_in_bfloat16_are_not_rounded():
    layers = [(th.randn(2, 1, 3, 4).bfloat16(), th.randn(2, 1, 3, 4).bfloat16())]
    numbers = th.tensor([[1.001, -0.3333], [2.0004, 0.0]])
    prefix = KeyValuePrefix(layers, th.ones(2, 3), numbers)
    unpacked = KeyValuePrefix.unpack(prefix.pack(), n_layers=1, n_heads=1, n_numbers=2)
    assert th.equal(unpacked.numbers, numbers)
    assert all(th.equal(one, other) for one, other in zip(unpacked.layers[0], layers[0], strict=True))

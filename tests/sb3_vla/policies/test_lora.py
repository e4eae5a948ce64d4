import copy
import os
import shutil

import numpy as np
import pytest
import torch as th

from sb3_vla import PPOSelfBC, VLABackbone, VLAPolicy, fine_tune, save_for_hub
from sb3_vla.common.plain_file import load_plain
from sb3_vla.policies.backbones import make_backbone
from sb3_vla.policies.lora import add_lora
from sb3_vla.ppo_self_bc.model_file import read_model

from .backbones.tiny_checkpoints import TINY_FAMILIES

IMAGES = {"image": th.randint(0, 256, (2, 3, 32, 32), dtype=th.uint8, generator=th.Generator().manual_seed(0))}
PROMPTS = ["push", "pull the lever"]
LORA = {"r": 4, "base_dtype": "float32"}


@pytest.fixture
def checkpoint(tmp_path):
    TINY_FAMILIES["smolvlm"].save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def make_lora_model(checkpoint, make_model):
    def make(lora=LORA, **kwargs):
        policy_kwargs = {"backbone": str(checkpoint), "backbone_kwargs": {}, "lora": lora, **kwargs.pop("policy_kwargs", {})}
        return make_model(policy_kwargs=policy_kwargs, **kwargs)

    return make


def features(backbone, images=IMAGES):
    return backbone(backbone.encode_images(images), PROMPTS, th.ones(2, 3)).action


def with_nonzero_adapters(backbone):
    """LoRA begins with adapters that add nothing."""
    with th.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * th.randn(parameter.shape, generator=th.Generator().manual_seed(len(name))))
    return backbone


def actions(model):
    return model.predict(model.env.reset(), deterministic=True)[0]


@pytest.mark.parametrize("name", sorted(TINY_FAMILIES))
def test_adapters_of_each_family_stand_in_the_text_model_and_begin_with_nothing(name, tmp_path):
    family = TINY_FAMILIES[name]
    family.save(tmp_path)
    images = {"image": th.randint(0, 256, (2, 3, family.image_size, family.image_size), dtype=th.uint8)}
    plain = make_backbone(tmp_path, 3).eval()
    backbone = make_backbone(tmp_path, 3).eval()
    backbone.load_state_dict(plain.state_dict())
    add_lora(backbone, LORA)
    assert th.equal(features(backbone, images), features(plain, images))
    adapters = {name for name, parameter in backbone.named_parameters() if "lora_" in name and parameter.requires_grad}
    # Seven linear layers in each of two layers, two matrices each
    assert len(adapters) == 28 and all(f"model.{backbone.family.parts['text']}." in name for name in adapters)
    assert not th.allclose(features(with_nonzero_adapters(backbone), images), features(plain, images), atol=1e-4)


def test_only_adapters_new_tokens_and_heads_learn(make_lora_model, make_demonstrations):
    model = make_lora_model()
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    fine_tune(model, make_demonstrations(4), n_epochs=2, held_out_fraction=0.25)
    model.learn(32)
    changed = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    is_base = {name for name in before if name.startswith("backbone.model.") and "lora_" not in name}
    assert changed == set(before) - is_base
    assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())


def test_base_in_bfloat16_and_adapters_in_float32(make_lora_model):
    model = make_lora_model({"r": 4})
    dtypes = {name: p.dtype for name, p in model.policy.backbone.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name or "token" in name.split(".")[0]} == {th.float32}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("model.") and "lora_" not in name} == {th.bfloat16}
    before = actions(model)
    model.learn(32)
    assert np.isfinite(actions(model)).all() and not np.array_equal(actions(model), before)


def test_positions_are_not_rounded_with_the_weights(checkpoint):
    backbone = make_backbone(str(checkpoint), state_dim=3)
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    assert any("inv_freq" in name for name in before)
    add_lora(backbone, {"base_dtype": "bfloat16"})
    after = dict(backbone.named_buffers())
    for name, buffer in before.items():
        assert after[name].dtype == buffer.dtype and th.equal(after[name], buffer), name


def test_first_likelihood_ratio_of_an_update_is_one(make_lora_model, record_logs):
    model = make_lora_model({"r": 4}, n_epochs=1, batch_size=16, bc_weight=0.0)
    with_nonzero_adapters(model.policy.backbone)
    logs = record_logs(model)
    model.learn(16)
    assert abs(logs[0]["train/approx_kl"]) < 1e-6 and logs[0]["train/clip_fraction"] == 0


def test_a_model_is_saved_without_its_base_and_goes_on_from_it(
    make_lora_model, checkpoint, tmp_path, make_vec_env, make_demonstrations
):
    model = make_lora_model(bc_weight=0.0)
    model.learn(32)
    model.save(tmp_path / "model.zip")
    saved = read_model(tmp_path / "model.zip").parameters["policy"]
    assert not [name for name in saved if name.startswith("backbone.model.") and "lora_" not in name]
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert loaded.policy_kwargs["backbone"] == os.fspath(checkpoint)
    assert np.array_equal(actions(loaded), actions(model))
    for each in (model, loaded):
        fine_tune(each, make_demonstrations(4), n_epochs=2, held_out_fraction=0.25, seed=3)
        each.set_env(make_vec_env())
        each.set_random_seed(5)
        each.learn(32, reset_num_timesteps=False)
    both = zip(model.policy.state_dict().values(), loaded.policy.state_dict().values(), strict=True)
    assert all(th.equal(a, b) for a, b in both)


@pytest.mark.parametrize("save_base", [False, True])
def test_what_fine_tuning_goes_on_from_does_not_hold_the_base(
    save_base, make_lora_model, make_demonstrations, checkpoint, tmp_path
):
    settings = {"n_epochs": 1, "batch_size": 4, "progress": False, "checkpoint": tmp_path / "sft", "checkpoint_every": 1}
    models = [make_lora_model({**LORA, "save_base": save_base}) for _ in range(2)]
    results = [fine_tune(model, make_demonstrations(4), **settings) for model in models]  # nothing is left for the second
    assert results[0] == results[1]
    first, second = (model.policy.state_dict() for model in models)
    assert all(th.equal(value, second[name]) for name, value in first.items())
    kept = load_plain(tmp_path / "sft")["state"]["weights"]
    assert any("lora_A" in name for name in kept) and not any(name.endswith("base_layer.weight") for name in kept)


def test_a_policy_alone_is_saved_without_its_base(make_lora_model, tmp_path):
    model = make_lora_model()
    with_nonzero_adapters(model.policy.backbone)
    model.policy.save(tmp_path / "policy.pt")
    policy = VLAPolicy.load(tmp_path / "policy.pt")
    observation = model.env.reset()
    assert np.array_equal(policy.predict(observation, deterministic=True)[0], actions(model))


def test_the_base_is_saved_on_request(make_lora_model, checkpoint, tmp_path):
    model = make_lora_model({**LORA, "save_base": True})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    shutil.rmtree(checkpoint)
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=model.env)
    assert np.array_equal(actions(loaded), actions(model))


def test_a_base_that_is_gone_or_another_is_refused(make_lora_model, checkpoint, tmp_path):
    model = make_lora_model()
    model.save(tmp_path / "model.zip")
    shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match=rf"no longer at '{checkpoint}': .*policy_kwargs=dict\(backbone=\.\.\.\)"):
        PPOSelfBC.load(tmp_path / "model.zip")
    other = TINY_FAMILIES["smolvlm"].save(checkpoint)
    with th.no_grad():
        other.model.text_model.norm.weight.mul_(2)
    other.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=rf"beside other pretrained weights \(\w+\) than those of '{checkpoint}' \(\w+\)"):
        PPOSelfBC.load(tmp_path / "model.zip")


def test_a_base_that_has_moved_is_found_where_it_is_said_to_be(make_lora_model, checkpoint, tmp_path):
    model = make_lora_model()
    with_nonzero_adapters(model.policy.backbone)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.safetensors")
    moved = checkpoint.rename(tmp_path / "moved")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=model.env, policy_kwargs={"backbone": str(moved)})
    assert np.array_equal(actions(loaded), actions(model))
    loaded.save(tmp_path / "again.zip")
    assert np.array_equal(actions(PPOSelfBC.load(tmp_path / "again.zip", env=model.env)), actions(model))
    with pytest.raises(ValueError, match=rf"no longer at '{checkpoint}': .*VLAPolicy\.load\(path, backbone=\.\.\.\)"):
        VLAPolicy.load(tmp_path / "policy.safetensors")
    policy = VLAPolicy.load(tmp_path / "policy.safetensors", backbone=str(moved))
    assert np.array_equal(policy.predict(model.env.reset(), deterministic=True)[0], actions(model))
    model.policy.merge_lora()
    model.policy.save(tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"holds a whole policy, .*: leave out backbone"):
        VLAPolicy.load(tmp_path / "whole.safetensors", backbone=str(moved))


def test_weights_of_adapters_do_not_go_beside_another_base_or_with_another_factor(make_lora_model, tmp_path):
    model = make_lora_model()
    with_nonzero_adapters(model.policy.backbone)
    model.save(tmp_path / "model.zip")
    same = make_lora_model()
    same.set_parameters(tmp_path / "model.zip")
    assert np.array_equal(actions(same), actions(model))
    with pytest.raises(ValueError, match=r"count 8 times beside .*, those of this policy 1 times: .*lora_alpha"):
        make_lora_model({**LORA, "lora_alpha": 4}).set_parameters(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"a policy with adapters, and this one has none: .*dict\(lora=\.\.\.\)"):
        make_lora_model(None).set_parameters(tmp_path / "model.zip")
    other = TINY_FAMILIES["smolvlm"].save(tmp_path / "other")
    with th.no_grad():
        other.model.text_model.norm.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    elsewhere = make_lora_model(policy_kwargs={"backbone": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="trained beside other pretrained weights than those of this policy"):
        elsewhere.policy.load_state_dict(model.policy.state_dict())


def test_merged_adapters_act_the_same_and_are_gone(make_lora_model, checkpoint, tmp_path, make_vec_env):
    model = make_lora_model()
    with_nonzero_adapters(model.policy.backbone)
    expected = actions(model)
    model.policy.merge_lora()
    np.testing.assert_allclose(actions(model), expected, atol=1e-5)
    assert model.policy.state_dict().keys() == make_lora_model(None).policy.state_dict().keys()
    model.save(tmp_path / "model.zip")
    shutil.rmtree(checkpoint)
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert np.array_equal(actions(loaded), actions(model)) and loaded.policy.lora is None
    loaded.learn(16)
    with pytest.raises(ValueError, match="has no adapters to merge"):
        loaded.policy.merge_lora()


def test_images_are_encoded_once_unless_their_encoder_has_adapters(make_lora_model):
    assert "image" not in make_lora_model().policy.stored_keys
    in_vision = make_lora_model({**LORA, "target_modules": ["q_proj"]})
    assert "image" in in_vision.policy.stored_keys
    in_vision.learn(16)


def test_gradient_checkpointing_changes_memory_and_not_gradients(checkpoint):
    def run(checkpointing):
        th.manual_seed(0)
        backbone = make_backbone(checkpoint, 3, gradient_checkpointing=checkpointing).eval()
        add_lora(backbone, LORA)
        with_nonzero_adapters(backbone)
        sizes = []

        def pack(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = features(backbone).sum()
        n_bytes = sum(sizes)
        loss.backward()
        return n_bytes, {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}

    (bytes_without, without), (bytes_with, gradients) = run(False), run(True)
    assert bytes_with < 0.5 * bytes_without
    assert gradients.keys() == without.keys()
    assert all(th.allclose(gradient, without[name], atol=1e-6) for name, gradient in gradients.items())


def test_gradient_checkpointing_is_a_choice_of_whoever_loads_a_model(make_lora_model, tmp_path):
    make_lora_model().save(tmp_path / "model.zip")
    for wanted in (True, False):
        kwargs = {"backbone_kwargs": {"gradient_checkpointing": wanted}}
        model = PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs=kwargs)
        assert model.policy.backbone.gradient_checkpointing is wanted
        model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="'backbone_kwargs' can't be changed"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"backbone_kwargs": {"resample": "bilinear"}})


def test_a_policy_with_adapters_can_be_copied(make_lora_model):
    policy = make_lora_model().policy
    twin = copy.deepcopy(policy)
    assert twin.state_dict().keys() == policy.state_dict().keys()
    assert not [name for name in twin.state_dict() if "base_layer" in name]


def test_what_is_frozen_can_not_be_adapted(make_lora_model):
    make_lora_model(policy_kwargs={"frozen": ("vision", "connector")})
    with pytest.raises(ValueError, match=r"frozen=\('text',\) keeps \['text'\] from learning, which lora adapts"):
        make_lora_model(policy_kwargs={"frozen": ("text",)})


@pytest.mark.parametrize(
    ("lora", "error", "words"),
    [
        ({"rank": 4}, TypeError, r"lora: adapt has no argument \['rank'\]"),
        ({"r": 0}, ValueError, "lora: r must be at least 1, got 0"),
        ({"lora_alpha": 0.0}, ValueError, "lora: lora_alpha must be above 0"),
        ({"base_dtype": "int8"}, ValueError, "lora: base_dtype must be 'bfloat16' or 'float32', got 'int8'"),
        ({"target_modules": ["q_prj"]}, ValueError, r"lora: target_modules=\['q_prj'\] names no layers .* are .*q_proj"),
        ({"target_modules": "("}, ValueError, r"lora: target_modules='\(' names no layers .* are .*q_proj"),
        (16, TypeError, "lora must be a dictionary"),
    ],
)
def test_wrong_arguments_are_refused(make_lora_model, lora, error, words):
    with pytest.raises(error, match=words):
        make_lora_model(lora)


def test_a_backbone_without_pretrained_weights_is_refused(make_model):
    with pytest.raises(ValueError, match="adapts pretrained weights, and SmolVLMBackbone has none"):
        make_model(policy_kwargs={"lora": {"r": 4}})


def test_a_backbone_of_ones_own_says_where_its_weights_are(checkpoint):
    class Own(VLABackbone):
        def __init__(self, state_dim):
            inner = make_backbone(checkpoint, state_dim)
            super().__init__(inner.features_dim)
            self.inner = inner

        @property
        def pretrained(self):
            return self.inner.model

        def encode_images(self, images):
            return self.inner.encode_images(images)

        def forward(self, *args):
            return self.inner(*args)

        def constructor_kwargs(self):
            return {}

    backbone = Own(3).eval()
    with pytest.raises(ValueError, match=r"Own has no lora_targets: give lora=dict\(target_modules"):
        add_lora(backbone, {})
    add_lora(backbone, {"target_modules": ["o_proj"]})
    names = set(backbone.state_dict())
    assert {name for name in names if "lora_" in name} and not {name for name in names if "base_layer" in name}
    backbone.load_state_dict(backbone.state_dict())


def test_adapters_to_a_folder_are_not_published_without_it(make_lora_model, tmp_path):
    with pytest.raises(ValueError, match=r"LoRA's adapters alone.*save_base=True"):
        save_for_hub(make_lora_model(), tmp_path / "out", "ann/toy")
    assert "README.md" in save_for_hub(make_lora_model({**LORA, "save_base": True}), tmp_path / "out", "ann/toy")

import shutil

import numpy as np
import pytest
import torch as th
from transformers import PI0Config, PI0ForConditionalGeneration

from sb3_vla import BackboneFeatures, PPOSelfBC, fine_tune
from sb3_vla.policies.backbones import PI0Backbone, make_backbone

from .tiny_checkpoints import TEXT, TINY_FAMILIES, VISION

PALIGEMMA = TINY_FAMILIES["paligemma"]
PROMPTS = ["open the drawer", "push"]


@pytest.fixture
def checkpoint(tmp_path):
    """A pi0 of random weights: chunks of at most 6 actions of at most 8 numbers."""
    tokenizer = PALIGEMMA.make_tokenizer()
    text = {**{key: value for key, value in TEXT.items() if key != "sliding_window"}, "model_type": "gemma"}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
            "projection_dim": 32,
            "hidden_size": 32,
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        },
        dit_config={**text, "hidden_size": 24},
        chunk_size=6,
        max_state_dim=8,
        max_action_dim=8,
    )
    th.manual_seed(7)
    model = PI0ForConditionalGeneration(config)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * th.randn_like(parameter))
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    PALIGEMMA.image_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def make_pi0(checkpoint, make_model):
    def make(head="flow", head_kwargs=None, **kwargs):
        policy_kwargs = {"backbone": str(checkpoint), "backbone_kwargs": {}, "head": head, "head_kwargs": head_kwargs or {}}
        return make_model(policy_kwargs={**policy_kwargs, **kwargs.pop("policy_kwargs", {})}, **kwargs)

    return make


def test_chunks_are_those_of_transformers_from_the_same_noise(checkpoint, make_pi0):
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 28, 28, 3), dtype=np.uint8)
    state, noise = th.randn(2, 3), th.randn(2, 6, 8)
    policy = make_pi0(head_kwargs={"n_flow_steps": 5}).policy
    backbone, head = policy.backbone, policy.head
    with th.no_grad():
        by_name = {f"image_{i}": th.as_tensor(each).permute(0, 3, 1, 2) for i, each in enumerate(images)}
        features = backbone(backbone.encode_images(by_name), PROMPTS, state)
        ours = head(features).follow(noise)

    whole = PI0ForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = PALIGEMMA.processor(PALIGEMMA.image_processor, PALIGEMMA.make_tokenizer())
    for row, prompt in enumerate(PROMPTS):
        text = PALIGEMMA.text(None, prompt, n_images=2)
        inputs = processor(images=[list(images[:, row])], text=[text], return_tensors="pt")
        expected = whole.sample_actions(
            state=th.nn.functional.pad(state[row : row + 1], (0, 5)),
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"].unsqueeze(0),
            pixel_attention_mask=th.ones(1, 2, dtype=th.bool),
            noise=noise[row : row + 1].clone(),
            num_steps=5,
        )
        assert th.allclose(ours[row], expected[0], atol=1e-5), (ours[row] - expected[0]).abs().max()


@pytest.mark.parametrize("noise", ["noise", "sde"])
def test_fine_tuned_trained_saved_and_loaded_without_its_files(noise, make_pi0, checkpoint, make_demonstrations, tmp_path):
    model = make_pi0(head_kwargs={"noise": noise, "n_flow_steps": 2}, n_epochs=1)
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    result = fine_tune(model, make_demonstrations(8), n_epochs=10, learning_rate=3e-3, held_out_fraction=0.25)
    assert result.train_losses[-1] < result.train_losses[0]
    model.learn(16)
    changed = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    assert any(name.startswith("head.expert") for name in changed) and any(name.startswith("backbone") for name in changed)
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    shutil.rmtree(checkpoint)
    loaded = PPOSelfBC.load(tmp_path / "model.zip")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)


def test_first_ratio_is_one_and_only_the_environments_numbers_count(make_pi0, record_logs):
    model = make_pi0(n_epochs=1, batch_size=16, bc_weight=0.0, policy_kwargs={"frozen": ("vision", "connector")})
    logs = record_logs(model)
    model.learn(16)
    assert abs(logs[0]["train/approx_kl"]) < 1e-4 and logs[0]["train/clip_fraction"] == 0
    features = model.policy.encode(model.policy.obs_to_tensor(model.env.reset())[0])
    distribution = model.policy.head(features)
    sample = distribution.draw()
    assert sample.actions.shape == (2, 3, 2) and sample.extras["before"].shape == (2, 4, 6, 8)
    before = distribution.step_log_prob(sample)
    sample.extras["after"][:, :, 3:] += 1
    sample.extras["after"][:, :, :, 2:] += 1
    assert th.equal(distribution.step_log_prob(sample), before)


def test_adapters_beside_its_language_model(make_pi0, tmp_path):
    model = make_pi0(policy_kwargs={"lora": {"r": 2, "base_dtype": "float32"}})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip")
    observation = model.env.reset()
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


def test_other_heads_see_the_mean_of_what_is_not_padding(make_pi0):
    model = make_pi0(head="gaussian")
    model.learn(16)
    backbone = model.policy.backbone
    images = {"image": th.zeros(2, 3, 28, 28, dtype=th.uint8)}
    features = backbone(backbone.encode_images(images), PROMPTS, th.zeros(2, 3))
    assert isinstance(features, BackboneFeatures) and features.action.shape == (2, 32)
    assert not th.allclose(features.action[0], features.action[1], atol=1e-4)


def test_chunks_or_states_that_pi0_does_not_know_are_refused(checkpoint, make_pi0, make_vec_env):
    with pytest.raises(ValueError, match=r"draws chunks of 6 actions of 8 numbers, the environment takes 7 of 2"):
        make_pi0(env=make_vec_env(chunk_size=7))
    with pytest.raises(ValueError, match="pi0's state has at most 8 numbers, the environment's has 9"):
        make_backbone(checkpoint, state_dim=9)


def test_gradient_checkpointing_is_refused(checkpoint):
    with pytest.raises(ValueError, match="PI0Backbone has no gradient_checkpointing: its expert reads keys and values"):
        make_backbone(checkpoint, state_dim=3, gradient_checkpointing=True)


def test_an_instruction_that_is_too_long_is_refused(checkpoint):
    backbone = make_backbone(checkpoint, state_dim=3)
    assert isinstance(backbone, PI0Backbone)
    images = {"image": th.zeros(1, 3, 28, 28, dtype=th.uint8)}
    with pytest.raises(ValueError, match=r"instruction .* has 61 tokens, this model reads at most 48"):
        backbone(backbone.encode_images(images), ["z" * 59], th.zeros(1, 3))

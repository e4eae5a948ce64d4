import shutil

import numpy as np
import pytest
import torch as th
from transformers import PI0ForConditionalGeneration

from sb3_vla import BackboneFeatures, PPOSelfBC, fine_tune
from sb3_vla.policies.backbones import make_backbone
from sb3_vla.policies.backbones.pi0 import PI0Backbone

from .conftest import STATISTICS, PI0ImageProcessorPil
from .tiny_checkpoints import TINY_FAMILIES

PALIGEMMA = TINY_FAMILIES["paligemma"]
PROMPTS = ["open the drawer", "push"]


@pytest.fixture
def make_pi0(make_expert_model):
    return lambda **kwargs: make_expert_model("pi0", **kwargs)


def test_chunks_are_those_of_transformers_from_the_same_noise(pi0_checkpoint, make_pi0):
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 28, 28, 3), dtype=np.uint8)
    state, noise = th.randn(2, 3), th.randn(2, 6, 8)
    policy = make_pi0(head_kwargs={"n_flow_steps": 5}).policy
    backbone, head = policy.backbone, policy.head
    with th.no_grad():
        by_name = {f"image_{i}": th.as_tensor(each).permute(0, 3, 1, 2) for i, each in enumerate(images)}
        features = backbone(backbone.encode_images(by_name), PROMPTS, state)
        ours = head(features).follow(noise)

    whole = PI0ForConditionalGeneration.from_pretrained(pi0_checkpoint).eval()
    processor = PALIGEMMA.processor(PI0ImageProcessorPil(), PALIGEMMA.make_tokenizer())
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


@pytest.mark.parametrize(("height", "width"), [(28, 40), (56, 28), (15, 20)])
def test_pictures_keep_their_proportions(height, width, pi0_checkpoint):
    backbone = make_backbone(pi0_checkpoint, state_dim=3)
    # PIL rounds and clips between rows and columns, which shows where a picture is all noise: here nothing is clipped
    image = np.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=np.uint8)
    expected = PI0ImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    ours = backbone._pixels(th.as_tensor(image).permute(2, 0, 1).unsqueeze(0))
    assert ours.shape == expected.shape == (1, 3, 28, 28)
    assert th.equal(ours == 0, expected == 0), "what is padded"
    assert th.allclose(ours, expected, atol=1.01 / 255 / 0.4)


def test_an_image_processor_that_says_nothing_is_as_transformers_has_it(pi0_checkpoint):
    (pi0_checkpoint / "preprocessor_config.json").write_text('{"image_processor_type": "PI0ImageProcessor"}')
    settings = PI0Backbone.describe(str(pi0_checkpoint))
    assert (
        settings["pads"] and settings["resample"] == "bicubic" and {*settings["image_mean"], *settings["image_std"]} == {0.5}
    )


def test_statistics_travel_with_the_model(make_pi0, pi0_checkpoint, make_demonstrations, tmp_path):
    model = make_pi0()
    fine_tune(model, make_demonstrations(4), n_epochs=1, held_out_fraction=0.25, progress=False)
    model.save(tmp_path / "model.zip")
    shutil.rmtree(pi0_checkpoint)
    mean, std = (th.tensor(STATISTICS[f"state_{name}"]) for name in ("mean", "std"))
    for policy in (model.policy, PPOSelfBC.load(tmp_path / "model.zip").policy):
        assert policy.backbone.pads
        assert th.allclose(policy.state_normalizer((mean + std).unsqueeze(0)), th.ones(1, 3), atol=1e-5)
        assert th.allclose(policy.head.to_env(th.ones(1, 3, 2)), th.tensor([2.25, -0.4]), atol=1e-6)


def test_without_statistics_the_bounds_and_the_demonstrations_count(make_pi0):
    policy = make_pi0(backbone_kwargs={"use_statistics": False}).policy
    assert th.equal(policy.head.to_env(th.ones(1, 3, 2)), th.ones(1, 3, 2))
    policy.fit_normalizers({"state": 2 + th.arange(6.0).view(2, 3)})
    assert th.equal(policy.state_normalizer.mean, th.tensor([3.5, 4.5, 5.5]))


def test_statistics_of_another_robot_are_refused(pi0_checkpoint):
    match = (
        "processor_config.json of .* has statistics of states of 3 numbers, the environment's have 4: .*use_statistics=False"
    )
    with pytest.raises(ValueError, match=match):
        make_backbone(pi0_checkpoint, state_dim=4)
    assert make_backbone(pi0_checkpoint, state_dim=4, use_statistics=False).normalization == {}


def test_only_the_environments_numbers_count_in_the_likelihood(make_pi0):
    model = make_pi0()
    features = model.policy.encode(model.policy.obs_to_tensor(model.env.reset())[0])
    distribution = model.policy.head(features)
    sample = distribution.draw()
    assert sample.actions.shape == (2, 3, 2) and sample.extras["before"].shape == (2, 4, 6, 8)
    before = distribution.step_log_prob(sample)
    sample.extras["after"][:, :, 3:] += 1
    sample.extras["after"][:, :, :, 2:] += 1
    assert th.equal(distribution.step_log_prob(sample), before)


def test_other_heads_see_the_mean_of_what_is_not_padding(make_pi0):
    backbone = make_pi0(head="gaussian").policy.backbone
    images = {"image": th.zeros(2, 3, 28, 28, dtype=th.uint8)}
    features = backbone(backbone.encode_images(images), PROMPTS, th.zeros(2, 3))
    assert isinstance(features, BackboneFeatures) and features.action.shape == (2, 32)
    assert not th.allclose(features.action[0], features.action[1], atol=1e-4)


def test_chunks_or_states_that_pi0_does_not_know_are_refused(pi0_checkpoint, make_pi0, make_vec_env):
    with pytest.raises(ValueError, match=r"draws chunks of 6 actions of 8 numbers, the environment takes 7 of 2"):
        make_pi0(env=make_vec_env(chunk_size=7))
    with pytest.raises(ValueError, match="pi0's state has at most 8 numbers, the environment's has 9"):
        make_backbone(pi0_checkpoint, state_dim=9)


def test_gradient_checkpointing_is_refused(pi0_checkpoint):
    with pytest.raises(ValueError, match="PI0Backbone has no gradient_checkpointing: its expert reads keys and values"):
        make_backbone(pi0_checkpoint, state_dim=3, gradient_checkpointing=True)


def test_an_instruction_that_is_too_long_is_refused(pi0_checkpoint):
    backbone = make_backbone(pi0_checkpoint, state_dim=3)
    assert isinstance(backbone, PI0Backbone)
    images = {"image": th.zeros(1, 3, 28, 28, dtype=th.uint8)}
    with pytest.raises(ValueError, match=r"instruction .* has 61 tokens, this model reads at most 48"):
        backbone(backbone.encode_images(images), ["z" * 59], th.zeros(1, 3))

import copy

import pytest
import torch as th

from sb3_vla import SmolVLMBackbone
from sb3_vla.policies.backbones import make_backbone
from sb3_vla.policies.backbones.smolvlm import ConvStem


@pytest.fixture
def backbone(tiny_config) -> SmolVLMBackbone:
    th.manual_seed(0)
    return SmolVLMBackbone(state_dim=3, config=tiny_config).eval()


def inputs(n=4, size=8, seed=0):
    generator = th.Generator().manual_seed(seed)
    images = {"image": th.randint(0, 256, (n, 3, size, size), dtype=th.uint8, generator=generator)}
    return images, th.randn(n, 3, generator=generator)


def run(backbone, images, prompts, state):
    return backbone(backbone.encode_images(images), prompts, state)


PROMPTS = ["push", "pull the lever", "", "dépose-le ✓"]


def test_padding_does_not_change_features(backbone):
    images, state = inputs()
    together = run(backbone, images, PROMPTS, state)
    for i, prompt in enumerate(PROMPTS):
        alone = run(backbone, {"image": images["image"][i : i + 1]}, [prompt], state[i : i + 1])
        for batched, single in zip(together, alone, strict=True):
            assert th.allclose(batched[i], single[0], atol=1e-5), prompt


def test_padding_does_not_change_gradients(backbone):
    images, state = inputs(2)

    def gradient(prompts, rows):
        backbone.zero_grad()
        features = run(backbone, {"image": images["image"][rows]}, prompts, state[rows])
        features.action.sum().backward()
        return backbone.state_token.weight.grad.clone()

    together = gradient(PROMPTS[:2], slice(0, 2))
    apart = gradient(PROMPTS[:1], slice(0, 1)) + gradient(PROMPTS[1:2], slice(1, 2))
    assert th.allclose(together, apart, atol=1e-4)


def test_a_prompt_is_read_once_for_all_samples_that_share_it(backbone):
    images, state = inputs(6)
    rows_read = []
    backbone.model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows_read.append(
            {name: len(v) for name, v in kwargs.items() if name.startswith("input")}
        ),
        with_kwargs=True,
    )
    run(backbone, images, ["push", "pull", "push"] * 2, state)
    assert rows_read == [{"input_ids": 2}, {"inputs_embeds": 6}]


def test_attention_in_bfloat16_is_the_plain_one_and_gives_the_same(backbone):
    images, state = inputs()
    exact = run(backbone, images, PROMPTS, state).action
    attention = []
    backbone.model.vision_model.register_forward_pre_hook(
        lambda module, args: attention.append(module.config._attn_implementation)
    )
    with th.autocast("cpu", th.bfloat16):
        rounded = run(backbone, images, PROMPTS, state).action
    assert th.allclose(rounded.float(), exact, atol=0.1) and not th.equal(rounded.float(), exact)
    assert th.equal(run(backbone, images, PROMPTS, state).action, exact)
    assert attention == ["eager", "sdpa"]


def test_rows_do_not_mix(backbone):
    images, state = inputs()
    before = run(backbone, images, PROMPTS, state).action
    images["image"][0] = 255 - images["image"][0]
    after = run(backbone, images, PROMPTS, state).action
    assert not th.allclose(before[0], after[0], atol=1e-4) and th.allclose(before[1:], after[1:], atol=1e-5)


def test_action_readout_does_not_depend_on_the_values_token(backbone):
    images, state = inputs()
    before = run(backbone, images, PROMPTS, state)
    with th.no_grad():
        backbone.readout_tokens[1] += 1
    after = run(backbone, images, PROMPTS, state)
    assert th.allclose(before.action, after.action, atol=1e-6)
    assert not th.allclose(before.value, after.value, atol=1e-3)


def test_features_are_the_models_own_on_the_same_tokens(backbone):
    """An unpadded batch, put together from the outside."""
    images, state = inputs(1)
    model = backbone.model
    pixels = images["image"].float() / 127.5 - 1
    vision = model.connector(model.vision_model(pixels).last_hidden_state)
    ids = th.tensor([[ord(letter) + 3 for letter in "push"] + [1]])  # ByT5: bytes after three special tokens, then </s>
    prompt = model.text_model.get_input_embeddings()(ids)
    tokens = th.cat([prompt, vision, backbone.state_token(state)[:, None], backbone.readout_tokens[None]], dim=1)
    hidden = model.text_model(inputs_embeds=tokens).last_hidden_state
    features = run(backbone, images, ["push"], state)
    assert th.allclose(features.action, hidden[:, -2], atol=1e-5) and th.allclose(features.value, hidden[:, -1], atol=1e-5)


def test_default_is_small_and_takes_96_pixels():
    backbone = make_backbone("tiny", state_dim=4)
    assert 5e5 < sum(p.numel() for p in backbone.parameters()) < 3e6
    images = {"image": th.zeros(1, 3, 96, 96, dtype=th.uint8), "image_wrist": th.zeros(1, 3, 64, 64, dtype=th.uint8)}
    assert run(backbone, images, ["open the window"], th.zeros(1, 4)).action.shape == (1, backbone.features_dim)


@pytest.mark.parametrize("shape", [(8, 16), (12, 12), (20, 20)])
def test_pixels_that_are_no_whole_patches_are_refused(backbone, shape):
    images = {"image_wrist": th.zeros(1, 3, *shape, dtype=th.uint8)}
    with pytest.raises(ValueError, match=rf"'image_wrist' has {shape[0]} x {shape[1]} pixels.*multiple of 8.*image_size"):
        run(backbone, images, ["push"], th.zeros(1, 3))


def test_image_size_resizes(tiny_config):
    backbone = SmolVLMBackbone(3, config=tiny_config, image_size=8).eval()
    images, state = inputs(2)
    larger = {"image": images["image"].repeat_interleave(3, 2).repeat_interleave(3, 3)}
    assert run(backbone, larger, PROMPTS[:2], state).action.shape == (2, 16)
    constant = {"image": th.full((1, 3, 20, 12), 77, dtype=th.uint8)}, {"image": th.full((1, 3, 8, 8), 77, dtype=th.uint8)}
    a, b = (run(backbone, image, ["push"], state[:1]).action for image in constant)
    assert th.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("part", ["vision", "connector", "text", "all"])
def test_freeze(backbone, part):
    backbone.freeze([part])
    images, state = inputs()
    features = run(backbone, images, PROMPTS, state)
    if part == "all":
        assert not features.action.requires_grad
        return
    features.action.sum().backward()
    assert all(p.grad is None for p in backbone.parts[part].parameters())
    assert backbone.state_token.weight.grad is not None
    others = [name for name in ("vision", "connector", "text") if name != part]
    assert all(any(p.grad is not None for p in backbone.parts[name].parameters()) for name in others)


def test_unknown_part_is_refused(backbone):
    with pytest.raises(ValueError, match=r"no part 'lora'.*\['all', 'connector', 'text', 'vision'\]"):
        backbone.freeze(["lora"])


def test_constructor_kwargs_rebuild_the_same_architecture(backbone):
    twin = SmolVLMBackbone(3, **backbone.constructor_kwargs()).eval()
    twin.load_state_dict(backbone.state_dict())
    images, state = inputs()
    assert th.equal(run(twin, images, PROMPTS, state).action, run(backbone, images, PROMPTS, state).action)


def test_deepcopy(backbone):
    images, state = inputs()
    assert th.equal(run(copy.deepcopy(backbone), images, PROMPTS, state).action, run(backbone, images, PROMPTS, state).action)


def test_a_convolutional_stem_has_a_vector_a_patch_and_is_rebuilt(tiny_config):
    backbone = SmolVLMBackbone(3, tiny_config, conv_stem=True).eval()
    images = {"image": th.randint(0, 255, (2, 3, 8, 8), dtype=th.uint8)}
    plain = SmolVLMBackbone(3, tiny_config)
    assert backbone.encode_images(images).shape == plain.encode_images(images).shape
    rebuilt = SmolVLMBackbone(3, **backbone.constructor_kwargs()).eval()
    rebuilt.load_state_dict(backbone.state_dict())
    assert th.equal(rebuilt.encode_images(images), backbone.encode_images(images))
    with pytest.raises(ValueError, match="conv_stem needs a patch_size that is a power of two, got 3"):
        ConvStem(3, 8, 3)

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig

from sb3_vla import PPOSelfBC, PretrainedBackbone, VLAPolicy
from sb3_vla.policies.backbones import make_backbone
from sb3_vla.policies.backbones.families import FAMILIES

from .tiny_checkpoints import TINY_FAMILIES

PROMPTS = ["open the drawer", "push", "dépose-le ✓"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", _no_network)


def _no_network(*args):
    raise OSError("this test must not use the network")


@pytest.fixture(scope="module", params=sorted(TINY_FAMILIES))
def family_checkpoint(request, tmp_path_factory):
    """A family, its checkpoint's folder and the model that wrote it."""
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    family = TINY_FAMILIES[request.param]
    return family, folder, family.save(folder)


@pytest.fixture
def checkpoint(tmp_path):
    """A SmolVLM in bfloat16."""
    TINY_FAMILIES["smolvlm"].save(tmp_path / "checkpoint", dtype=th.bfloat16)
    return tmp_path / "checkpoint"


def cameras(size, batch=3, seed=0):
    """Two cameras, as the environment gives them: (batch, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (2, batch, size, size, 3), dtype=np.uint8)


def run(backbone, images, prompts=PROMPTS, state=None, read=None):
    state = th.zeros(len(prompts), 3) if state is None else state
    by_name = {f"image_{i}": th.as_tensor(each).permute(0, 3, 1, 2) for i, each in enumerate(images)}
    with th.no_grad():
        return (read or backbone)(backbone.encode_images(by_name), prompts, state)


def test_hidden_states_are_those_of_the_model_on_what_its_processor_makes(family_checkpoint):
    family, folder, model = family_checkpoint
    backbone = make_backbone(folder, state_dim=3).eval()
    assert isinstance(backbone, PretrainedBackbone) and backbone.image_size == family.image_size
    images = cameras(family.image_size)
    hidden = run(backbone, images, read=backbone.hidden_states)
    tokenizer = family.make_tokenizer()
    processor = family.processor(family.image_processor, tokenizer)
    for row, prompt in enumerate(PROMPTS):
        text = family.text(tokenizer, prompt, n_images=2)
        inputs = processor(images=[list(images[:, row])], text=[text], return_tensors="pt", **family.call)
        with th.no_grad():
            expected = model.model(**{key: value for key, value in inputs.items() if key != "labels"}).last_hidden_state[0]
        # The state's token and two more stand after them, padding before
        ours = hidden[row, :-3][-len(expected) :]
        assert th.allclose(ours, expected, atol=1e-5), (ours - expected).abs().max()


def test_what_pads_a_prompt_changes_nothing(family_checkpoint):
    family, folder, _ = family_checkpoint
    backbone = make_backbone(folder, state_dim=3).eval()
    images, state = cameras(family.image_size), th.randn(len(PROMPTS), 3, generator=th.Generator().manual_seed(0))
    together = run(backbone, images, PROMPTS, state)
    for row, prompt in enumerate(PROMPTS):
        alone = run(backbone, images[:, row : row + 1], [prompt], state[row : row + 1])
        assert th.allclose(together.action[row], alone.action[0], atol=1e-5)
        assert th.allclose(together.value[row], alone.value[0], atol=1e-5)


def test_everything_reaches_the_readouts_and_the_value_not_the_action(family_checkpoint):
    family, folder, _ = family_checkpoint
    backbone = make_backbone(folder, state_dim=3).eval()
    images = cameras(family.image_size, batch=1)
    before = run(backbone, images, PROMPTS[:1])
    others = {
        "first camera": run(backbone, np.stack([255 - images[0], images[1]]), PROMPTS[:1]),
        "second camera": run(backbone, np.stack([images[0], 255 - images[1]]), PROMPTS[:1]),
        "instruction": run(backbone, images, PROMPTS[1:2]),
        "state": run(backbone, images, PROMPTS[:1], th.ones(1, 3)),
    }
    for what, after in others.items():
        assert not th.equal(after.action, before.action), what
    with th.no_grad():
        backbone.readout_tokens[1] += 1
    after = run(backbone, images, PROMPTS[:1])
    assert th.allclose(after.action, before.action, atol=1e-6) and not th.allclose(after.value, before.value, atol=1e-3)


def test_it_is_rebuilt_from_plain_arguments_and_copied(family_checkpoint):
    family, folder, _ = family_checkpoint
    backbone = make_backbone(folder, state_dim=3).eval()
    rebuilt = PretrainedBackbone(3, **backbone.constructor_kwargs()).eval()
    rebuilt.load_state_dict(backbone.state_dict())
    images = cameras(family.image_size)
    expected = run(backbone, images).action
    assert th.equal(run(rebuilt, images).action, expected) and th.equal(run(copy.deepcopy(backbone), images).action, expected)


def test_each_part_is_frozen_alone(family_checkpoint):
    _, folder, _ = family_checkpoint
    parts = set(FAMILIES[make_backbone(folder, state_dim=3).model.config.model_type].parts)
    assert parts == {"vision", "connector", "text"}
    for part in parts:
        backbone = make_backbone(folder, state_dim=3)
        backbone.freeze([part])
        frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        inside = {id(parameter) for parameter in backbone.parts[part].parameters()}
        assert frozen and {id(dict(backbone.named_parameters())[name]) for name in frozen} == inside


def test_images_of_another_size_are_resized_as_pil_does(family_checkpoint):
    family, folder, _ = family_checkpoint
    backbone = make_backbone(folder, state_dim=3)
    image = cameras(2 * family.image_size, batch=1)[0]
    # Smooth, as pictures are
    image = np.repeat(np.repeat(image[:, ::16, ::16], 16, axis=1), 16, axis=2)[:, : image.shape[1], : image.shape[2]]
    size = {"height": family.image_size, "width": family.image_size}
    processor = TINY_FAMILIES["gemma3"].image_processor
    expected = processor(list(image), size=size, resample=family.image_processor.resample, return_tensors="pt").pixel_values
    seen = backbone._pixels(th.as_tensor(image).permute(0, 3, 1, 2))
    steps = 5 if backbone.model.config.model_type in ("idefics3", "smolvlm") else 1  # which take Lanczos' filter
    assert (seen - expected).abs().max() < 1.01 * steps / 255 / 0.4


def test_weights_are_float32_whatever_the_checkpoint_says(checkpoint):
    backbone = make_backbone(str(checkpoint), state_dim=3)
    weights = AutoModel.from_pretrained(checkpoint, dtype=th.float32).state_dict()
    ours = backbone.model.state_dict()
    assert weights.keys() == ours.keys() and all(th.equal(weights[name], ours[name]) for name in weights)
    assert {p.dtype for p in backbone.parameters()} == {th.float32}, "bfloat16 would swallow small steps"


def test_a_trained_checkpoint_loads_without_its_files(checkpoint, tmp_path, make_model, make_vec_env, make_demonstrations):
    model = make_model(policy_kwargs={"backbone": str(checkpoint), "backbone_kwargs": {}})
    model.replay_buffer.extend(make_demonstrations(2))
    model.learn(16)
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    shutil.rmtree(checkpoint)

    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    policy = VLAPolicy.load(tmp_path / "policy.pt")
    assert np.array_equal(policy.predict(observation, deterministic=True)[0], expected)
    # ... and again, from what was loaded
    loaded.learn(16, reset_num_timesteps=False)
    loaded.save(tmp_path / "again.zip")
    expected, _ = loaded.predict(observation, deterministic=True)
    assert np.array_equal(PPOSelfBC.load(tmp_path / "again.zip").predict(observation, deterministic=True)[0], expected)


def test_image_size_of_models_that_cut_any_image_into_patches(checkpoint, tmp_path):
    assert make_backbone(checkpoint, state_dim=3, image_size=48).image_size == 48
    with pytest.raises(ValueError, match="image_size of this 'smolvlm' model must be a multiple of 16, got 40"):
        make_backbone(checkpoint, state_dim=3, image_size=40)
    TINY_FAMILIES["paligemma"].save(tmp_path / "paligemma")
    with pytest.raises(ValueError, match="image_size of this 'paligemma' model must be 28, what it learned from, got 56"):
        make_backbone(tmp_path / "paligemma", state_dim=3, image_size=56)


def test_adapters_alone_are_no_checkpoint(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds peft's adapters and not the model .*merge_and_unload"):
        make_backbone(tmp_path, state_dim=3)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"image_size": "32"}, TypeError, "image_size must be an integer, got '32', a text: write 32"),
        ({"image_size": (32, 32)}, TypeError, "image_size must be an integer"),
        ({"image_mean": 0.5}, ValueError, "image_mean must be three numbers, one for each colour, got 0.5"),
        ({"image_std": (0.5, "0.5", 0.5)}, TypeError, "image_std must be a number, got '0.5'"),
        ({"resample": "foo"}, ValueError, "resample must be 'bicubic' or 'bilinear', got 'foo'"),
        ({"gradient_checkpointing": "no"}, ValueError, "gradient_checkpointing must be True or False, got 'no'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(checkpoint, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_backbone(checkpoint, state_dim=3, **kwargs)


def test_a_base_model_without_a_chat_template_reads_images_then_text(tmp_path):
    family = replace(TINY_FAMILIES["smolvlm"], marker=None)
    family.save(tmp_path)
    backbone = make_backbone(tmp_path, state_dim=3)
    text = backbone.tokenizer.decode(backbone._tokenize("push", 1, 2))
    assert text == "<fake_token_around_image><global-img><image><image><fake_token_around_image>push"


def test_a_chat_template_without_a_place_for_images_is_refused(tmp_path):
    replace(TINY_FAMILIES["smolvlm"], marker="").save(tmp_path)
    backbone = make_backbone(tmp_path, state_dim=3)
    with pytest.raises(ValueError, match="chat template must mark 2 images by '<image>'"):
        run(backbone, cameras(32))


@pytest.mark.parametrize("name", ["smolvml", "nobody/no-such-model", "./no/such/folder", "/no/such/folder"])
def test_unknown_backbones_are_refused(name):
    with pytest.raises(ValueError, match=f"there is no backbone '{name}': give 'tiny'"):
        make_backbone(name, state_dim=3)


def test_a_family_that_is_not_known_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"is of model_type 'llama'; known are gemma3, .*smolvlm. .*of VLABackbone"):
        make_backbone(str(tmp_path / "llama"), state_dim=3)


def test_a_filter_that_torch_does_not_have_is_refused(checkpoint):
    (file,) = checkpoint.glob("*processor_config.json")
    config = json.loads(file.read_text())
    (config.get("image_processor") or config)["resample"] = 5
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"image processor of '{checkpoint}' resizes by PIL's filter 5, known are"):
        make_backbone(str(checkpoint), state_dim=3)


@pytest.mark.parametrize("files", ["*token*", "*processor*", "*.safetensors"])
def test_a_checkpoint_that_is_not_complete_is_refused(checkpoint, files):
    for path in checkpoint.glob(files):
        path.unlink()
    with pytest.raises(ValueError, match=f"there is no backbone '{checkpoint}'.*complete with weights"):
        make_backbone(str(checkpoint), state_dim=3)


def test_a_shard_that_is_missing_or_broken_is_named(tmp_path):
    model = TINY_FAMILIES["smolvlm"].save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    shard = tmp_path / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{shard} is broken .*: fetch the checkpoint '{tmp_path}' again"):
        make_backbone(str(tmp_path), state_dim=3)
    shard.unlink()
    with pytest.raises(ValueError, match=f"complete with weights.*No such file or directory: {shard}"):
        make_backbone(str(tmp_path), state_dim=3)


def test_weights_that_the_configuration_does_not_describe_are_refused(tmp_path):
    TINY_FAMILIES["smolvlm"].save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("text_model.norm.weight"))
    norm = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of '{tmp_path}' lack 1 tensors .*text_model.norm.weight: fetch"):
        make_backbone(str(tmp_path), state_dim=3)
    save_file({**weights, name: norm[:-1].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of '{tmp_path}' are not those that its config.json describes"):
        make_backbone(str(tmp_path), state_dim=3)


def test_a_checkpoint_keeps_its_patch_embedding(checkpoint):
    with pytest.raises(TypeError, match=r"PretrainedBackbone has no argument \['conv_stem'\]"):
        make_backbone(str(checkpoint), state_dim=3, conv_stem=True)

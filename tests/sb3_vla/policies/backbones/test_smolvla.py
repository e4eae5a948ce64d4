import json
import shutil

import numpy as np
import pytest
import torch as th
from safetensors.torch import load_file, save_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import PPOSelfBC, fine_tune
from sb3_vla.policies.backbones import make_backbone
from sb3_vla.policies.backbones.lerobot_checkpoint import LeRobotCheckpoint
from sb3_vla.policies.backbones.smolvla import SmolVLABackbone

from .tiny_checkpoints import MADE_BY_LEROBOT

PREPROCESSOR = "policy_preprocessor_step_5_normalizer_processor.safetensors"
POSTPROCESSOR = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


@pytest.fixture
def checkpoint(smolvla_checkpoint):
    return smolvla_checkpoint


@pytest.fixture
def make_smolvla(make_expert_model):
    return lambda **kwargs: make_expert_model("smolvla", **kwargs)


def load(checkpoint, state_dim=3, **kwargs):
    return make_backbone(checkpoint, state_dim, vlm=checkpoint / "vlm", **kwargs)


def edit(path, change):
    """Let a file say something else."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def expected_chunks():
    return dict(np.load(MADE_BY_LEROBOT / "expected.npz"))


def test_chunks_are_those_of_lerobot_from_the_same_noise(make_smolvla, make_vec_env):
    expected = expected_chunks()
    n_steps = int(expected["n_steps"])
    policy = make_smolvla(env=make_vec_env(chunk_size=6), head_kwargs={"n_flow_steps": n_steps}).policy
    backbone = policy.backbone
    with th.no_grad():
        images = {name: th.as_tensor(expected[name]).permute(0, 3, 1, 2) for name in ("image", "image_wrist")}
        state = policy.state_normalizer(th.as_tensor(expected["state"]))
        distribution = policy.head(backbone(backbone.encode_images(images), expected["prompts"].tolist(), state))
        chunks = distribution.to_env(distribution.follow(th.as_tensor(expected["noise"])))
    assert np.abs(chunks.numpy() - expected["chunk"]).max() < 1e-4


def test_statistics_travel_with_the_model(make_smolvla, checkpoint, make_demonstrations, tmp_path):
    state, action = load_file(checkpoint / PREPROCESSOR), load_file(checkpoint / POSTPROCESSOR)
    model = make_smolvla()
    fine_tune(model, make_demonstrations(4), n_epochs=1, held_out_fraction=0.25)
    model.save(tmp_path / "model.zip")
    shutil.rmtree(checkpoint)
    for policy in (model.policy, PPOSelfBC.load(tmp_path / "model.zip").policy):
        normalized = policy.state_normalizer((state["observation.state.mean"] + state["observation.state.std"]).unsqueeze(0))
        assert th.allclose(normalized, th.ones(1, 3), atol=1e-5)
        one = th.ones(1, 3, 2)
        assert th.allclose(policy.head.to_env(one)[0, 0], action["action.mean"] + action["action.std"], atol=1e-6)
        assert th.allclose(policy.head.to_unit(policy.head.to_env(one)), one, atol=1e-5)


def test_without_statistics_the_bounds_and_the_demonstrations_count(make_smolvla, make_demonstrations):
    model = make_smolvla(backbone_kwargs={"use_statistics": False})
    demonstrations = make_demonstrations(4)
    fine_tune(model, demonstrations, n_epochs=1, held_out_fraction=0.25)
    assert th.equal(model.policy.head.to_env(th.ones(1, 3, 2)), th.ones(1, 3, 2))
    states = th.as_tensor(np.concatenate([demo.observations["state"] for demo in demonstrations]))
    assert model.policy.state_normalizer(states)[:, :2].mean().abs() < 0.2


def test_a_state_is_not_normalised_twice(make_smolvla, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    with pytest.raises(ValueError, match=r"VecNormalize normalises 'state'.*leave it out of norm_obs_keys"):
        make_smolvla(env=env)
    make_smolvla(env=env, backbone_kwargs={"use_statistics": False})


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")]
)
def test_ranges_become_minus_one_to_one(mode, low, high, checkpoint):
    def use(content):
        for step in content["steps"]:
            if "state_file" in step:
                step["config"]["norm_map"]["ACTION"] = mode

    edit(checkpoint / "policy_postprocessor.json", use)
    # LeRobot's statistics have the number of frames, too
    statistics = {low: th.tensor([2.0, -1.0]), high: th.tensor([4.0, 0.0]), "count": th.tensor([9.0])}
    save_file({f"action.{name}": value for name, value in statistics.items()}, checkpoint / POSTPROCESSOR)
    action = load(checkpoint).normalization["action"]
    assert action.shift == [3.0, -0.5] and action.scale == [1.0, 0.5]


def test_numbers_that_are_not_normalised_are_the_environments(checkpoint):
    edit(
        checkpoint / "policy_postprocessor.json",
        lambda content: content["steps"][0]["config"]["norm_map"].update(ACTION="IDENTITY"),
    )
    action = load(checkpoint).normalization["action"]
    assert action.shift == [0.0, 0.0] and action.scale == [1.0, 1.0]


def test_a_checkpoint_without_statistics_has_none(checkpoint):
    for path in checkpoint.glob("policy_*"):
        path.unlink()
    assert load(checkpoint).normalization == {}


def test_what_pads_an_instruction_changes_nothing_and_a_picture_keeps_its_proportions(checkpoint):
    backbone = load(checkpoint).eval()
    wide = th.randint(0, 256, (1, 3, 8, 16), dtype=th.uint8)
    pixels = backbone._pixels(wide)
    assert pixels.shape == (1, 3, 32, 32) and (pixels[:, :, :16] == -1).all() and (pixels[:, :, 16:] > -1).any()
    images = backbone.encode_images({"image": wide.repeat(2, 1, 1, 1)})
    with th.no_grad():
        together = backbone(images, ["push", "open the drawer"], th.zeros(2, 3)).action
        alone = backbone(images[:1], ["push"], th.zeros(1, 3)).action
    assert th.allclose(together[0], alone[0], atol=1e-6) and not th.allclose(together[0], together[1], atol=1e-4)


def test_chunks_states_and_instructions_that_it_does_not_know_are_refused(checkpoint, make_smolvla, make_vec_env):
    with pytest.raises(ValueError, match="draws chunks of 6 actions of 8 numbers, the environment takes 7 of 2"):
        make_smolvla(env=make_vec_env(chunk_size=7))
    with pytest.raises(ValueError, match="SmolVLA's state has at most 8 numbers, the environment's has 9"):
        load(checkpoint, state_dim=9)
    backbone = load(checkpoint)
    images = backbone.encode_images({"image": th.zeros(1, 3, 8, 8, dtype=th.uint8)})
    with pytest.raises(ValueError, match="has 31 tokens, this model reads at most 24: make it shorter"):
        backbone(images, ["z" * 30], th.zeros(1, 3))


def test_statistics_of_another_length_are_refused(checkpoint, make_smolvla):
    match = rf"{PREPROCESSOR} of .* has statistics of states of 3 numbers, the environment's have 4: .*use_statistics=False"
    with pytest.raises(ValueError, match=match):
        load(checkpoint, state_dim=4)
    assert isinstance(load(checkpoint, state_dim=4, use_statistics=False), SmolVLABackbone)
    save_file({"action.mean": th.zeros(3), "action.std": th.ones(3)}, checkpoint / POSTPROCESSOR)
    with pytest.raises(ValueError, match=rf"{POSTPROCESSOR} of .* of actions of 3 numbers, the environment's have 2"):
        make_smolvla()


@pytest.mark.parametrize("file", ["model.safetensors", PREPROCESSOR, POSTPROCESSOR])
def test_missing_and_broken_files_are_named(file, checkpoint):
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{file} is broken .*: fetch the checkpoint .* again"):
        load(checkpoint)
    (checkpoint / file).unlink()
    with pytest.raises(ValueError, match=f"the checkpoint .* has no {file}: give the folder of a whole one"):
        load(checkpoint)


def test_weights_of_another_model_are_refused(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.action_in_proj.bias"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors of .* has not the weights .*action_in_proj.bias"):
        load(checkpoint)


def test_weights_that_are_shared_are_found(checkpoint):
    expected = load(checkpoint).model.get_input_embeddings().weight
    weights = load_file(checkpoint / "model.safetensors")
    # safetensors holds only one of two names of a tensor
    name = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
    weights["model.vlm_with_expert.vlm.lm_head.weight"] = weights.pop(name)
    save_file(weights, checkpoint / "model.safetensors")
    assert th.equal(load(checkpoint).model.get_input_embeddings().weight, expected)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attention_mode", "self_attn"),
        ("add_image_special_tokens", True),
        ("adapt_to_pi_aloha", True),
        ("num_expert_layers", 1),
        ("resize_imgs_with_padding", None),
    ],
)
def test_settings_that_are_not_supported_are_refused(setting, value, checkpoint):
    edit(checkpoint / "config.json", lambda content: content.update({setting: value}))
    with pytest.raises(ValueError, match=f"config.json says .*'{setting}': {value!r}.*, which is not supported"):
        load(checkpoint)


def test_other_policies_of_lerobot_and_other_language_models_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"needs config.json and the tokenizer of 'nobody/no-vlm'.*dict\(vlm=FOLDER\)"):
        make_backbone(checkpoint, 3, vlm="nobody/no-vlm")
    with pytest.raises(TypeError, match=r"has no argument \['resample'\]"):
        load(checkpoint, resample="bicubic")
    edit(checkpoint / "vlm/config.json", lambda content: content.update(model_type="idefics3"))
    with pytest.raises(ValueError, match="is of model_type 'idefics3', not 'smolvlm': name the right one"):
        load(checkpoint)
    edit(checkpoint / "config.json", lambda content: content.update(type="act"))
    with pytest.raises(ValueError, match=r"config.json of .* is of LeRobot's type 'act'; of these only 'smolvla' is known"):
        load(checkpoint)


def test_a_way_of_normalising_that_is_not_known_is_refused(checkpoint):
    edit(
        checkpoint / "policy_postprocessor.json",
        lambda content: content["steps"][0]["config"]["norm_map"].update(ACTION="QUANTILE10"),
    )
    with pytest.raises(ValueError, match=rf"{POSTPROCESSOR} of .* normalises by 'QUANTILE10' .*use_statistics=False"):
        LeRobotCheckpoint(str(checkpoint)).normalization("policy_postprocessor", "unnormalizer_processor", "action", "ACTION")

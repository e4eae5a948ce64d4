"""Several frames: VLAPolicy under SB3's ``VecFrameStack``."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from sb3_vla import BackboneFeatures, PPOSelfBC, VLABackbone, fine_tune


class Witness(VLABackbone):
    """Keeps what it was shown."""

    def __init__(self, state_dim: int) -> None:
        super().__init__(features_dim=4)
        self.linear = th.nn.Linear(state_dim, 8)

    def encode_images(self, images):
        self.images = images
        return th.zeros(len(images["image"]), 1)

    def forward(self, image_tokens, prompts, state):
        self.prompts, self.state = prompts, state
        return BackboneFeatures(*self.linear(state).split(4, dim=1))

    def constructor_kwargs(self):
        return {}


def transposed_before(env):
    return VecFrameStack(VecTransposeImage(env), 2)


def transposed_after(env):
    return VecFrameStack(env, 2)


@pytest.mark.parametrize("stack", [transposed_before, transposed_after])
def test_backbone_sees_stacked_frames_one_by_one(stack, make_model, make_vec_env):
    model = make_model(stack(make_vec_env()), {"backbone": Witness, "backbone_kwargs": {}, "head_kwargs": {"hidden_dim": 8}})
    alone = VecTransposeImage(make_vec_env())
    assert model.observation_space["image"].shape == (6, 8, 8) and model.observation_space["instruction"].shape == (32,)
    before, stacked, latest = None, model.env.reset(), alone.reset()
    for _ in range(2):
        chunks, _ = model.predict(stacked)
        seen = model.policy.backbone
        assert list(seen.images) == ["image[-1]", "image"]
        expected = np.zeros_like(latest["image"]) if before is None else before["image"]
        assert np.array_equal(seen.images["image[-1]"], expected)
        assert np.array_equal(seen.images["image"], latest["image"])
        assert seen.prompts == ["push", "pull the lever"]
        states = np.concatenate([np.zeros((2, 3)) if before is None else before["state"], latest["state"]], axis=1)
        assert np.allclose(seen.state, states)
        before = latest
        (stacked, _, dones, _), (latest, *_) = model.env.step(chunks), alone.step(chunks)
        assert not dones.any()


def test_order_of_frames_matters(make_model, make_vec_env):
    model = make_model(VecFrameStack(make_vec_env(), 2))
    model.env.reset()
    # Two frames that are not black
    observation, *_ = model.env.step(np.ones((2, 3, 2), np.float32))
    expected, _ = model.predict(observation, deterministic=True)
    swapped, _ = model.predict({**observation, "image": np.roll(observation["image"], 3, axis=1)}, deterministic=True)
    assert np.abs(swapped - expected).max() > 1e-4


@pytest.mark.parametrize("frozen", [(), ("vision", "connector"), ("all",)])
def test_learns_and_imitates_itself_on_stacked_frames(frozen, make_model, make_vec_env, tmp_path):
    env = VecFrameStack(make_vec_env(), 2)
    model = make_model(env, {"frozen": frozen, "head_kwargs": {"log_std_init": 0.5}}, n_steps=32, bc_weight=1.0)
    model.learn(96)
    assert model.logger.name_to_value["train/bc_loss"] > 0 and np.isfinite(model.logger.name_to_value["train/value_loss"])
    for demonstration in (demo for held in model.replay_buffer.episodes.values() for demo in held):
        images, prompts = demonstration.observations["image"], demonstration.observations["instruction"]
        assert not images[0, :3].any() and images[0, 3:].any() and not prompts[0, :16].any()
        assert np.array_equal(images[1:, :3], images[:-1, 3:])
    observation = env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=VecFrameStack(make_vec_env(), 2))
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())


@pytest.mark.parametrize("stack", [transposed_before, transposed_after])
def test_demonstrations_are_stacked_as_the_wrapper_does(stack, make_model, make_vec_env, make_demonstrations):
    # Chunks of one step, so that there are more of them than frames in a stack
    single = make_demonstrations(1, chunk_size=1)
    model = make_model(stack(make_vec_env(1, chunk_size=1)))
    assert model.replay_buffer.extend(single) == 1
    seen = [model.env.reset()]
    for chunk in single[0].actions[:-1]:
        seen.append(model.env.step(chunk[np.newaxis])[0])
    (stacked,) = model.replay_buffer.episodes["push"]
    assert len(stacked) == len(seen) == 4
    for key in ("image", "instruction", "state", "privileged"):
        assert np.array_equal(stacked.observations[key], [step[key][0] for step in seen]), key
    # What the model itself plays is stacked already
    assert model.replay_buffer.extend([stacked]) == 1
    assert np.array_equal(model.replay_buffer.episodes["push"][1].observations["image"], stacked.observations["image"])


def test_stacking_before_normalising_works_and_after_it_is_refused_for_imitation(
    make_model, make_vec_env, make_demonstrations
):
    def stacked_last(**kwargs):
        return VecFrameStack(VecNormalize(make_vec_env(), gamma=0.9, norm_obs_keys=["state"], **kwargs), 2)

    model = make_model(VecNormalize(VecFrameStack(make_vec_env(), 2), gamma=0.9, norm_obs_keys=["state"]), bc_weight=1.0)
    model.learn(48)
    assert len(model.replay_buffer) > 0
    message = r"VecFrameStack stands around VecNormalize.*VecNormalize\(VecFrameStack\(env, n_stack\)\).*bc_weight=0"
    with pytest.raises(ValueError, match=message):
        make_model(stacked_last())
    with pytest.raises(ValueError, match=message):
        model.set_env(stacked_last())
    without_bc = make_model(stacked_last(), bc_weight=0).learn(16)
    before = without_bc.get_vec_normalize_env().obs_rms["state"].mean.copy()
    with pytest.raises(ValueError, match=r"VecFrameStack stands around VecNormalize.*VecNormalize\(VecFrameStack") as refused:
        fine_tune(without_bc, make_demonstrations(2), n_epochs=1, progress=False)
    assert "bc_weight" not in str(refused.value)
    assert np.array_equal(without_bc.get_vec_normalize_env().obs_rms["state"].mean, before)
    # Only rewards are normalised: demonstrations are as they were
    model = make_model(stacked_last(norm_obs=False), bc_weight=1.0).learn(48)
    assert len(model.replay_buffer) > 0

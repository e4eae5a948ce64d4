import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import BackboneFeatures, PPOSelfBC, VLABackbone, VLAPolicy
from sb3_vla.evaluation.normalize_like import normalize_like
from sb3_vla.policies.encoded import NOT_ENCODED, PolicyInput
from sb3_vla_envs import encode_instruction


@pytest.fixture
def model(make_model):
    return make_model()


def random_observation(space: spaces.Dict, n: int, seed: int = 0, prompts=("push",)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    observation = {}
    for key, box in space.spaces.items():
        if key == "instruction":
            observation[key] = np.stack([encode_instruction(prompts[i % len(prompts)], *box.shape) for i in range(n)])
        elif box.dtype == np.uint8:
            observation[key] = rng.integers(0, 256, (n, *box.shape), dtype=np.uint8)
        else:
            observation[key] = rng.normal(size=(n, *box.shape)).astype(np.float32)
    return observation


def tensors(policy, n=5, **kwargs):
    return obs_as_tensor(random_observation(policy.observation_space, n, **kwargs), policy.device)


@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("noise_correlation", [0.0, 0.6])
def test_forward_and_evaluate_actions_agree(privileged, noise_correlation, make_model, make_vec_env):
    policy = make_model(make_vec_env(privileged=privileged), {"head_kwargs": {"noise_correlation": noise_correlation}}).policy
    obs = tensors(policy, prompts=("push", "pull the lever"))
    actions, values, log_prob = policy(obs)
    assert actions.shape == (5, 3, 2) and values.shape == (5, 1) and log_prob.shape == (5,)
    # In the rollout buffer actions are flat
    values_again, log_prob_again, entropy = policy.evaluate_actions(obs, actions.flatten(1))
    assert entropy.shape == (5,)
    assert th.allclose(log_prob, log_prob_again, atol=1e-5) and th.allclose(values, values_again, atol=1e-5)
    assert th.allclose(values, policy.predict_values(obs), atol=1e-5)
    assert th.allclose(policy.get_distribution(obs).log_prob(actions), log_prob, atol=1e-5)


def test_deterministic_forward_is_the_mean(model):
    obs = tensors(model.policy)
    actions, _, _ = model.policy(obs, deterministic=True)
    assert th.equal(actions, model.policy.get_distribution(obs).mode())


def test_predict_is_a_chunk_within_bounds(make_model):
    model = make_model(policy_kwargs={"head_kwargs": {"log_std_init": 1.0}})
    observation = random_observation(model.observation_space, 20)
    actions, state = model.predict(observation)
    assert actions.shape == (20, 3, 2) and state is None
    assert np.abs(actions).max() == 1.0, "with this standard deviation some are clipped"
    single, _ = model.predict({key: value[0] for key, value in observation.items()})
    assert single.shape == (3, 2)


def test_predict_is_repeatable_if_deterministic_and_varies_if_sampled(model):
    observation = random_observation(model.observation_space, 3)
    first, second = (model.predict(observation, deterministic=True)[0] for _ in range(2))
    assert np.array_equal(first, second)
    first, second = (model.predict(observation, deterministic=False)[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_predict_needs_no_privileged_observation_and_ignores_it(model):
    observation = random_observation(model.observation_space, 2)
    expected, _ = model.predict(observation, deterministic=True)
    observation["privileged"] += 100
    assert np.array_equal(model.predict(observation, deterministic=True)[0], expected)
    del observation["privileged"]
    assert np.array_equal(model.predict(observation, deterministic=True)[0], expected)


def test_value_reads_privileged_observations_alone_where_there_are_any(model):
    policy = model.policy
    obs = tensors(policy)
    value = policy.predict_values(obs)
    moved = {**obs, "privileged": obs["privileged"] + 1}
    assert not th.allclose(policy.predict_values(moved), value)
    assert th.equal(policy.predict_values({**moved, "privileged": obs["privileged"], "state": obs["state"] + 1}), value)


def test_value_reads_the_backbone_where_there_are_none(make_model, make_vec_env):
    policy = make_model(make_vec_env(privileged=False)).policy
    obs = tensors(policy)
    moved = {**obs, "state": obs["state"] + 1}
    assert not th.allclose(policy.predict_values(moved), policy.predict_values(obs))
    policy.predict_values(obs).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.backbone.parameters())


def test_images_with_channels_last_or_first(make_env, model):
    observation, _ = make_env().reset()
    assert observation["image"].shape == (8, 8, 3) and model.observation_space["image"].shape == (3, 8, 8)
    last, _ = model.predict(observation, deterministic=True)
    first, _ = model.predict({**observation, "image": np.moveaxis(observation["image"], -1, 0)}, deterministic=True)
    batch, _ = model.predict({key: value[None] for key, value in observation.items()}, deterministic=True)
    assert np.array_equal(last, first) and np.allclose(last, batch[0], atol=1e-6)


@pytest.mark.parametrize("key", ["image", "state", "instruction"])
def test_every_input_of_the_actor_matters(key, model):
    observation = random_observation(model.observation_space, 1)
    expected, _ = model.predict(observation, deterministic=True)
    other = random_observation(model.observation_space, 1, seed=1, prompts=("pull the lever",))
    actions, _ = model.predict({**observation, key: other[key]}, deterministic=True)
    assert np.abs(actions - expected).max() > 1e-4


def test_second_camera_matters(make_env, make_model):
    class TwoCameras(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            box = spaces.Box(0, 255, (16, 16, 3), np.uint8)
            self.observation_space = spaces.Dict({**env.observation_space.spaces, "image_wrist": box})

        def observation(self, observation):
            return {**observation, "image_wrist": np.zeros((16, 16, 3), np.uint8)}

    model = make_model(TwoCameras(make_env()))
    assert model.policy.image_keys == ["image", "image_wrist"]
    observation = random_observation(model.observation_space, 1)
    expected, _ = model.predict(observation, deterministic=True)
    observation["image_wrist"] = 255 - observation["image_wrist"]
    assert np.abs(model.predict(observation, deterministic=True)[0] - expected).max() > 1e-4
    model.learn(8)


def test_backbone_stays_in_evaluation_mode(make_model, tiny_config):
    model = make_model()
    assert any(module.attention_dropout == 0.5 for module in model.policy.modules() if hasattr(module, "attention_dropout"))
    obs = tensors(model.policy)
    # Freshly built, and put in training mode either way
    for put_in_training_mode in (lambda: None, lambda: model.policy.set_training_mode(True), model.policy.train):
        put_in_training_mode()
        assert not any(module.training for module in model.policy.backbone.modules())
    assert model.policy.training and model.policy.head.training
    assert th.equal(model.policy.get_distribution(obs).mode(), model.policy.get_distribution(obs).mode())
    # ... and dropout is really there to be turned on
    model.policy.backbone.train()
    assert not th.equal(model.policy.get_distribution(obs).mode(), model.policy.get_distribution(obs).mode())


def test_sb3_does_not_overwrite_the_backbones_weights(make_model, tiny_config):
    """Orthogonal initialisation makes W W^T a multiple of the identity."""
    weight = make_model().policy.backbone.model.text_model.layers[0].self_attn.q_proj.weight
    gram = weight @ weight.T
    assert (gram - th.diag(gram.diag())).abs().max() > 1e-2


def test_normalisers_are_fitted_on_the_right_numbers(model):
    policy = model.policy
    assert policy.unfitted_keys == ["state", "privileged"]
    obs = tensors(policy, 200)
    obs["state"], obs["privileged"] = 3 * obs["state"] + 5, 0.1 * obs["privileged"] - 2
    policy.fit_normalizers(obs)
    assert policy.unfitted_keys == []
    for normalizer, key in ((policy.state_normalizer, "state"), (policy.privileged_normalizer, "privileged")):
        normalised = normalizer(obs[key])
        assert th.allclose(normalised.mean(0), th.zeros(1), atol=1e-4)
        assert th.allclose(normalised.std(0, correction=0), th.ones(1), atol=1e-3)


def test_actor_and_critic_read_standardised_numbers(model):
    policy, obs = model.policy, tensors(model.policy, 50)
    standardised = {**obs}
    for key in ("state", "privileged"):
        standardised[key] = (obs[key] - obs[key].mean(0)) / obs[key].std(0, correction=0)
    actions, values = policy.get_distribution(standardised).mode(), policy.predict_values(standardised)
    policy.fit_normalizers(obs)
    assert th.allclose(policy.get_distribution(obs).mode(), actions, atol=1e-4)
    assert th.allclose(policy.predict_values(obs), values, atol=1e-4)
    assert not th.allclose(policy.get_distribution(standardised).mode(), actions, atol=1e-4)


def test_policy_alone_saves_and_loads(tmp_path, make_model):
    model = make_model(policy_kwargs={"head_kwargs": {"noise_correlation": 0.3, "hidden_dim": 16}})
    model.policy.fit_normalizers(tensors(model.policy, 50))
    model.policy.head.noise_scale = 0.25
    observation = random_observation(model.observation_space, 3)
    model.policy.save(tmp_path / "policy.pt")
    loaded = VLAPolicy.load(tmp_path / "policy.pt", device="cpu")
    expected, _ = model.policy.predict(observation, deterministic=True)
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert loaded.critic_net_arch == [16] and loaded.head.hidden_dim == 16
    assert loaded.head.noise_correlation == model.policy.head.noise_correlation == 0.3
    assert loaded.head.noise_scale == 0.25
    obs = tensors(model.policy)
    assert th.equal(loaded.predict_values(obs), model.policy.predict_values(obs))


def test_a_policy_alone_remembers_that_its_observations_are_normalised(tmp_path, make_model, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    make_model(env).learn(16).policy.save(tmp_path / "policy.pt")
    loaded = VLAPolicy.load(tmp_path / "policy.pt")
    assert loaded.normalized_keys == ("state",)
    with pytest.raises(ValueError, match="without the statistics"):
        normalize_like(loaded, make_vec_env())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_is_refused_by_name(value, model):
    observation = random_observation(model.observation_space, 2)
    observation["privileged"][:] = np.nan  # which is not read
    model.policy.predict(observation)
    observation["state"][1, 0] = value
    for predict in (model.predict, model.policy.predict):
        with pytest.raises(FloatingPointError, match="observation 'state' has NaN or infinity"):
            predict(observation)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_neither_act_nor_are_saved(value, model, tmp_path):
    model.policy.save(tmp_path / "policy.pt")
    good = (tmp_path / "policy.pt").read_bytes()
    with th.no_grad():
        model.policy.head.mean_net[-1].bias[0] = value
    with pytest.raises(FloatingPointError, match=r"head\.mean_net\.2\.bias holds NaN or infinity: it can't act"):
        model.predict(random_observation(model.observation_space, 2), deterministic=True)
    with pytest.raises(FloatingPointError, match=r"head\.mean_net\.2\.bias holds NaN or infinity: it is not saved"):
        model.policy.save(tmp_path / "policy.pt")
    assert (tmp_path / "policy.pt").read_bytes() == good


def test_frozen_parts_stay_frozen_when_loaded(tmp_path, make_model):
    model = make_model(policy_kwargs={"frozen": ("vision",)})
    model.policy.save(tmp_path / "policy.pt")
    model.save(tmp_path / "model.zip")
    for policy in (VLAPolicy.load(tmp_path / "policy.pt"), PPOSelfBC.load(tmp_path / "model.zip").policy):
        assert not any(p.requires_grad for p in policy.backbone.parts["vision"].parameters())
        assert all(p.requires_grad for p in policy.backbone.parts["text"].parameters())


def test_deepcopy_is_independent(model):
    copied = copy.deepcopy(model.policy)
    observation = random_observation(model.observation_space, 2)
    expected, _ = model.policy.predict(observation, deterministic=True)
    assert np.array_equal(copied.predict(observation, deterministic=True)[0], expected)
    with th.no_grad():
        copied.head.mean_net[-1].bias += 0.3
    assert np.array_equal(model.policy.predict(observation, deterministic=True)[0], expected)
    assert not np.array_equal(copied.predict(observation, deterministic=True)[0], expected)


FROZEN = {"image_tokens": ("vision", "connector"), "features": ("all",)}


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("key", FROZEN)
def test_what_frozen_parts_computed_stands_for_what_they_read(key, autocast, make_model):
    policy = make_model(policy_kwargs={"frozen": FROZEN[key], "autocast": autocast}).policy
    obs = tensors(policy, prompts=("push", "pull the lever"))
    actions = policy(obs)[0].detach()
    encoded = policy.precompute(obs)
    assert set(encoded.tensors) == ({"image_tokens"} if key == "image_tokens" else {"action", "value"})
    step = policy.adapter_class(policy).act(obs)
    assert all(th.equal(tensor, step.encoded.tensors[name]) for name, tensor in encoded.tensors.items())
    read = {"image_tokens": {"state", "instruction", "privileged"}, "features": {"privileged"}}[key]
    assert set(policy.stored_keys) == read
    if key == "image_tokens":
        assert encoded.image_tokens.dtype == (th.float32 if autocast is None else th.bfloat16), "in its own precision"

    def gradient(*batch):
        policy.zero_grad()
        values, log_prob, _ = policy.adapter_class(policy).evaluate(PolicyInput(*batch), actions)
        (values.sum() + log_prob.sum()).backward()
        return log_prob, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}

    log_prob, expected = gradient(obs)
    log_prob_again, got = gradient({name: obs[name] for name in read}, encoded)
    assert th.equal(log_prob, log_prob_again)
    assert got.keys() == expected.keys() and all(th.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize("frozen", [(), *FROZEN.values()])
@pytest.mark.parametrize("privileged", [True, False])
def test_batches_encoded_together_are_as_if_encoded_alone(frozen, privileged, make_model, make_vec_env):
    policy = make_model(make_vec_env(privileged=privileged), policy_kwargs={"frozen": frozen}).policy
    first, second = tensors(policy, 4, prompts=("push", "pull the lever")), tensors(policy, 3, seed=1)
    stored = PolicyInput({key: second[key] for key in policy.stored_keys}, policy.precompute(second))
    calls = []
    policy.backbone.register_forward_hook(lambda *_: calls.append(1))
    together = policy.encode_together(PolicyInput(first), stored)
    assert len(calls) == 1, "for both, or, with everything frozen, for the batch that was not precomputed"
    actions = th.zeros(4, 3, 2)
    for obs, encoded in zip((first, second), together, strict=True):
        n = len(obs["state"])
        adapter = policy.adapter_class(policy)
        expected, got = (adapter.evaluate(seen, actions[:n]) for seen in (PolicyInput(obs), encoded))
        assert all(th.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("needed", [[True, False, True, True], [False] * 4])
@pytest.mark.parametrize("frozen", [(), FROZEN["image_tokens"]])
def test_features_are_computed_where_they_are_needed(needed, frozen, make_model):
    policy = make_model(policy_kwargs={"frozen": frozen}).policy
    obs = tensors(policy, 4, prompts=("push", "pull the lever"))
    stored, encoded = {key: obs[key] for key in policy.stored_keys}, policy.precompute(obs)
    read = []
    policy.backbone.register_forward_hook(lambda module, args, output: read.append(len(args[1])))
    features, expected = policy.encode(stored, encoded, th.tensor(needed)), policy.encode(stored, encoded)
    assert read == [sum(needed) or 1, 4], "ranks with sharded layers wait for each other, so that it always runs"
    computed = th.tensor(needed if any(needed) else [True, False, False, False])
    for part, whole in zip(features[:2], expected[:2], strict=True):
        assert th.allclose(part[computed], whole[computed], atol=1e-5) and whole[~computed].any()
        assert not part[~computed].any()


@pytest.mark.parametrize("frozen", [(), ("vision",), ("text",)])
def test_nothing_is_precomputed_where_the_image_encoder_learns(frozen, make_model):
    policy = make_model(policy_kwargs={"frozen": frozen}).policy
    assert policy.precompute(tensors(policy)) == NOT_ENCODED
    assert set(policy.stored_keys) == set(policy.observation_space)


def test_frozen_version_changes_with_the_frozen_weights_alone(make_model):
    model = make_model(policy_kwargs={"frozen": FROZEN["image_tokens"]})
    before = model.policy.frozen_version()
    model.learn(16)
    assert model.policy.frozen_version() == before
    model.policy.load_state_dict(model.policy.state_dict())
    assert model.policy.frozen_version() != before


@pytest.mark.parametrize("privileged", [True, False])
def test_critic_values_have_a_gradient_for_the_critic_alone(privileged, make_model, make_vec_env):
    policy = make_model(make_vec_env(privileged=privileged)).policy
    values = policy.adapter_class(policy).critic_values(PolicyInput(obs := tensors(policy)))
    assert th.equal(values, policy.predict_values(obs))
    values.sum().backward()
    with_gradient = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert with_gradient == {"critic"}


@pytest.mark.parametrize("fast", [True, False])
def test_auto_autocast_is_bfloat16_where_the_processor_has_it(fast, make_model, monkeypatch):
    monkeypatch.setattr(th.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(th.cpu, "_is_amx_tile_supported", lambda: False)
    auto, named = (
        make_model(policy_kwargs={"autocast": autocast}).policy for autocast in ("auto", "bfloat16" if fast else None)
    )
    obs = tensors(auto)
    assert th.equal(auto.get_distribution(obs).mode(), named.get_distribution(obs).mode())


def test_compiled_parts_give_the_same_and_can_be_saved(make_model, make_vec_env, tmp_path, monkeypatch):
    compile_module, compiled = th.nn.Module.compile, []

    def compile_without_a_compiler(module):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager")

    monkeypatch.setattr(th.nn.Module, "compile", compile_without_a_compiler)
    model, plain = make_model(policy_kwargs={"compile": True}), make_model()
    assert len(compiled) == 3, "vision, connector, text"
    observation = random_observation(model.observation_space, 3, prompts=("push", "pull the lever"))
    expected, _ = plain.predict(observation, deterministic=True)
    assert np.allclose(model.predict(observation, deterministic=True)[0], expected, atol=1e-5)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert np.allclose(loaded.predict(observation, deterministic=True)[0], expected, atol=1e-5)
    assert np.allclose(copy.deepcopy(model.policy).predict(observation, deterministic=True)[0], expected, atol=1e-5)


@pytest.mark.parametrize("autocast", ["bfloat16"])
def test_autocast_rounds_the_backbone_but_not_the_heads(autocast, make_model):
    exact, rounded = make_model().policy, make_model(policy_kwargs={"autocast": autocast}).policy
    rounded.load_state_dict(exact.state_dict())
    obs = tensors(exact)
    a, b = exact.get_distribution(obs).mode(), rounded.get_distribution(obs).mode()
    assert b.dtype == th.float32 and not th.equal(a, b) and th.allclose(a, b, atol=0.1)
    values = rounded.predict_values(obs)
    assert values.dtype == th.float32 and th.equal(values, exact.predict_values(obs))


def test_log_std_is_one_per_primitive_dimension(make_model, record_logs):
    model = make_model(policy_kwargs={"head_kwargs": {"log_std_init": -0.7}})
    logs = record_logs(model)
    assert model.policy.log_std.shape == (2,)
    model.learn(16)
    assert logs[-1]["train/std"] == pytest.approx(np.exp(-0.7), abs=0.01)


def test_a_backbone_of_the_users_own(make_model, make_vec_env, tmp_path):
    model = make_model(policy_kwargs={"backbone": PixelSum, "backbone_kwargs": {"scale": 3.0}}).learn(16)
    assert model.policy.backbone.prompts_seen <= {"push", "pull the lever"} != set()
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert loaded.policy.backbone.scale == 3.0
    with pytest.raises(ValueError, match=r"PixelSum has no part 'vision'.*\['all'\]"):
        make_model(policy_kwargs={"backbone": PixelSum, "backbone_kwargs": {"scale": 3.0}, "frozen": ("vision",)})


class PixelSum(VLABackbone):
    """The contract at its smallest."""

    def __init__(self, state_dim: int, scale: float) -> None:
        super().__init__(features_dim=4)
        self.scale = scale
        self.linear = th.nn.Linear(state_dim + 1, 8)
        self.prompts_seen: set[str] = set()

    def encode_images(self, images):
        assert images["image"].dtype == th.uint8 and images["image"].shape[1:] == (3, 8, 8)
        return images["image"].float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255

    def forward(self, pixels, prompts, state):
        self.prompts_seen |= set(prompts)
        return BackboneFeatures(*(self.scale * self.linear(th.cat([pixels, state], 1))).split(4, dim=1))

    def constructor_kwargs(self):
        return {"scale": self.scale}


# --- Bad input --------------------------------------------------------------------------------------------------------


IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)
STATE = spaces.Box(-1, 1, (3,), np.float32)
INSTRUCTION = spaces.Box(0, 255, (16,), np.uint8)
OBSERVATIONS = spaces.Dict(image=IMAGE, state=STATE, instruction=INSTRUCTION)
ACTIONS = spaces.Box(-1, 1, (3, 2), np.float32)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "kwargs", "message"),
    [
        (STATE, ACTIONS, {}, r"Dict observation.*image.*Box\(-1.0.*CameraObservation"),
        (spaces.Dict(state=STATE), ACTIONS, {}, r"\['image', 'instruction'\].*has \['state'\].*CameraObservation"),
        (
            spaces.Dict(image_wrist=IMAGE, state=STATE, instruction=INSTRUCTION),
            ACTIONS,
            {},
            r"\['image'\].*'image_wrist'.*CameraObservation",
        ),
        (
            spaces.Dict(
                image=spaces.Box(0, 255, (6, 8, 8), np.uint8), state=STATE, instruction=spaces.Box(0, 255, (15,), np.uint8)
            ),
            ACTIONS,
            {},
            r"3 channels.*VecFrameStack.*'image': 6.*15 bytes",
        ),
        (
            spaces.Dict(image=spaces.Box(0, 255, (4, 8, 8), np.uint8), state=STATE, instruction=INSTRUCTION),
            ACTIONS,
            {},
            r"3 channels.*'image': 4.*RGB",
        ),
        (
            spaces.Dict(image=spaces.Box(-10, 10, (3, 8, 8), np.float32), state=STATE, instruction=INSTRUCTION),
            ACTIONS,
            {},
            r"'image' as a Box.*uint8.*float32.*VecNormalize.*norm_obs_keys",
        ),
        (OBSERVATIONS, spaces.Box(-1, 1, (2,)), {}, r"chunk_size, action_dim.*Box\(-1.0.*\(2,\).*ChunkedActionWrapper"),
        (OBSERVATIONS, spaces.Box(-1, 1, (4, 2, 2)), {}, r"chunk_size, action_dim.*\(4, 2, 2\).*make each action a vector"),
        (OBSERVATIONS, spaces.MultiDiscrete([3] * 4), {}, r"\[3 3 3 3\].*continuous actions alone.*MultiInputPolicy"),
        (OBSERVATIONS, ACTIONS, {"chunk_size": 8}, r"chunk_size is 8.*have 3 actions.*make them equal"),
        (OBSERVATIONS, ACTIONS, {"frozen": ("visoin",)}, r"no part 'visoin'.*connector.*text.*vision"),
        (OBSERVATIONS, ACTIONS, {"autocast": "int8"}, r"autocast.*bfloat16.*'int8'"),
        (OBSERVATIONS, ACTIONS, {"use_sde": True}, "use_sde=False"),
    ],
)
def test_what_does_not_fit_is_refused(observation_space, action_space, kwargs, message, policy_kwargs):
    with pytest.raises(ValueError, match=message):
        VLAPolicy(observation_space, action_space, lambda _: 1e-3, **{**policy_kwargs, **kwargs})


def test_chunk_size_that_fits_is_accepted(policy_kwargs):
    VLAPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, chunk_size=3, **policy_kwargs)


def test_backbone_of_another_kind_is_refused(policy_kwargs):
    with pytest.raises(TypeError, match="a path or a subclass of VLABackbone, got 3"):
        VLAPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, backbone=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head_kwargs": [("hidden_dim", 8)]}, TypeError, r"head_kwargs must be a dictionary.*\[\('hidden_dim', 8\)\].*dict"),
        ({"backbone_kwargs": "tiny"}, TypeError, "backbone_kwargs must be a dictionary.*'tiny'"),
        ({"optimizer_kwargs": 1e-3}, TypeError, "optimizer_kwargs must be a dictionary.*0.001"),
        ({"head_kwargs": {"width": 8}}, TypeError, r"head_kwargs: GaussianHead has no argument \['width'\].*hidden_dim"),
        ({"head_kwargs": {"features_dim": 8}}, TypeError, r"GaussianHead has no argument \['features_dim'\]"),
        ({"head_kwargs": {"hidden_dim": 0}}, ValueError, "hidden_dim must be at least 1, got 0"),
        (
            {"backbone_kwargs": {"size": 8}},
            TypeError,
            r"backbone_kwargs: SmolVLMBackbone has no argument \['size'\].*image_size",
        ),
        ({"optimizer_kwargs": {"lr": 1.0}}, TypeError, r"optimizer_kwargs: Adam has no argument \['lr'\].*weight_decay"),
        ({"critic_net_arch": 256}, TypeError, "critic_net_arch must be a sequence of whole numbers.*256"),
        ({"critic_net_arch": "256"}, TypeError, "critic_net_arch must be a sequence of whole numbers.*'256'"),
        ({"critic_net_arch": None}, TypeError, "critic_net_arch must be a sequence of whole numbers.*None"),
        ({"critic_net_arch": [64.0]}, TypeError, r"critic_net_arch must be a sequence of whole numbers.*64.0"),
        ({"critic_net_arch": [64, 0]}, ValueError, r"critic_net_arch must hold positive.*\[64, 0\]"),
        ({"frozen": 3}, TypeError, "frozen must be a sequence of names, got 3"),
        ({"frozen": "vision"}, TypeError, "frozen must be a sequence of names.*'vision',"),
    ],
)
def test_odd_arguments_are_refused_by_name(arguments, error, message, make_model):
    with pytest.raises(error, match=message):
        make_model(policy_kwargs=arguments)


def test_nothing_stands_for_the_default(make_model):
    model = make_model(policy_kwargs={"frozen": None, "head_kwargs": None, "optimizer_kwargs": None, "critic_net_arch": ()})
    assert model.policy.frozen == () and model.policy.head.hidden_dim == 256


def test_state_dependent_exploration_is_refused(make_model):
    with pytest.raises(ValueError, match=r"no state-dependent exploration.*use_sde=False"):
        make_model(use_sde=True)

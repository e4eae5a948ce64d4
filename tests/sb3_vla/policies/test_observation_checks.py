import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_vla import PPOSelfBC, VLAPolicy
from sb3_vla_envs import ChunkedActionWrapper, encode_instruction


@pytest.fixture
def observation(make_env):
    return make_env().reset(seed=0)[0]


@pytest.mark.parametrize("key", ["instruction", "image"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_whole_numbers_are_read_as_the_bytes_that_they_are(key, dtype, make_model, observation):
    model = make_model()
    expected, _ = model.predict(observation, deterministic=True)
    by_hand = {**observation, key: observation[key].astype(dtype)}
    assert np.array_equal(model.predict(by_hand, deterministic=True)[0], expected)
    other = {**observation, "instruction": encode_instruction("pull the lever", 16)}
    assert not np.array_equal(model.predict(other, deterministic=True)[0], expected), "the prompt matters"


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("instruction", np.full(16, 112, np.float32), r"'instruction'.*0\.\.255.*float32.*encode_instruction"),
        ("instruction", np.full(16, 300), r"'instruction'.*0\.\.255.*int64 from 300 to 300"),
        ("instruction", np.array(["push"]), r"'instruction'.*<U4.*encode_instruction"),
        ("image", np.full((8, 8, 3), 0.5, np.float32), r"'image'.*float32 from 0.5 to 0.5.*255 \* image"),
        ("image", np.full((8, 8, 3), -1), r"'image'.*int64 from -1 to -1"),
    ],
)
def test_what_is_no_byte_is_refused(key, values, message, make_model, make_demonstrations, observation):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.predict({**observation, key: values})
    (demonstration,) = make_demonstrations(1)
    if values.dtype.kind != "U":
        demonstration.observations[key] = np.stack([values] * len(demonstration))
        with pytest.raises(ValueError, match=message):
            model.replay_buffer.add(demonstration)


def test_what_is_missing_is_named(make_model, observation):
    model = make_model()
    del observation["state"]
    with pytest.raises(ValueError, match=r"lacks \['state'\]: VLAPolicy reads \['image', 'instruction', 'state'\]"):
        model.predict(observation)
    with pytest.raises(ValueError, match=r"needs a dictionary.*got ndarray"):
        model.predict(observation["image"])


class Changed(gym.Wrapper):
    """The toy environment with another observation space."""

    def __init__(self, env: gym.Env, **changes: spaces.Space | None) -> None:
        super().__init__(env)
        kept = {**env.observation_space.spaces, **changes}
        self.observation_space = spaces.Dict({key: space for key, space in kept.items() if space is not None})

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action):
        _, reward, terminated, truncated, info = self.env.step(action)
        return self.observation_space.sample(), reward, terminated, truncated, info


BYTES = {"dtype": np.uint8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": spaces.Box(-1, 1, (2, 3))}, r"'state' as a Box of one dimension, got Box.*flatten"),
        ({"state": spaces.Discrete(4)}, r"'state' as a Box of one dimension, got Discrete\(4\)"),
        ({"state": None}, r"needs the observation keys \['state'\].*name what the robot feels of itself 'state'"),
        ({"image": spaces.Box(0, 1, (8, 8, 3))}, r"'image' as a Box\(0, 255.*uint8.*255 \* image"),
        ({"image": spaces.Box(0, 255, (8, 8, 1), **BYTES)}, r"images of 3 channels.*numpy.repeat\(image, 3, axis=-1\)"),
        ({"image": spaces.Box(0, 254, (8, 8, 3), **BYTES)}, r"'image' with the bounds 0 and 255.*declare it as"),
        ({"image": spaces.Box(0, 255, (4, 8, 8, 3), **BYTES)}, r"'image' as a Box\(0, 255.*VecFrameStack, around"),
        ({"instruction": spaces.Box(0, 255, (16,), np.float32)}, r"'instruction' as a Box.*InstructionObservation"),
    ],
)
def test_spaces_that_do_not_fit_are_refused_with_what_to_do(changes, message, make_env, make_model):
    with pytest.raises(ValueError, match=message):
        make_model(DummyVecEnv([lambda: Changed(make_env(), **changes)]))


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-100.0, 100.0)])
def test_actions_of_other_bounds_are_learnt_as_well(bounds, make_model, make_demonstrations):
    """The same demonstrations in other units: the same losses."""
    low, high = bounds
    half, center = (high - low) / 2, (high + low) / 2
    results = []
    for scaled in (False, True):
        model = make_model()
        if scaled:
            env = model.env.envs[0].unwrapped
            env = gym.wrappers.RescaleAction(type(env)(), np.full(2, low, np.float32), np.full(2, high, np.float32))
            model = make_model(ChunkedActionWrapper(env, 3, gamma=0.9))
        demonstrations = make_demonstrations(2)
        for demonstration in demonstrations if scaled else []:
            demonstration.actions = center + half * demonstration.actions
        model.replay_buffer.extend(demonstrations)
        batch = model.replay_buffer.sample(8)
        loss = model.adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths).item()
        results.append(loss)
        model.learn(16)
        action, _ = model.predict(demonstrations[0].observations, deterministic=False)
        assert (action >= (low if scaled else -1)).all() and (action <= (high if scaled else 1)).all()
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_text_is_refused_with_what_makes_bytes_of_it(make_env, make_model):
    env = Changed(make_env(), instruction=spaces.Text(16))
    with pytest.raises(ValueError, match=r"\['instruction'\] are text.*InstructionObservation\(env\)"):
        make_model(env)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 3], start=[0, 1])])
def test_actions_that_are_not_numbered_from_zero_are_refused(space):
    env = gym.wrappers.TransformAction(gym.make("CartPole-v1"), lambda action: 0, space)
    with pytest.raises(ValueError, match=r"SB3's policies number them from 0: add that .* in a gymnasium\.wrappers"):
        PPOSelfBC("MlpPolicy", env)


def test_unbounded_actions_are_refused(make_model):
    space = make_model().observation_space
    with pytest.raises(ValueError, match=r"actions need bounds, by which they are clipped or scaled.*RescaleAction"):
        VLAPolicy(space, spaces.Box(-np.inf, np.inf, (3, 2)), lambda _: 1e-3)
    env = gym.make("Pendulum-v1").unwrapped
    env.action_space = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match="actions need bounds"):
        PPOSelfBC("MlpPolicy", env)


def test_a_key_named_like_a_picture_that_is_none_is_said_to_be_read_as_one(make_env, make_model):
    env = Changed(make_env(), image_embedding=spaces.Box(-1, 1, (16,)))
    with pytest.raises(ValueError, match=r"needs 'image_embedding' as a Box.*image_\.\.\. are read as pictures") as error:
        make_model(env)
    assert "ObservationKeys(env, {" in str(error.value) and "'image_embedding': 'embedding'" in str(error.value)
    with pytest.raises(ValueError, match="if the pictures are floats") as error:
        make_model(Changed(make_env(), image=spaces.Box(0, 1, (8, 8, 3))))
    assert "are read as pictures" not in str(error.value)


def test_observations_that_are_not_read_are_named_once_and_not_stored(make_env, make_model, make_demonstrations):
    extra = {"wrist_image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "joints": spaces.Box(-1, 1, (7,))}
    with pytest.warns(UserWarning, match=r"does not read the observations \['joints', 'wrist_image'\]") as warned:
        model = make_model(DummyVecEnv([lambda: Changed(make_env(), **extra)]))
    assert len([w for w in warned if "does not read" in str(w.message)]) == 1
    model.learn(16)
    assert not extra.keys() & model.rollout_buffer.observations.keys()
    model.replay_buffer.extend(make_demonstrations(1))  # which lack them
    assert not extra.keys() & model.replay_buffer.episodes["push"][0].observations.keys()


def test_vec_normalize_over_pictures_or_prompts_is_refused_with_the_call_that_works(make_vec_env, make_model):
    call = r"VecNormalize\(env, norm_obs_keys=\['privileged', 'state'\]\)"
    message = rf"^VecNormalize would normalise \['image', 'instruction'\].* write {call}"
    with pytest.raises(ValueError, match=message):
        make_model(VecNormalize(make_vec_env()))
    with pytest.raises(ValueError, match=r"would normalise \['instruction'\].*norm_obs_keys=\['privileged', 'state'\]"):
        make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state", "instruction"]))
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    keys = list(env.norm_obs_keys)
    assert make_model(env).normalized_keys == ("state",) and env.norm_obs_keys == keys


def test_an_observation_called_features_is_just_not_read(make_env, make_model):
    """And does not stand for what the backbone makes of the images."""
    with pytest.warns(UserWarning, match="features"):
        model = make_model(DummyVecEnv([lambda: Changed(make_env(), features=spaces.Box(-1, 1, (2, 16)))]))
    read = []
    model.policy.backbone.register_forward_hook(lambda *_: read.append(1))
    model.learn(16)
    assert read


def test_a_model_of_another_algorithm_says_the_same(make_env):
    with pytest.raises(ValueError, match="'state' as a Box of one dimension"):
        PPO(VLAPolicy, DummyVecEnv([lambda: Changed(make_env(), state=spaces.Discrete(3))]))

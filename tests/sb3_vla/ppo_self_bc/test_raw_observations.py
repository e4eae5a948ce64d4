"""Images and prompts under a ``VecNormalize`` that was told nothing about keys."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback, EveryNTimesteps
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_vla import PPOSelfBC, SuccessEvalCallback
from sb3_vla.ppo_self_bc.raw_observations import keep_images_and_prompts_raw

WRAPPERS = {
    "bare": [],
    "transposed": [VecTransposeImage],
    "stacked": [lambda env: VecFrameStack(env, 2)],
    "transposed, then stacked": [VecTransposeImage, lambda env: VecFrameStack(env, 2)],
    "stacked, then transposed": [lambda env: VecFrameStack(env, 2), VecTransposeImage],
    "monitored everywhere": [VecMonitor, lambda env: VecFrameStack(env, 2), VecMonitor],
}


def build(normalize, inside, outside):
    def wrap(env, names):
        for wrapper in names:
            env = wrapper(env)
        return env

    return lambda env: wrap(normalize(wrap(env, inside)), outside)


LAYERS = [
    *(("bare", outside) for outside in WRAPPERS),
    *(("transposed", outside) for outside in ("bare", "stacked", "monitored everywhere")),
    *(("stacked", outside) for outside in ("bare", "transposed")),
    ("stacked, then transposed", "bare"),
]


@pytest.mark.parametrize(("inside", "outside"), LAYERS)
def test_it_becomes_what_norm_obs_keys_would_have_made_it(inside, outside, make_vec_env):
    layers = WRAPPERS[inside], WRAPPERS[outside]
    wrong = build(VecNormalize, *layers)(make_vec_env())
    right = build(lambda env: VecNormalize(env, norm_obs_keys=["privileged", "state"]), *layers)(make_vec_env())
    assert sorted(keep_images_and_prompts_raw(wrong)) == ["image", "instruction"]
    rng = np.random.default_rng(0)
    observations = [(wrong.reset(), right.reset())]
    for _ in range(6):
        actions = rng.uniform(-1, 1, (2, 3, 2)).astype(np.float32)
        (a, rewards, dones, infos), (b, *expected) = wrong.step(actions), right.step(actions)
        assert np.array_equal(rewards, expected[0]) and np.array_equal(dones, expected[1])
        observations += [(a, b)]
        terminal = [(x["terminal_observation"], y["terminal_observation"]) for x, y in zip(infos, expected[2], strict=True)
                    if "terminal_observation" in x]  # fmt: skip
        observations += terminal
    assert len(observations) > 7, "an episode ended"
    for a, b in observations:
        for key in b:
            assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]), key
    # ... all the way in
    while True:
        assert wrong.observation_space == right.observation_space
        if isinstance(wrong, DummyVecEnv):
            break
        wrong, right = wrong.venv, right.venv
    assert wrong.get_attr("observation_space") == right.get_attr("observation_space")


def test_it_is_said_once_with_the_keys_and_the_fix(make_model, make_vec_env, recwarn):
    env = VecNormalize(make_vec_env(), gamma=0.9)
    evaluated = VecNormalize(make_vec_env(1), gamma=0.9, training=False, norm_reward=False)
    model = make_model(env, bc_weight=1.0)
    callback = EveryNTimesteps(8, SuccessEvalCallback(evaluated, eval_freq=1, n_eval_episodes=2, verbose=0, warn=False))
    model.learn(32, callback=[callback])
    model.learn(16, callback=callback, reset_num_timesteps=False)
    assert len([w for w in recwarn if w.category is UserWarning]) == 1
    message = str(recwarn.pop(UserWarning).message)
    assert "['image', 'instruction']" in message and "norm_obs_keys=['privileged', 'state']" in message
    assert "evaluation environment too" in message
    assert set(env.obs_rms) == set(evaluated.obs_rms) == {"privileged", "state"}
    assert evaluated.obs_rms["state"].count == env.obs_rms["state"].count > 32
    assert model.observation_space["image"] == spaces.Box(0, 255, (3, 8, 8), np.uint8)
    observation = model.env.reset()
    assert observation["image"].dtype == observation["instruction"].dtype == np.uint8


def test_statistics_of_a_normaliser_from_elsewhere(tmp_path, make_vec_env, make_model):
    wrong = VecNormalize(make_vec_env())
    wrong.reset()
    wrong.save(tmp_path / "vecnormalize.pkl")
    env = VecNormalize.load(tmp_path / "vecnormalize.pkl", make_vec_env())
    with pytest.warns(UserWarning, match="norm_obs_keys"):
        make_model(env)
    assert env.reset()["image"].dtype == np.uint8


def test_where_environments_enter_later(tmp_path, make_vec_env, make_model):
    model = make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9))
    model.save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match=r"\['image', 'instruction'\]"):
        model.set_env(VecNormalize(make_vec_env(), gamma=0.9))
    with pytest.warns(UserWarning, match=r"\['image', 'instruction'\]"):
        loaded = PPOSelfBC.load(tmp_path / "model.zip", env=VecNormalize(make_vec_env(), gamma=0.9))
    loaded.learn(16)
    assert set(loaded.get_vec_normalize_env().obs_rms) == {"privileged", "state"}


@pytest.mark.parametrize(
    "normalize", [{"norm_obs_keys": ["state", "privileged"]}, {"norm_obs_keys": ["state"]}, {"norm_obs": False}]
)
def test_whoever_asks_for_numbers_only_hears_nothing(normalize, make_vec_env, make_model, recwarn):
    env = VecNormalize(make_vec_env(), gamma=0.9, **normalize)
    before = env.norm_obs_keys
    make_model(env).learn(16)
    assert env.norm_obs_keys == before and not [w for w in recwarn if w.category is UserWarning]


def test_other_environments_are_normalised_as_ever(recwarn):
    for make, policy in (
        (SimpleMultiObsEnv, "MultiInputPolicy"),
        (lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False), "MlpPolicy"),
    ):
        env = VecNormalize(DummyVecEnv([make]))
        space = env.observation_space
        assert keep_images_and_prompts_raw(env) == [] and env.observation_space is space
        PPOSelfBC(policy, env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8)
        observation = env.reset()
        values = observation.values() if isinstance(observation, dict) else [observation]
        assert all(value.dtype == np.float32 for value in values)


def test_one_key_taken_out_of_a_vla_environment_is_its_users_own_business(make_vec_env):
    env = VecExtractDictObs(VecNormalize(make_vec_env()), "state")
    assert keep_images_and_prompts_raw(env) == []


def test_evaluation_needs_no_wrapping_by_hand(make_model, make_vec_env, recwarn):
    """Without, SB3 says that the environments differ, as only the training environment turns its images."""
    model = make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9))
    evaluated = VecNormalize(make_vec_env(1), norm_obs_keys=["state"], training=False)
    model.learn(16, callback=EvalCallback(evaluated, eval_freq=8, n_eval_episodes=1, verbose=0, warn=False))
    assert evaluated.obs_rms["state"].count == model.get_vec_normalize_env().obs_rms["state"].count
    assert not [w for w in recwarn if w.category is UserWarning]


def test_policy_alone_refuses_normalised_images(make_model, make_vec_env):
    model = make_model()
    wrong = VecNormalize(make_vec_env())
    with pytest.raises(ValueError, match=r"'image' as uint8.*norm_obs_keys=\['state'\]"):
        type(model.policy)(wrong.observation_space, wrong.action_space, lambda _: 1e-3)
    with pytest.raises(ValueError, match=r"'image' as uint8.*norm_obs_keys=\['state'\]"):
        evaluate_policy(model, wrong, n_eval_episodes=1, warn=False)

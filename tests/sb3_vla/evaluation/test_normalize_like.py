"""Evaluation and films show a model its observations as training did."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_vla import EpisodeSchedule, PPOSelfBC, episode_jobs, evaluate
from sb3_vla.evaluation.films import record_episode
from sb3_vla.evaluation.normalize_like import normalize_like


class Witness(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what it showed and what was then done; shows itself as a grey picture for each step."""

    render_mode = "rgb_array_list"

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seen: list[dict[str, np.ndarray]] = []
        self.done: list[np.ndarray] = []

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self.seen.append(observation)
        return observation, info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        self.done.append(action)
        self.seen.append(observation)
        return observation, *rest

    def render(self) -> Any:
        return [np.full((8, 8, 3), 99, np.uint8)]


@pytest.fixture
def model(make_model: Any, make_vec_env: Any) -> PPOSelfBC:
    """Trained a little, with statistics that are far from the identity."""
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state", "privileged"], gamma=0.9, clip_obs=2.0, epsilon=0.01)
    model: PPOSelfBC = make_model(env).learn(32)
    assert np.abs(env.obs_rms["state"].mean).max() > 0.1  # type: ignore[index]
    return model


def normalized_by_hand(observation: dict[str, np.ndarray], env: VecNormalize) -> dict[str, np.ndarray]:
    statistics = env.obs_rms["state"]  # type: ignore[index]
    state = (observation["state"] - statistics.mean) / np.sqrt(statistics.var + 0.01)
    return {**observation, "state": state.clip(-2.0, 2.0).astype(np.float32)}


@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("how", ["evaluate", "film"])
def test_actions_are_those_that_training_observations_give(
    how: str, privileged: bool, model: PPOSelfBC, make_env: Any
) -> None:
    witness = Witness(make_env(privileged=privileged))
    if how == "evaluate":
        venv = DummyVecEnv([lambda: EpisodeSchedule(witness)])
        returns = [evaluate(model, venv, episode_jobs([""], 1), progress=False).episodes[0].episode_return]
    else:
        record_episode(model, witness)
        returns = []
    env = model.get_vec_normalize_env()
    assert env is not None and len(witness.done) >= 2
    for seen, done in zip(witness.seen, witness.done, strict=False):
        expected, _ = model.predict(normalized_by_hand(seen, env), deterministic=True)
        assert np.allclose(done, expected, atol=1e-5)
        raw, _ = model.predict(seen, deterministic=True)
        assert not np.allclose(done, raw, atol=1e-5)
    assert all(value in (0.0, 1.0) or abs(value) < 1.0 for value in returns)  # rewards are the environment's own


def test_the_statistics_of_training_are_copied_and_learn_no_more(model: PPOSelfBC, make_vec_env: Any) -> None:
    train = model.get_vec_normalize_env()
    venv = normalize_like(model, make_vec_env())
    assert isinstance(venv, VecNormalize) and train is not None and venv is not train
    assert not venv.training and not venv.norm_reward
    before = train.obs_rms["state"].count  # type: ignore[index]
    venv.reset()
    venv.step(np.zeros((2, 3, 2), np.float32))
    assert train.obs_rms["state"].count == before == venv.obs_rms["state"].count  # type: ignore[index]


def test_an_environment_that_is_normalised_already_or_a_model_that_was_not_stays(
    model: PPOSelfBC, make_model: Any, make_vec_env: Any
) -> None:
    mine = VecNormalize(make_vec_env(), norm_obs_keys=["state"], training=False)
    assert normalize_like(model, mine) is mine
    bare = make_vec_env()
    assert normalize_like(make_model(), bare) is bare
    assert normalize_like(make_model(VecNormalize(make_vec_env(), norm_obs=False, gamma=0.9)), bare) is bare
    assert normalize_like(make_model().policy, bare) is bare


def test_arrays_are_normalised_too() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    venv = normalize_like(model, DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    venv.seed(5)
    shown = venv.reset()
    venv.seed(5)
    raw = venv.venv.reset()  # type: ignore[attr-defined]
    expected = (raw - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + 1e-8)  # type: ignore[union-attr]
    assert np.allclose(shown, expected.clip(-10, 10), atol=1e-5)  # VecNormalize's default clip_obs
    assert not np.allclose(shown, raw, atol=0.1)


def test_a_model_loaded_without_its_statistics_is_refused_and_with_them_acts_as_before(
    model: PPOSelfBC, make_env: Any, make_vec_env: Any, tmp_path: Any
) -> None:
    def played(model: PPOSelfBC) -> list[np.ndarray]:
        witness = Witness(make_env())
        evaluate(model, DummyVecEnv([lambda: EpisodeSchedule(witness)]), episode_jobs([""], 1), progress=False)
        return witness.done

    expected = played(model)
    model.save(tmp_path / "model.zip")
    model.get_vec_normalize_env().save(tmp_path / "vecnormalize.pkl")  # type: ignore[union-attr]
    alone = PPOSelfBC.load(tmp_path / "model.zip")
    mend = r"\['state', 'privileged'\].*PPOSelfBC.load\('model.zip', env=VecNormalize.load\('vecnormalize.pkl', venv\)\)"
    for use in (played, lambda model: record_episode(model, Witness(make_env()))):
        with pytest.raises(ValueError, match=mend):
            use(alone)
    with pytest.raises(ValueError, match="without the statistics"):
        played(model.policy)  # type: ignore[arg-type]  # which predicts, too, but doesn't know its environment
    env = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), make_vec_env())
    assert np.array_equal(played(PPOSelfBC.load(tmp_path / "model.zip", env=env)), expected)

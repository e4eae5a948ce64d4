import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import load_normalizer, save_normalizer


@pytest.mark.parametrize("n_steps", [None, 0, 20])
def test_a_normalizer_goes_on_from_its_file_however_far_it_came(n_steps, tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0), gamma=0.9)
    if n_steps is not None:
        env.reset()
        for _ in range(n_steps):
            env.step(np.zeros((2, 1)))
    save_normalizer(env, tmp_path / "normalizer.safetensors")
    loaded = load_normalizer(tmp_path / "normalizer.safetensors", make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    assert loaded.gamma == 0.9 and loaded.obs_rms.count == env.obs_rms.count
    observations = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(loaded.normalize_obs(observations), env.normalize_obs(observations))
    np.testing.assert_array_equal(loaded.normalize_reward(np.ones(2)), env.normalize_reward(np.ones(2)))

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC, collect_episodes
from sb3_vla_envs import make_vla_env

TASKS = ["drawer-close-v3", "window-open-v3"]
SETTINGS = {"cameras": [{"name": "corner4", "height": 32, "width": 32}], "horizon": 20}


@pytest.fixture(scope="module")
def model():
    venv = DummyVecEnv([lambda: make_vla_env(TASKS, **SETTINGS)])
    policy_kwargs = {"head_kwargs": {"hidden_dim": 16, "log_std_init": 0.0}, "critic_net_arch": [16]}
    return PPOSelfBC("VLAPolicy", venv, n_steps=8, batch_size=8, policy_kwargs=policy_kwargs, seed=0)


def test_a_model_that_was_trained_without_privileged_plays_too(model):
    venv = DummyVecEnv([lambda: make_vla_env(TASKS, privileged=False, **SETTINGS)])
    blind = PPOSelfBC("VLAPolicy", venv, n_steps=8, batch_size=8, seed=0)
    (episode,) = collect_episodes(blind, TASKS[0], 1, n_envs=1, progress=False, **SETTINGS)
    assert "privileged" in episode.observations, "which teaches what the features must know"


def test_all_episodes_are_kept_failures_too(model):
    episodes = collect_episodes(model, TASKS, 3, n_envs=2, progress=False, **SETTINGS)
    assert [episode.task for episode in episodes] == [TASKS[0]] * 3 + [TASKS[1]] * 3
    for episode in episodes:
        assert set(episode.observations) == {"image", "state", "instruction", "privileged"}
        assert episode.success or episode.chunk_lengths.tolist() == [8, 8, 4]
        assert np.ptp(episode.actions) > 0.5, "it explores"
        # What it saw is what it did it upon, not what the environment showed later
        assert len({frame.tobytes() for frame in episode.observations["image"]}) == len(episode)
    goals = {episode.observations["privileged"][0, 36:39].tobytes() for episode in episodes}
    assert len(goals) == 6


def test_episodes_follow_the_seed(model, in_this_process):
    arguments = {"n_envs": 2, "progress": False, **SETTINGS}
    one, same, other = (collect_episodes(model, TASKS, 1, seed=seed, **arguments) for seed in (0, 0, 1))
    assert all(np.array_equal(first.actions, second.actions) for first, second in zip(one, same, strict=True))
    assert not np.array_equal(one[0].actions, other[0].actions)

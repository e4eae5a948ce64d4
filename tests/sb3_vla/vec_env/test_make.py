from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import SharedMemoryVecEnv, make_vla_vec_env
from sb3_vla.vec_env.make import make_vec_env_from_fns
from sb3_vla_envs import decode_instruction

TASKS = ["handle-press-v3", "coffee-button-v3"]
SMALL = {"chunk_size": 4, "gamma": 0.9, "horizon": 8, "cameras": [{"name": "corner4", "height": 16, "width": 16}]}


@pytest.fixture
def make():
    made = []

    def make(tasks=TASKS, n_envs=2, **kwargs):
        made.append(make_vla_vec_env(tasks, n_envs=n_envs, **{**SMALL, **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_a_single_environment_runs_in_this_process():
    env = make_vec_env_from_fns([partial(gym.make, "Pendulum-v1")])
    assert isinstance(env, DummyVecEnv)


def test_several_share_workers_with_memory_for_observations():
    env = make_vec_env_from_fns([partial(gym.make, "Pendulum-v1")] * 2)
    try:
        assert isinstance(env, SharedMemoryVecEnv) and 1 <= len(env.processes) <= 2
        assert env.reset().shape == (2, 3)
        assert env.step(np.zeros((2, 1)))[0].shape == (2, 3)
    finally:
        env.close()


def test_workers_fork_from_a_process_that_has_imported_what_scripts_need(monkeypatch):
    preloaded = []
    method = "multiprocessing.context.ForkServerContext.set_forkserver_preload"
    monkeypatch.setattr(method, lambda _, names: preloaded.extend(names))
    make_vec_env_from_fns([partial(gym.make, "Pendulum-v1")] * 2).close()
    assert preloaded == ["sb3_vla.api"]


def test_metaworld_as_vla_policy_sees_it():
    env = make_vla_vec_env("drawer-close-v3", n_envs=1, seed=3, chunk_size=4, gamma=0.9)
    try:
        assert isinstance(env, DummyVecEnv) and isinstance(env.envs[0], Monitor)
        observation = env.reset()
        assert {"image", "state", "instruction"} <= observation.keys()
        assert "drawer" in decode_instruction(observation["instruction"][0])
        assert env.get_attr("chunk_gamma") == [0.9] and env.action_space.shape == (4, 4)
        _, _, _, infos = env.step(np.zeros((1, 4, 4), np.float32))
        assert infos[0]["chunk_length"] == 4
    finally:
        env.close()


def test_workers_render_their_own_task_under_monitor_and_end_when_closed(make):
    env = make()
    assert isinstance(env, SharedMemoryVecEnv) and env.env_is_wrapped(Monitor) == [True, True]
    observation = env.reset()
    assert [info["task"] for info in env.reset_infos] == TASKS
    texts = [decode_instruction(row) for row in observation["instruction"]]
    assert "handle" in texts[0] and "coffee" in texts[1]
    pictures = observation["image"].astype(float)
    assert pictures.shape == (2, 16, 16, 3) and pictures.std(axis=(1, 2, 3)).min() > 10
    assert np.abs(pictures[0] - pictures[1]).mean() > 2, "each task has a scene of its own"
    for _ in range(2):
        _, _, dones, infos = env.step(np.zeros((2, 4, 4), np.float32))
    # Two chunks of four steps are the horizon; Monitor counts chunks
    assert dones.all() and all(info["TimeLimit.truncated"] and info["episode"]["l"] == 2 for info in infos)
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def _goals(env, n_episodes=6):
    """The goals of some episodes of each environment."""
    env.reset()
    goals = [[info["goal_index"] for info in env.reset_infos]]
    while len(goals) < n_episodes:
        _, _, dones, _ = env.step(np.zeros((env.num_envs, 4, 4), np.float32))
        if dones.all():
            goals.append([info["goal_index"] for info in env.reset_infos])
    return np.array(goals)


def test_seed_decides_the_goals_and_each_environment_has_its_own(make):
    one, again, other = (_goals(make(TASKS[0], 1, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    both = _goals(make(TASKS[0], 2, seed=1))
    assert (both[:, 0] != both[:, 1]).any()
    np.testing.assert_array_equal(both[:, :1], one)


def test_more_tasks_than_environments_share_them(make):
    env = make([*TASKS, "reach-v3"], n_envs=1)
    tasks = set()
    for _ in range(20):
        env.reset()
        tasks.add(env.reset_infos[0]["task"])
    assert tasks == {*TASKS, "reach-v3"}


def test_mistake_in_a_worker_is_raised_here(make):
    with pytest.raises(ValueError, match="Unknown camera 'corner9', this scene has"):
        make(cameras=["corner9"])
    with pytest.raises(ValueError, match="n_envs must be at least 1"):
        make(n_envs=0)
    with pytest.raises(ValueError, match="Unknown task 'reach-v9'"):
        make("reach-v9")
    with pytest.raises(ValueError, match="There is no suite 'metawelt'"):
        make("reach-v3", suite="metawelt")
    with pytest.raises(TypeError, match="no setting 'horizont'"):
        make("reach-v3", horizont=9)

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_vla_envs import FetchEnv, make_vla_env, sample_fetch_goals
from sb3_vla_envs.fetch.tasks import TASKS

ALL_TASKS = pytest.mark.parametrize("task", TASKS)
GRIPPER_START = {"FetchReach-v4": (1.34, 0.75, 0.53), "FetchPush-v4": (1.35, 0.75, 0.41)}


def play(env, actions, **options):
    """Everything that is observed in an episode."""
    observation, info = env.reset(options=options)
    seen = [(observation, info)]
    for action in actions:
        observation, _, _, _, info = env.step(action)
        seen.append((observation, info))
    return seen


@ALL_TASKS
def test_goal_gives_the_same_episode_whatever_was_played_before(task):
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 4))
    env = FetchEnv(task, n_goals=5)
    first = play(env, actions, goal_index=2)
    other = play(env, actions[::-1], goal_index=4)
    np.testing.assert_equal(play(env, actions, goal_index=2), first)
    np.testing.assert_equal(play(FetchEnv(task, n_goals=5), actions, goal_index=2), first)
    assert not np.array_equal(first[0][0]["privileged"], other[0][0]["privileged"])


@pytest.mark.filterwarnings("ignore:.*A Box observation space.*")
@pytest.mark.filterwarnings("ignore:.*not within the observation space.*")
def test_follows_gymnasiums_rules():
    check_env(FetchEnv("Fetch"), skip_render_check=True)


@pytest.mark.parametrize(("task", "start"), GRIPPER_START.items())
def test_state_is_the_gripper_alone(task, start):
    env = FetchEnv(task, n_goals=10)
    states = [env.reset(options={"goal_index": index})[0]["state"] for index in range(10)]
    np.testing.assert_allclose(states, [[*start, 0.0]] * 10, atol=0.015)
    assert np.ptp(states, axis=0).max() == 0  # neither the object's nor the goal's place


def test_last_number_of_state_is_the_opening_of_the_fingers():
    env = FetchEnv("FetchPickAndPlace-v4")
    env.reset(seed=0)
    openings = [env.step([0, 0, 0, finger])[0]["state"][3] for finger in [1.0] * 8 + [-1.0] * 8]
    assert openings[7] == pytest.approx(1.0, abs=0.01) and openings[15] == pytest.approx(0.0, abs=0.02)


def test_action_moves_the_gripper_along_each_axis():
    env = FetchEnv("FetchReach-v4", terminate_on_success=False)
    for axis in range(3):
        start = env.reset(seed=0)[0]["state"][:3]
        for _ in range(3):
            observation, *_ = env.step(np.eye(4)[axis])
        moved = observation["state"][:3] - start
        assert moved[axis] == pytest.approx(0.096, abs=0.01)
        assert np.abs(np.delete(moved, axis)).max() < 0.01


@ALL_TASKS
def test_privileged_tells_goal_and_task(task):
    env = FetchEnv(task, n_goals=3, task_ids="Fetch")
    seen = env.reset(options={"goal_index": 1})[0]["privileged"]
    assert seen.shape == (25 + 3 + 3 + 4,)
    goal = sample_fetch_goals(task, "train", 3)[1]
    np.testing.assert_allclose(seen[28:30] - seen[:2], goal[2:4], atol=1e-4)
    if TASKS[task].has_object:
        np.testing.assert_allclose(seen[3:5] - seen[:2], goal[:2], atol=1e-4)
    np.testing.assert_array_equal(seen[31:], np.eye(4)[list(TASKS).index(task)])


def test_success_ends_the_episode_and_is_counted_in_steps():
    env = FetchEnv("FetchReach-v4", n_goals=1)
    _, info = env.reset()
    assert info == {"task": "FetchReach-v4", "goal_index": 0, "is_success": False}
    rewards, terminated, goal = [], False, env.expert_action()
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(env.expert_action())
        rewards.append(reward)
        distance = np.linalg.norm(observation["privileged"][25:28] - observation["privileged"][28:31])
        assert info["is_success"] == (distance < 0.05) and not truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0] and info["steps_to_success"] == len(rewards)
    assert goal.shape == (4,)


def test_success_is_kept_up_where_it_does_not_end_the_episode():
    env = FetchEnv("FetchReach-v4", n_goals=1, terminate_on_success=False, horizon=12, reward="dense")
    env.reset()
    for step in range(12):
        action = env.expert_action() if step < 8 else [1.0, 1.0, 1.0, 0.0]  # there, and away again
        observation, reward, terminated, truncated, info = env.step(action)
        distance = np.linalg.norm(observation["privileged"][25:28] - observation["privileged"][28:31])
        assert reward == pytest.approx(-distance, abs=1e-6) and not terminated
    assert truncated and distance > 0.05 and info["is_success"] and info["steps_to_success"] < 8


def test_horizon_is_the_benchmarks_own_unless_told_otherwise():
    env = FetchEnv("FetchPush-v4")
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(50)] == [False] * 49 + [True]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_copies_are_refused(duplicate):
    env = FetchEnv("FetchReach-v4")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        duplicate(env)


def test_wrong_actions_and_order_are_refused():
    env = FetchEnv("FetchReach-v4")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        env.step([np.nan, 0, 0, 0])


def test_policy_sees_two_pictures_state_and_instruction():
    env = make_vla_env("Fetch", task_order="round_robin", chunk_size=4)
    spaces = {"image": (96, 96, 3), "image_side": (96, 96, 3), "state": (4,), "instruction": (64,), "privileged": (35,)}
    assert {key: space.shape for key, space in env.observation_space.items()} == spaces
    for _ in range(4):
        observation, _ = env.reset()
        assert env.observation_space.contains(observation)
        assert env.observation_space.contains(env.step(env.action_space.sample())[0])

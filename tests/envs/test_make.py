import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_vla_envs import Camera, decode_instruction, make_env_fns, make_vla_env

TASKS = ("window-open-v3", "drawer-close-v3", "button-press-topdown-v3")
SMALL = {"n_goals": 3, "cameras": [Camera("corner4", 24, 24)], "chunk_size": 3}


def expert_chunk(env):
    """The expert's current action, held for a chunk."""
    return np.repeat(env.unwrapped.expert_action()[None], env.get_wrapper_attr("chunk_size"), axis=0)


def test_default_spaces_are_the_contract():
    env = make_vla_env("window-open-v3")
    described = {key: (space.shape, space.dtype) for key, space in env.observation_space.items()}
    assert described == {
        "image": ((96, 96, 3), np.uint8),
        "image_gripperPOV": ((64, 64, 3), np.uint8),
        "state": ((4,), np.float32),
        "privileged": ((40,), np.float32),
        "instruction": ((64,), np.uint8),
    }
    assert env.action_space.shape == (8, 4) and env.action_space.dtype == np.float32
    assert env.get_wrapper_attr("chunk_gamma") == 0.99


@pytest.mark.filterwarnings("ignore")  # advice on spaces and wrappers, not failures
@pytest.mark.parametrize("check", [check_env, check_env_sb3])
def test_checkers_of_gymnasium_and_sb3_pass(check):
    env = make_vla_env("window-open-v3,push-v3", render_mode="rgb_array", **SMALL)
    check(env)


def test_episode_of_the_expert_through_the_whole_stack():
    env = Monitor(make_vla_env("drawer-close-v3", gamma=0.9, **SMALL))
    env.reset(seed=0)
    steps, ended = 0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(expert_chunk(env))
        ended = terminated or truncated
        steps += info["chunk_length"]
    assert env.observation_space.contains(observation)
    assert terminated and info["is_success"] and info["steps_to_success"] == steps
    assert reward == pytest.approx(0.9 ** (info["chunk_length"] - 1))
    assert info["episode"]["r"] == pytest.approx(reward) and info["task"] == "drawer-close-v3"


def test_frame_list_has_one_frame_for_every_primitive_step():
    env = make_vla_env("drawer-close-v3", render_mode="rgb_array_list", **SMALL)
    env.reset(seed=0)
    env.step(expert_chunk(env))
    env.step(expert_chunk(env))
    frames = env.render()
    assert len(frames) == 1 + 3 + 3
    assert all(frame.shape == (240, 240, 3) for frame in frames)
    assert all(not np.array_equal(a, b) for a, b in pairwise(frames))
    assert env.render() == []


def test_rgb_array_is_the_current_frame():
    env = make_vla_env("drawer-close-v3", render_mode="rgb_array", **SMALL)
    env.reset(seed=0)
    before = env.render()
    env.step(expert_chunk(env))
    assert before.shape == (240, 240, 3) and not np.array_equal(before, env.render())


@pytest.mark.parametrize(
    ("n_envs", "expected"),
    [
        (1, [TASKS]),
        (2, [("window-open-v3", "button-press-topdown-v3"), ("drawer-close-v3",)]),
        (3, [(task,) for task in TASKS]),
        (5, [(task,) for task in (*TASKS, *TASKS[:2])]),
    ],
)
def test_tasks_are_spread_over_environments_under_the_same_ids(n_envs, expected):
    envs = [build() for build in make_env_fns(TASKS, n_envs, task_ids=None, **SMALL)]
    assert [env.unwrapped.tasks for env in envs] == expected
    for env in envs:
        observation, info = env.reset()
        assert TASKS[int(observation["privileged"][39:].argmax())] == info["task"]
        assert env.observation_space == envs[0].observation_space


def test_tasks_get_environments_by_their_weights():
    weights = {"window-open-v3": 3, "drawer-close-v3": 2}
    tasks = [build().unwrapped.tasks for build in make_env_fns(TASKS, 12, task_weights=weights, **SMALL)]
    assert Counter(tasks) == {("window-open-v3",): 6, ("drawer-close-v3",): 4, ("button-press-topdown-v3",): 2}
    assert {*tasks[:3]} == {(task,) for task in TASKS}  # one of each, before any has a second one


def test_each_environment_has_its_own_reproducible_seed():
    def goals(seed):
        envs = [build() for build in make_env_fns("push-v3", 2, seed=seed, **{**SMALL, "n_goals": 50})]
        return [[env.reset()[1]["goal_index"] for _ in range(6)] for env in envs]

    first = goals(3)
    assert first[0] != first[1]
    assert goals(3) == first
    assert goals(4) != first


def test_worker_processes_and_one_process_see_the_same():
    builders = make_env_fns(TASKS, 2, seed=1, **SMALL)
    assert all(len(pickle.dumps(build)) < 2000 for build in builders)  # a recipe, not an environment
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4)).astype(np.float32)
    seen = []
    for venv in (SubprocVecEnv(builders), DummyVecEnv(builders)):
        observation = venv.reset()
        for _ in range(2):
            observation, _, _, infos = venv.step(actions)
        seen.append((observation, [info["task"] for info in infos]))
        venv.close()
    assert seen[0][1] == seen[1][1]
    for key in seen[0][0]:
        np.testing.assert_array_equal(seen[0][0][key], seen[1][0][key])
    assert decode_instruction(seen[0][0]["instruction"][1]) == "close the drawer"


def test_vector_environments_seed_overrules():
    builders = make_env_fns("push-v3", 2, seed=1, **{**SMALL, "n_goals": 50})
    drawn = []
    for _ in range(2):
        venv = DummyVecEnv(builders)
        venv.reset()
        venv.seed(7)
        venv.reset()
        drawn.append([info["goal_index"] for info in venv.reset_infos])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_vla_env("push-v3", render_mode="human"), "render_mode must be .*, got 'human'"),
        (lambda: make_vla_env("push-v3", max_instruction_bytes=5), "only 5 fit"),
        (lambda: make_env_fns("push-v3", 0), "n_envs must be at least 1, got 0"),
        (lambda: make_env_fns(TASKS, 5, task_weights={"window-open-v3": 4}), "n_envs must be at least 6, .* got 5"),
        (lambda: make_env_fns(TASKS, 5, task_weights={"push-v3": 4}), "task_weights has 'push-v3', which is none of"),
        (lambda: make_env_fns(TASKS, 5, task_weights={"window-open-v3": 0}), "must be at least 1, got 0"),
        (lambda: make_env_fns("push-v4", 1), "Unknown task 'push-v4'; did you mean 'push-v3'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()

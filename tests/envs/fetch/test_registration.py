import gymnasium as gym
import numpy as np
import pytest

from sb3_vla_envs import FetchEnv, find_suite

TASKS = ("FetchReach-v4", "FetchPush-v4", "FetchSlide-v4", "FetchPickAndPlace-v4")


@pytest.mark.parametrize("tasks", ["Fetch", *TASKS])
def test_every_task_has_both_ids(tasks):
    assert {f"FetchVLA/{tasks}", f"FetchState/{tasks}"} <= set(gym.registry)


def test_spec_makes_the_same_environment():
    env = gym.make("FetchVLA/Fetch", task_order="round_robin", n_goals=3, chunk_size=4, max_instruction_bytes=80)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert env.unwrapped.tasks == again.unwrapped.tasks == TASKS
    assert str(again) == str(env) and isinstance(again.unwrapped, FetchEnv)
    chunk = np.full((4, 4), 0.5, dtype=np.float32)
    for ours, theirs in zip((env.reset(seed=3), env.step(chunk)), (again.reset(seed=3), again.step(chunk)), strict=True):
        assert ours[-1] == theirs[-1]
        np.testing.assert_equal(ours[0], theirs[0])


def test_suite_is_found_by_its_tasks_names():
    suite = find_suite("FetchReach-v4,FetchPush-v4")
    assert suite.name == "fetch" and suite.resolve_tasks("Fetch") == TASKS
    assert suite.group_name(TASKS[::-1]) == "Fetch"
    assert [task for task in TASKS if suite.has_expert(task)] == ["FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"]
    assert all(suite.has_expert(task) for task in suite.default_tasks)

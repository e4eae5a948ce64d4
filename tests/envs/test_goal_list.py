import itertools

import numpy as np
import pytest

from sb3_vla_envs import FetchEnv, MetaWorldEnv, sample_fetch_goals, sample_goals
from sb3_vla_envs.goal_list import GoalList


def test_a_goal_that_is_drawn_twice_stands_in_the_list_once():
    drawn = map(np.array, itertools.chain([[1.0], [2.0], [1.0], [3.0]]))
    goals = GoalList("push-v3", "train", 3, 0).fill(lambda: next(drawn))
    np.testing.assert_array_equal(goals, [[1.0], [2.0], [3.0]])
    with pytest.raises(ValueError, match="read-only"):
        goals[0] = 9.0


def test_random_numbers_depend_on_task_split_and_seed_but_not_on_the_length():
    def first(*arguments):
        return GoalList(*arguments).generator().random()

    assert first("push-v3", "train", 3, 0) == first("push-v3", "train", 9, 0)
    others = [("push-v3", "train", 3, 0), ("reach-v3", "train", 3, 0), ("push-v3", "test", 3, 0), ("push-v3", "train", 3, 1)]
    assert len({first(*arguments) for arguments in others}) == 4


@pytest.mark.parametrize(("sample", "task"), [(sample_goals, "window-close-v3"), (sample_fetch_goals, "FetchPush-v4")])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        # window-close-v3 has 75,000 test goals in all: such a list would never be full
        ({"n_goals": 100_001}, ValueError, r"numbered from 0 to at most 9999: n_goals must be at most 10000, got 100001"),
        ({"n_goals": 0}, ValueError, "n_goals must be at least 1, got 0"),
        ({"n_goals": 2.0}, TypeError, "n_goals must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"split": "eval"}, ValueError, "split must be 'train' or 'test', got 'eval'"),
    ],
)
def test_bad_lists_are_refused_in_every_suite(sample, task, arguments, error, message):
    with pytest.raises(error, match=message):
        sample(**{"task": task, "split": "test", **arguments})


def test_longest_list_is_made_within_seconds():
    assert sample_goals("window-close-v3", "test", 10_000).shape == (10_000, 3)


@pytest.mark.parametrize(("env_class", "task"), [(MetaWorldEnv, "window-close-v3"), (FetchEnv, "FetchReach-v4")])
def test_a_goal_beyond_all_lists_is_refused_before_an_episode(env_class, task):
    with pytest.raises(ValueError, match=f"goals of '{task}' are numbered from 0 to at most 9999"):
        env_class(task, n_goals=100_001).reset(options={"goal_index": 100_000})

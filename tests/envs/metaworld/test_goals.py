import subprocess
import sys

import metaworld
import numpy as np
import pytest

from sb3_vla_envs import sample_goals
from sb3_vla_envs.goal_split import split_of
from sb3_vla_envs.metaworld.suite import METAWORLD


def rows(goals):
    return {tuple(goal) for goal in goals}


def test_goals_are_different_and_within_metaworlds_bounds():
    goals = sample_goals("push-v3", "train", 50, seed=3)
    assert goals.shape == (50, 6)
    assert len(rows(goals)) == 50
    low, high = [-0.1, 0.6, 0.02, -0.1, 0.8, 0.01], [0.1, 0.7, 0.02, 0.1, 0.9, 0.02]
    assert np.all(goals >= low) and np.all(goals <= high)


def test_metaworlds_rule_of_minimal_distance_holds():
    # pick-place wants 15 cm between puck and goal in the plane; about one draw in twelve violates it.
    goals = sample_goals("pick-place-v3", "train", 200)
    distances = np.linalg.norm(goals[:, :2] - goals[:, 3:5], axis=1)
    assert distances.min() >= 0.15


def test_no_training_goal_of_any_seed_is_a_test_goal_of_any_seed():
    # button-press-topdown has two free numbers; on its grid of micrometres lists would hardly ever meet by chance, so the
    # rule itself is tested: the split that owns a goal is a function of the goal alone.
    for seed in range(3):
        assert {split_of(goal) for goal in sample_goals("button-press-topdown-v3", "train", 30, seed)} == {"train"}
        assert {split_of(goal) for goal in sample_goals("button-press-topdown-v3", "test", 30, seed)} == {"test"}


def test_seeds_give_different_lists_and_longer_lists_begin_with_shorter():
    base = sample_goals("reach-v3", "train", 20, seed=0)
    assert not rows(base) & rows(sample_goals("reach-v3", "train", 20, seed=1))
    np.testing.assert_array_equal(sample_goals("reach-v3", "train", 30, seed=0)[:20], base)


def test_lists_are_the_same_in_every_process():
    code = "from sb3_vla_envs import sample_goals; print(sample_goals('door-open-v3', 'test', 5, seed=7).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert sample_goals("door-open-v3", "test", 5, seed=7).tobytes().hex() == other


def test_goals_of_the_benchmark_are_those_that_metaworld_would_set():
    tasks = metaworld.MT1("push-v3", seed=42).train_tasks
    goals = sample_goals("push-v3", "benchmark", 50, seed=42)
    env = METAWORLD.make_simulation("push-v3", goal_split="benchmark", goal_seed=42)
    env.reset(options={"goal_index": 7})
    simulator = metaworld.MT1("push-v3", seed=42).train_classes["push-v3"]()
    simulator.set_task(tasks[7])
    theirs, _ = simulator.reset()
    np.testing.assert_allclose(env.unwrapped._privileged_state()[36:39], theirs[36:])
    np.testing.assert_array_equal(goals[7], simulator._last_rand_vec)


def test_shared_list_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        sample_goals("reach-v3", "train", 20)[0, 0] = 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reach-v3", "validation"), "split must be 'train' or 'test'.*, got 'validation'"),
        (("reach-v3", "train", 0), "n_goals must be at least 1, got 0"),
        (("reach-v3", "train", 5, -1), "seed must be at least 0, got -1"),
        (("reach-v3", "benchmark", 51), "MetaWorld's own benchmark has 50 goals of each task: lower n_goals, it is 51"),
        (("reach-v2", "train"), "Unknown task 'reach-v2'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_goals(*arguments)

import numpy as np
import pytest

from sb3_vla_envs.fetch.goals import sample_fetch_goals
from sb3_vla_envs.fetch.simulator import build_simulator
from sb3_vla_envs.fetch.tasks import DISTANCE_THRESHOLD, TASKS

ALL_TASKS = pytest.mark.parametrize("task", TASKS)


@ALL_TASKS
def test_training_and_test_goals_have_nothing_in_common(task):
    train = {tuple(goal) for seed in range(3) for goal in sample_fetch_goals(task, "train", 300, seed)}
    test = {tuple(goal) for seed in range(3) for goal in sample_fetch_goals(task, "test", 300, seed)}
    assert len(train) == len(test) == 900
    assert not train & test


@ALL_TASKS
def test_lists_are_reproducible_and_shorter_ones_are_prefixes(task):
    goals = sample_fetch_goals(task, "train", 20, seed=3)
    assert goals.shape == (20, 5) and not goals.flags.writeable
    np.testing.assert_array_equal(goals[:7], sample_fetch_goals(task, "train", 7, seed=3))
    assert not np.array_equal(goals, sample_fetch_goals(task, "train", 20, seed=4))


def test_list_is_the_same_on_every_machine():
    # Written down once: whoever changes how goals are drawn makes results incomparable with those published.
    written_down = [[-0.03065, 0.140462, -0.051825, -0.084735, 0.320942], [-0.0041, -0.146779, 0.116916, 0.048453, 0.0]]
    np.testing.assert_array_equal(sample_fetch_goals("FetchPickAndPlace-v4", "test", 2), written_down)


def test_lists_of_different_tasks_differ():
    push, pick = (sample_fetch_goals(task, "train", 5) for task in ("FetchPush-v4", "FetchPickAndPlace-v4"))
    assert not np.isclose(push[:, :2], pick[:, :2]).any()


@ALL_TASKS
def test_goals_are_spread_as_the_benchmark_spreads_its_own(task):
    """Range and mean of each number, against 1,000 resets of Gymnasium-Robotics."""
    simulator = build_simulator(task)
    theirs = []
    for seed in range(1000):
        observation, _ = simulator.reset(seed=seed)
        gripper, start = simulator.initial_gripper_xpos, observation["achieved_goal"]
        base = np.append(gripper[:2], simulator.height_offset) if simulator.has_object else gripper
        if np.linalg.norm(observation["desired_goal"] - start) >= DISTANCE_THRESHOLD:
            theirs.append([*(start - gripper)[:2] * simulator.has_object, *observation["desired_goal"] - base])
    ours = sample_fetch_goals(task, "train", 1000)
    for statistic in (np.min, np.max, np.mean, np.std):
        # A fortieth of a metre: three standard errors of the widest range's mean
        np.testing.assert_allclose(statistic(ours, axis=0), statistic(theirs, axis=0), atol=0.025)


@ALL_TASKS
def test_no_goal_is_solved_from_the_beginning(task):
    simulator = build_simulator(task)
    for goal in sample_fetch_goals(task, "train", 50):
        observation = simulator.begin(goal)
        distance = np.linalg.norm(observation["desired_goal"] - observation["achieved_goal"])
        assert distance >= DISTANCE_THRESHOLD - 1e-4  # the block sinks a little into the table


@ALL_TASKS
def test_facts_about_tasks_are_those_of_the_simulators(task):
    simulator, facts = build_simulator(task), TASKS[task]
    assert facts.has_object == simulator.has_object
    assert (facts.object_range, facts.target_range) == (simulator.obj_range, simulator.target_range)
    assert facts.target_in_the_air == simulator.target_in_the_air
    np.testing.assert_array_equal(np.broadcast_to(simulator.target_offset, 3), [facts.target_offset, 0, 0])
    assert simulator.distance_threshold == DISTANCE_THRESHOLD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("FetchPusch-v4", "train"), "did you mean 'FetchPush-v4'"),
        (("FetchPush-v4", "validation"), "split must be 'train' or 'test', got 'validation'"),
        (("FetchPush-v4", "train", 0), "n_goals must be at least 1, got 0"),
        (("FetchPush-v4", "train", 5, -1), "seed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_fetch_goals(*arguments)

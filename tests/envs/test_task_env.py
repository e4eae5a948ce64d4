"""What every suite's environment has in common; tests/envs/metaworld/test_env.py holds orders, goals and rewards to it too."""

import copy
import pickle

import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla_envs import MultiTaskEnv, Outcome, get_suite, make_vla_env


class Counter(MultiTaskEnv):
    """Counts its steps; succeeds at some of them, ends by itself at others."""

    n_privileged = 1

    def __init__(self, tasks="push-v3,reach-v3", succeeds=(), terminates=(), truncates=(), **settings):
        box = spaces.Box(np.array([0, -5]), np.array([255, 5]), dtype=np.float32)
        observed = {"state": spaces.Box(0, 99, (1,))}
        super().__init__(get_suite("metaworld"), tasks, observed, box, self.n_privileged, None, settings)
        self.succeeds, self.terminates, self.truncates = succeeds, terminates, truncates

    def _begin(self):
        self.n = 0

    def _advance(self, action):
        self.n, self.action = self.n + 1, action
        return Outcome(self.n in self.succeeds, -float(self.n), self.n in self.terminates, self.n in self.truncates)

    def _observe(self):
        return {"state": np.array([self.n], np.float32)}

    def _privileged_state(self):
        return np.array([10 * self.n], np.float32)

    def picture(self):
        return np.zeros((2, 2, 3), np.uint8)


def play(env, n):
    env.reset(seed=0, options={"task": "reach-v3"})
    return [env.step(np.zeros(2)) for _ in range(n)]


def test_observation_is_the_subclass_own_and_which_task_it_is():
    observation = play(Counter(), 3)[-1][0]
    assert observation["state"] == [3]
    np.testing.assert_array_equal(observation["privileged"], [30, 0, 1])
    assert set(Counter(privileged=False).observation_space) == {"state"}


class KnowsNoMore(Counter):
    """Has no state that only a critic may know."""

    n_privileged = 0


def test_where_there_is_nothing_else_to_know_the_critic_sees_what_the_policy_does():
    env = KnowsNoMore()
    assert set(env.observation_space) == set(play(env, 1)[-1][0]) == {"state"}


def test_success_counts_at_its_first_step_and_is_kept_up():
    steps = play(Counter(succeeds=(2, 4), terminate_on_success=False), 5)
    assert [step[1] for step in steps] == [0, 1, 0, 0, 0]
    assert [step[4]["is_success"] for step in steps] == [False, True, True, True, True]
    assert [step[4].get("steps_to_success") for step in steps] == [None, 2, 2, 2, 2]
    assert not any(step[2] or step[3] for step in steps)
    assert [step[1] for step in play(Counter(succeeds=(2,), reward="dense", terminate_on_success=False), 3)] == [-1, -2, -3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"succeeds": (2,)}, (True, False)),
        ({"terminates": (2,)}, (True, False)),
        ({"truncates": (2,)}, (False, True)),
        ({"horizon": 2}, (False, True)),
        ({"horizon": 2, "succeeds": (2,)}, (True, False)),  # a success at the last step is no matter of time
        ({}, (False, False)),
    ],
)
def test_ends_of_an_episode(arguments, expected):
    first, second = play(Counter(**arguments), 2)
    assert first[2:4] == (False, False) and second[2:4] == expected


def test_actions_are_clipped_to_the_environments_own_bounds():
    env = Counter()
    env.reset()
    env.step(np.array([300.0, -7.0]))
    np.testing.assert_array_equal(env.action, [255, -5])
    env.step(np.array([128.0, 2.5]))
    np.testing.assert_array_equal(env.action, [128, 2.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused(bad):
    env = Counter("push-v3")
    env.reset()
    env.step(np.zeros(2))
    with pytest.raises(ValueError, match="action in step 2 of an episode of 'push-v3' is not finite"):
        env.step(np.array([0.0, bad]))
    assert env.n == 1


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_environment_is_neither_copied_nor_pickled(way, wrapped):
    env = make_vla_env("push-v3", n_goals=1) if wrapped else Counter("push-v3")
    env.reset()
    with pytest.raises(TypeError, match=r"(MetaWorldEnv|Counter) can be neither copied nor pickled.*make_env_fns"):
        way(env.unwrapped if way is copy.copy else env)
    if way is copy.copy and wrapped:
        with pytest.raises(TypeError, match="of InstructionObservation would share the environment that it wraps"):
            copy.copy(env)


def test_settings_are_attributes_too():
    env = Counter(n_goals=7, goal_split="test", reward="dense")
    assert (env.n_goals, env.goal_split, env.reward) == (7, "test", "dense")
    assert env.settings.n_goals == 7


def test_without_an_expert():
    env = Counter()
    env.reset(options={"task": "push-v3"})
    with pytest.raises(NotImplementedError, match="no expert for the task 'push-v3'"):
        env.expert_action()


def test_unknown_setting():
    with pytest.raises(TypeError, match="n_goal"):
        Counter(n_goal=3)


@pytest.mark.parametrize("bad", [0.5, [0.5], np.zeros(3), np.zeros((1, 2))])
def test_actions_of_another_shape_are_refused(bad):
    env = Counter("push-v3")
    env.reset()
    with pytest.raises(ValueError, match=r"Got an action of shape .*, those of 'push-v3' have \(2,\)"):
        env.step(bad)


@pytest.mark.parametrize("ends", [{"terminates": [4]}, {"truncates": [4]}])
def test_an_episode_that_ends_while_it_settles_is_no_episode(ends):
    with pytest.raises(RuntimeError, match=r"an episode of 'push-v3' ended in step 4 of settle_steps=5, before it began"):
        Counter("push-v3", settle_steps=5, **ends).reset()
    Counter("push-v3", settle_steps=3, **ends).reset()


def test_settling_is_no_part_of_the_episode():
    env = Counter(settle_steps=5, horizon=3)
    env.reset()
    assert env.n == 5
    assert [env.step(np.zeros(2))[3] for _ in range(3)] == [False, False, True]


def test_settled_metaworld_has_its_whole_horizon():
    env = get_suite("metaworld").make_simulation("push-v3", settle_steps=16, horizon=495, n_goals=1)
    env.reset()
    assert [env.step(np.zeros(4, np.float32))[3] for _ in range(495)] == [False] * 494 + [True]


def test_goals_that_a_suite_does_not_have():
    with pytest.raises(ValueError, match=r"goal_split of the suite 'fetch' must be 'train' or 'test'.*, got 'benchmark'"):
        get_suite("fetch").make_simulation("FetchReach-v4", goal_split="benchmark")

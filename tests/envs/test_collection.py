import os

import gymnasium as gym
import numpy as np
import pytest

from sb3_vla_envs import Camera, GymSuite, GymTask, collect_demonstrations, get_suite, make_vla_env
from sb3_vla_envs.collection import ExpertActions, ExpertFailure, Noise

TASKS = ("drawer-close-v3", "window-open-v3")
SMALL = {"n_goals": 5, "cameras": [Camera("corner4", 16, 16)], "chunk_size": 6, "progress": False}


@pytest.fixture(scope="module")
def demos():
    return collect_demonstrations(TASKS, 2, seed=1, **SMALL)


class Witness(gym.Wrapper):
    """Remembers the actions that were executed."""

    actions: list

    def reset(self, **kwargs):
        self.actions = []
        return self.env.reset(**kwargs)

    def step(self, action):
        self.actions.append(action)
        return self.env.step(action)


def equal(first, second):
    return all(
        a.task == b.task
        and np.array_equal(a.actions, b.actions)
        and np.array_equal(a.chunk_lengths, b.chunk_lengths)
        and all(np.array_equal(a.observations[key], b.observations[key]) for key in a.observations)
        for a, b in zip(first, second, strict=True)
    )


def test_n_successes_of_each_task_in_the_shape_of_the_environment(demos):
    env = make_vla_env(TASKS, n_goals=5, cameras=SMALL["cameras"], chunk_size=6)
    assert [demo.task for demo in demos] == ["drawer-close-v3"] * 2 + ["window-open-v3"] * 2
    for demo in demos:
        assert demo.success
        assert demo.actions.shape == (len(demo), 6, 4) and demo.actions.dtype == np.float32
        assert demo.chunk_lengths.dtype == np.int64
        assert set(demo.observations) == set(env.observation_space.spaces)
        for key, space in env.observation_space.items():
            assert demo.observations[key].shape == (len(demo), *space.shape)
            assert demo.observations[key].dtype == space.dtype
        assert np.all(demo.chunk_lengths[:-1] == 6) and 1 <= demo.chunk_lengths[-1] <= 6
        assert not demo.actions[-1, demo.chunk_lengths[-1] :].any()


def test_without_noise_the_actions_replay_the_episode():
    (demo,) = collect_demonstrations("drawer-close-v3", 1, action_noise=0.0, **{**SMALL, "n_goals": 1})
    env = make_vla_env("drawer-close-v3", n_goals=1, cameras=SMALL["cameras"], chunk_size=6)
    observation, _ = env.reset()
    for i in range(len(demo)):
        for key, seen in observation.items():
            np.testing.assert_array_equal(demo.observations[key][i], seen)
        observation, _, terminated, _, info = env.step(demo.actions[i])
        assert info["chunk_length"] == demo.chunk_lengths[i]
    assert terminated and info["steps_to_success"] == demo.n_steps


def test_noise_disturbs_the_episode_but_targets_are_the_experts_own_actions(demos):
    env = make_vla_env(TASKS, n_goals=5, cameras=SMALL["cameras"], chunk_size=6)
    (goal_index,) = [
        index
        for index in range(5)
        if np.array_equal(
            env.reset(options={"task": TASKS[0], "goal_index": index})[0]["privileged"], demos[0].observations["privileged"][0]
        )
    ]
    env.reset(options={"task": TASKS[0], "goal_index": goal_index})
    # The first target is what the expert does in the initial state, which noise has not touched yet.
    np.testing.assert_array_equal(env.unwrapped.expert_action(), demos[0].actions[0, 0])
    for _ in range(6):
        after, *_ = env.unwrapped.step(env.unwrapped.expert_action())
    assert np.abs(after["state"] - demos[0].observations["state"][1])[:3].max() > 1e-3
    assert np.abs(demos[0].actions).max() <= 1.0


def test_workers_change_nothing(demos):
    assert equal(collect_demonstrations(TASKS, 2, seed=1, n_workers=2, **SMALL), demos)


def test_tasks_do_not_depend_on_their_company_but_on_the_seed(demos):
    alone = collect_demonstrations("window-open-v3", 2, seed=1, task_ids=TASKS, **SMALL)
    assert equal(alone, demos[2:])
    assert not equal(collect_demonstrations("window-open-v3", 2, seed=2, task_ids=TASKS, **SMALL), demos[2:])


def test_where_success_does_not_end_the_episode_it_ends_the_demonstration(demos):
    assert equal(collect_demonstrations(TASKS, 2, seed=1, terminate_on_success=False, **SMALL), demos)


def test_goals_in_order_are_one_an_attempt():
    settings = {**SMALL, "n_goals": 3, "action_noise": 0.0, "goal_order": "sequential"}
    demos = collect_demonstrations("drawer-close-v3", 4, **settings)
    goals = [tuple(demo.observations["privileged"][0]) for demo in demos]
    assert len(set(goals[:3])) == 3 and goals[3] == goals[0]


def test_a_suite_that_no_process_can_be_sent_is_refused():
    hill = GymTask("MountainCarContinuous-v0", "climb")
    suite = GymSuite("hills", {"climb": hill}, success=lambda *step: step[2], expert=lambda env: [1.0])
    with pytest.raises(ValueError, match=r"can't be sent to the processes of n_workers=2 .*lambda.*or n_workers=1"):
        collect_demonstrations("climb", 2, suite=suite, n_workers=2, progress=False)


def test_failures_are_replaced_by_further_attempts():
    starts = []

    def expert(env):
        """Drives up the hill if it began in the left half of the valley, else does nothing."""
        position, velocity = env.state
        if velocity == 0:
            starts.append(position)
        return [1.0 if velocity >= 0 else -1.0] if starts[-1] < -0.5 else [0.0]

    hill = GymTask("MountainCarContinuous-v0", "drive up the hill")
    suite = GymSuite("hills", {"climb": hill}, success=lambda *step: step[2], expert=expert, horizon=200)
    demos = collect_demonstrations("climb", 4, suite=suite, action_noise=0.0, progress=False)
    assert len(demos) == 4 and all(demo.success for demo in demos)
    assert all(demo.observations["state"][0, 0] < -0.5 for demo in demos)
    assert any(start > -0.5 for start in starts)


def test_hopeless_task_is_given_up_and_named():
    with pytest.raises(ExpertFailure, match=r"that of push-v3 in only 0 of 20 attempts: lower action_noise") as failure:
        collect_demonstrations("push-v3", 30, horizon=1, **SMALL)
    assert failure.value.demonstrations == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_other_tasks_gave_is_kept_when_one_is_hopeless(n_workers):
    tasks = "pick-place-wall-v3,handle-press-v3"  # which takes over 70 steps, and about 30
    with pytest.raises(ExpertFailure, match=r"that of pick-place-wall-v3 in only 0 of 20 attempts") as failure:
        collect_demonstrations(tasks, 22, horizon=45, n_workers=n_workers, **SMALL)
    assert [demo.task for demo in failure.value.demonstrations] == ["handle-press-v3"] * 22


def test_errors_of_workers_reach_the_caller():
    with pytest.raises(ValueError, match="Unknown camera 'corner9'"):
        collect_demonstrations("push-v3", 1, n_workers=2, cameras=["corner9"], progress=False)


class Fatal(type(get_suite("metaworld"))):
    """Kills the process that unpickles it, as running out of memory would."""

    def __reduce__(self):
        return os._exit, (1,)


def test_death_of_a_worker_is_reported():
    with pytest.raises(RuntimeError, match="worker process that collects demonstrations died"):
        collect_demonstrations("push-v3", 1, n_workers=2, suite=Fatal(), progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_per_task": 0}, "n_per_task must be at least 1, got 0"),
        ({"n_workers": 0}, "n_workers must be at least 1, got 0"),
        ({"action_noise": -0.1}, "action_noise must be at least 0, got -0.1"),
        ({"action_noise": float("nan")}, "action_noise must be finite, got nan"),
        ({"tasks": "puhs-v3"}, "Unknown task 'puhs-v3'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        collect_demonstrations(**{"tasks": "push-v3", "n_per_task": 1, **arguments})


def test_every_step_observes_the_same_episode_step_by_step(demos):
    chunks = demos[0]
    steps = collect_demonstrations(TASKS, 1, seed=1, every_step=True, **SMALL)[0]
    assert steps.actions.shape == (chunks.n_steps, 1, 4) and steps.n_steps == chunks.n_steps
    for number in range(len(chunks)):
        chunk, length = steps.chunk(6 * number, 6)
        np.testing.assert_array_equal(chunk, chunks.actions[number])
        assert length == chunks.chunk_lengths[number]
        for key, values in chunks.observations.items():
            np.testing.assert_array_equal(steps.observations[key][6 * number], values[number])


def test_correlated_noise_pushes_one_way_and_is_as_strong():
    def noise(correlation):
        witness = Witness(get_suite("metaworld").make_simulation("drawer-close-v3", n_goals=1, horizon=400))
        expert = ExpertActions(witness, get_suite("metaworld"), Noise(0.1, correlation))
        expert.begin(np.random.default_rng(0))
        expert.reset(seed=0)
        clean = []
        for _ in range(60):
            expert.step(None)
            clean.append(expert.taken[-1])
        inside = (np.abs(witness.actions) < 1) & (np.abs(clean) < 0.6)
        return np.where(inside, np.array(witness.actions) - np.array(clean), np.nan)

    for correlation in (0.0, 0.9):
        disturbed = noise(correlation)
        first, second = disturbed[:-1], disturbed[1:]
        both = ~np.isnan(first) & ~np.isnan(second)
        assert both.sum() > 60
        assert np.corrcoef(first[both], second[both])[0, 1] == pytest.approx(correlation, abs=0.2)
        assert np.nanstd(disturbed) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("correlation", [-0.1, 1.0, float("nan")])
def test_a_correlation_out_of_range_is_refused(correlation):
    with pytest.raises(ValueError, match=f"noise_correlation must be (at least 0|below 1|finite), got {correlation}"):
        collect_demonstrations(TASKS, 1, noise_correlation=correlation, **SMALL)

"""An environment goes on in the middle of an episode of another one, bit for bit."""

import numpy as np
import pytest

from sb3_vla_envs import MT10, FetchEnv, MetaWorldEnv

FETCH = ("FetchReach-v4", "FetchPush-v4", "FetchSlide-v4", "FetchPickAndPlace-v4")
# bin-picking-v3 keeps numbers of an episode that it finds on its way, door-lock-v3 views of MuJoCo's memory
METAWORLD = (*MT10, "bin-picking-v3", "door-lock-v3", "assembly-v3")


def _play(env, rng, n_steps):
    seen = []
    for _ in range(n_steps):
        observation, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 4))
        seen.append((observation["privileged"].tolist(), reward, terminated, truncated, info))
        if terminated or truncated:
            observation, info = env.reset()
            seen.append((observation["privileged"].tolist(), info))
    return seen


def _check_goes_on(make, before=26):
    env, other = make(), make()
    env.reset(seed=3)
    _play(env, np.random.default_rng(0), before)  # into the second episode
    state = env.get_state()
    expected = _play(env, np.random.default_rng(1), 30)
    assert any(len(step) == 2 for step in expected), "another episode must begin"
    other.set_state(state)
    assert (other.task, other.goal_index, other.instruction) != (None, None, None)
    assert _play(other, np.random.default_rng(1), 30) == expected
    for each in (env, other):
        each.close()


@pytest.mark.parametrize("task", METAWORLD)
def test_metaworld(task):
    _check_goes_on(lambda: MetaWorldEnv(task, n_goals=5, horizon=20, reward="dense", terminate_on_success=False))


@pytest.mark.parametrize("task", FETCH)
def test_fetch(task):
    pytest.importorskip("gymnasium_robotics")
    _check_goes_on(lambda: FetchEnv(task, n_goals=5, horizon=20, reward="dense", terminate_on_success=False))


@pytest.mark.parametrize("order", ["uniform", "round_robin"])
def test_sequences_of_tasks_goals_and_wordings_go_on(order):
    tasks = ("reach-v3", "drawer-close-v3")
    goal_order = "uniform" if order == "uniform" else "sequential"
    settings = {"task_order": order, "goal_order": goal_order, "paraphrases": True, "horizon": 2, "n_goals": 3}
    env, other = (MetaWorldEnv(tasks, **settings) for _ in range(2))
    env.reset(seed=1)
    env.reset()
    other.set_state(env.get_state())
    assert other.instruction == env.instruction
    sequences = []
    for each in (env, other):
        sequences.append([(each.reset()[1], each.instruction) for _ in range(6)])
        each.close()
    assert sequences[0] == sequences[1]


def test_before_the_first_reset_there_is_no_episode():
    env, other = (MetaWorldEnv("reach-v3") for _ in range(2))
    other.set_state(env.get_state())
    assert other.reset()[1] == env.reset()[1]

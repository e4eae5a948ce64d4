import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_vla_envs import INSTRUCTIONS, MT50, MetaWorldEnv, sample_goals

IDLE = np.zeros(4, dtype=np.float32)


def rollout(env, seed, n_steps=8):
    """Observations, rewards and infos of two episodes under seeded random actions."""
    rng = np.random.default_rng(0)
    seen = []
    for reset_seed in (seed, None):
        observation, info = env.reset(seed=reset_seed)
        seen.append((observation["privileged"], 0.0, info))
        for _ in range(n_steps):
            observation, reward, _, _, info = env.step(rng.uniform(-1, 1, 4))
            seen.append((observation["privileged"], reward, info))
    return seen


def same(first, second):
    return all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, second, strict=True))


def play_expert(env, max_steps=500):
    """The rewards and infos of an episode of the scripted expert that has just been reset."""
    rewards, infos = [], []
    for _ in range(max_steps):
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    return rewards, infos, terminated, truncated


@pytest.mark.parametrize("task", MT50)
def test_every_task_runs_under_its_expert_whatever_was_played_before(task):
    env = MetaWorldEnv(task, n_goals=3)
    trajectories = []
    for goal_index in (0, 1, 0):
        observation, info = env.reset(options={"goal_index": goal_index})
        assert env.observation_space.contains(observation)
        assert info == {"task": task, "goal_index": goal_index, "is_success": False}
        assert env.instruction == INSTRUCTIONS[task][0]
        trajectory = [observation["privileged"]]
        for _ in range(4):
            action = env.expert_action()
            assert env.action_space.contains(action)
            trajectory.append(env.step(action)[0]["privileged"])
        trajectories.append(np.array(trajectory))
    np.testing.assert_array_equal(trajectories[0], trajectories[2])
    assert not np.array_equal(trajectories[0], trajectories[1])
    env.close()


@pytest.mark.filterwarnings("ignore:.*A Box observation space.*")
def test_gymnasiums_checker_passes():
    check_env(MetaWorldEnv("window-open-v3", n_goals=3), skip_render_check=True)


def test_same_seed_gives_the_same_episodes_and_another_seed_does_not():
    first, second = (MetaWorldEnv("push-v3,drawer-close-v3", paraphrases=True) for _ in range(2))
    assert same(rollout(first, seed=5), rollout(second, seed=5))
    assert same(rollout(first, seed=5), rollout(second, seed=5))  # again, with a different history
    assert not same(rollout(first, seed=5), rollout(second, seed=6))


@pytest.mark.parametrize("task", ["window-close-v3", "door-open-v3"])
def test_first_observation_shows_the_objects_of_this_episode(task):
    # MetaWorld opens the window to be closed after it computed positions: its own first observation has it still closed.
    env = MetaWorldEnv(task, n_goals=2)
    env.reset(options={"goal_index": 0})
    first, _ = env.reset(options={"goal_index": 1})
    second, *_ = env.step(IDLE)
    np.testing.assert_allclose(first["privileged"][4:7], second["privileged"][4:7], atol=5e-3)


def test_observation_is_proprioception_and_for_the_critic_everything():
    env = MetaWorldEnv("push-v3,reach-v3", task_ids=("door-open-v3", "push-v3", "reach-v3"))
    observation, _ = env.reset(seed=0, options={"task": "reach-v3", "goal_index": 4})
    assert observation["state"].shape == (4,) and observation["state"].dtype == np.float32
    np.testing.assert_allclose(observation["state"][:3], env.data.body("hand").xpos, atol=1e-6)
    full = observation["privileged"]
    assert full.shape == (39 + 3,) and full.dtype == np.float32
    np.testing.assert_array_equal(full[:4], observation["state"])
    np.testing.assert_array_equal(full[:18], full[18:36])  # stacked with itself at the beginning
    np.testing.assert_allclose(full[36:39], sample_goals("reach-v3", "train")[4][3:], atol=1e-6)  # the goal is visible
    np.testing.assert_array_equal(full[39:], [0, 0, 1])


def test_without_privileged_only_the_state_is_observed():
    env = MetaWorldEnv("push-v3", privileged=False, n_goals=1)
    assert set(env.reset(seed=0)[0]) == {"state"} == set(env.observation_space.spaces)


def test_sparse_reward_is_one_at_the_first_success_which_ends_the_episode():
    env = MetaWorldEnv("drawer-close-v3")
    env.reset(seed=0)
    rewards, infos, terminated, truncated = play_expert(env)
    assert terminated and not truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert [info["is_success"] for info in infos] == [False] * (len(rewards) - 1) + [True]
    assert "steps_to_success" not in infos[-2]
    assert infos[-1]["steps_to_success"] == len(rewards)


def test_success_is_rewarded_once_and_remembered_when_the_episode_goes_on():
    env = MetaWorldEnv("drawer-close-v3", terminate_on_success=False, horizon=120)
    env.reset(seed=0)
    rewards, infos, terminated, truncated = play_expert(env)
    assert truncated and not terminated and len(rewards) == 120
    first = rewards.index(1.0)
    assert sum(rewards) == 1.0
    assert all(info["steps_to_success"] == first + 1 and info["is_success"] for info in infos[first:])


def test_dense_reward_is_metaworlds():
    env = MetaWorldEnv("reach-v3", reward="dense")
    env.reset(seed=0)
    rewards, _, _, _ = play_expert(env)
    assert all(0.0 < reward <= 10.0 for reward in rewards)
    assert rewards[-1] > rewards[0]
    assert rewards[-1] not in (0.0, 1.0)


@pytest.mark.parametrize("horizon", [3, 505])
def test_horizon_truncates_below_and_beyond_metaworlds_own_500(horizon):
    env = MetaWorldEnv("push-v3", horizon=horizon, n_goals=1)
    env.reset(seed=0)
    ends = [env.step(IDLE)[2:4] for _ in range(horizon)]
    assert ends == [(False, False)] * (horizon - 1) + [(False, True)]


def test_horizon_may_be_changed_between_episodes():
    env = MetaWorldEnv("push-v3", horizon=3, n_goals=1)
    env.reset(seed=0)
    env.horizon = 6
    env.reset()
    assert [env.step(IDLE)[3] for _ in range(6)] == [False] * 5 + [True]


def test_round_robin_and_sequential_orders_count_and_a_seed_restarts_them():
    env = MetaWorldEnv(
        "push-v3,reach-v3", task_order="round_robin", goal_order="sequential", n_goals=2, goal_split="test", horizon=5
    )

    def drawn(n):
        infos = [env.reset()[1] for _ in range(n)]
        return [(info["task"], info["goal_index"]) for info in infos]

    expected = [("push-v3", 0), ("reach-v3", 0), ("push-v3", 1), ("reach-v3", 1), ("push-v3", 0)]
    assert drawn(5) == expected
    env.reset(seed=1)
    assert drawn(3) == expected[1:4]
    env.reset(options={"task": "push-v3", "goal_index": 0})  # a pick by hand leaves the sequences alone
    assert drawn(1) == expected[4:]


def test_uniform_orders_draw_every_task_and_different_goals():
    env = MetaWorldEnv("push-v3,reach-v3", n_goals=50)
    infos = [env.reset(seed=0)[1]] + [env.reset()[1] for _ in range(19)]
    assert {info["task"] for info in infos} == {"push-v3", "reach-v3"}
    assert len({info["goal_index"] for info in infos}) > 10


def test_paraphrases_are_drawn_and_listed():
    env = MetaWorldEnv("reach-v3", paraphrases=True, n_goals=1)
    env.reset(seed=0)
    drawn = {env.instruction}
    for _ in range(25):
        env.reset()
        drawn.add(env.instruction)
    assert drawn == set(INSTRUCTIONS["reach-v3"]) == set(env.instructions)
    assert MetaWorldEnv("reach-v3,push-v3").instructions == (INSTRUCTIONS["reach-v3"][0], INSTRUCTIONS["push-v3"][0])


def test_actions_out_of_bounds_count_as_clipped():
    env = MetaWorldEnv("reach-v3", n_goals=1)
    results = []
    for action in ([5.0, -3.0, 0.5, 9.0], [1.0, -1.0, 0.5, 1.0]):
        env.reset(seed=0)
        results.append(env.step(np.array(action))[0]["privileged"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("use", [lambda env: env.step(IDLE), lambda env: env.expert_action()])
def test_use_before_reset_is_an_error(use):
    with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\)"):
        use(MetaWorldEnv("reach-v3"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "open-window"}, "Unknown task 'open-window'"),
        ({"task_order": "random"}, "task_order must be 'uniform' or 'round_robin', got 'random'"),
        ({"goal_split": "eval"}, "goal_split must be .*'train'.*, got 'eval'"),
        ({"goal_order": "random"}, "goal_order must be 'uniform' or 'sequential', got 'random'"),
        ({"reward": "shaped"}, "reward must be 'sparse' or 'dense', got 'shaped'"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"n_goals": 0}, "n_goals must be at least 1, got 0"),
        ({"tasks": "push-v3", "task_ids": ["reach-v3"]}, r"task_ids must hold all tasks, missing are \['push-v3'\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": 3}, r"Unknown reset options \['goal'\]: allowed are task, goal_index"),
        ({"task": "push-v3"}, "does not have the task 'push-v3', only reach-v3"),
        ({"goal_index": 7}, r"goal_index must be in 0 .. 6 \(n_goals=7\), got 7"),
        ({"goal_index": -1}, "goal_index must be at least 0, got -1"),
    ],
)
def test_bad_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv("reach-v3", n_goals=7).reset(options=options)


@pytest.mark.parametrize("goal_index", [1.5, "3"])
def test_a_goal_is_a_whole_number(goal_index):
    with pytest.raises(TypeError, match=f"goal_index must be an integer, got {goal_index!r}"):
        MetaWorldEnv("reach-v3", n_goals=7).reset(options={"goal_index": goal_index})


def test_video_frame_is_drawn_without_changing_the_simulation():
    plain, drawn = (
        MetaWorldEnv("window-open-v3", n_goals=2),
        MetaWorldEnv("window-open-v3", n_goals=2, render_mode="rgb_array"),
    )
    observations = []
    for env in (plain, drawn):
        env.reset(seed=0)
        for _ in range(3):
            frame = env.render()
            observation, *_ = env.step(env.expert_action())
        observations.append(observation["privileged"])
    np.testing.assert_array_equal(*observations)
    assert plain.render() is None
    assert frame.shape == (240, 240, 3) and frame.dtype == np.uint8 and frame.std() > 20

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor

from sb3_vla_envs import ChunkedActionWrapper


class Scripted(gym.Env):
    """Pays given rewards, ends after the last one, and remembers the actions it got."""

    def __init__(self, rewards, truncates=False, action_space=None):
        self.rewards = list(rewards)
        self.truncates = truncates
        self.observation_space = spaces.Box(0, 1000, (1,), np.float32)
        self.action_space = action_space or spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert len(self.actions) < len(self.rewards), "stepped past the end"
        self.actions.append(action)
        n = len(self.actions)
        done = n == len(self.rewards)
        info = {"n": n, "is_success": done and not self.truncates}
        return np.full(1, n, np.float32), self.rewards[n - 1], done and not self.truncates, done and self.truncates, info


def test_reward_is_discounted_by_hand():
    env = ChunkedActionWrapper(Scripted([1.0, 2.0, 4.0, 8.0, 16.0]), chunk_size=4, n_action_steps=3, gamma=0.5)
    env.reset()
    chunk = np.arange(8, dtype=np.float32).reshape(4, 2) / 10
    observation, reward, terminated, truncated, info = env.step(chunk)
    assert reward == 1.0 + 0.5 * 2.0 + 0.25 * 4.0
    assert (observation[0], terminated, truncated) == (3.0, False, False)
    assert info == {"n": 3, "is_success": False, "chunk_length": 3}
    np.testing.assert_array_equal(env.unwrapped.actions, chunk[:3])
    observation, reward, terminated, truncated, info = env.step(chunk)  # the episode ends in mid-chunk
    assert reward == 8.0 + 0.5 * 16.0
    assert (observation[0], terminated, truncated) == (5.0, True, False)
    assert info == {"n": 5, "is_success": True, "chunk_length": 2, "steps_to_success": 5}


@given(
    rewards=st.lists(st.floats(-10, 10), min_size=1, max_size=12),
    chunk_size=st.integers(1, 5),
    executed=st.integers(1, 5),
    gamma=st.floats(0, 1),
    truncates=st.booleans(),
)
def test_chunks_stop_at_the_end_and_their_returns_make_up_the_episodes(rewards, chunk_size, executed, gamma, truncates):
    executed = min(executed, chunk_size)
    env = ChunkedActionWrapper(Scripted(rewards, truncates), chunk_size, executed, gamma)
    env.reset()
    total, steps, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(np.zeros((chunk_size, 2), np.float32))
        total += gamma**steps * reward
        steps += info["chunk_length"]
        ended = terminated or truncated
        assert info["chunk_length"] == executed or ended
    assert steps == len(rewards)  # the inner environment asserts that none went past the end
    assert (terminated, truncated) == (not truncates, truncates)
    assert total == pytest.approx(sum(gamma**i * r for i, r in enumerate(rewards)), abs=1e-9)


class Flashing(gym.Env):
    """Reports success at its fourth step alone, and goes on; perhaps says how many steps that took, by its own count."""

    observation_space = action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, **said):
        self.said = said

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.zeros(1, np.float32), 0.0, False, self.n == 9, {"is_success": True, **self.said} if self.n == 4 else {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, 4), ({"steps_to_success": None}, 4), ({"steps_to_success": 3}, 3), ({"steps_to_success": 40}, 4)],
)
def test_success_inside_a_chunk_is_not_lost(said, expected):
    env = ChunkedActionWrapper(Flashing(**said), 3)
    for _ in range(2):  # the second episode counts from its own beginning
        env.reset()
        infos = [env.step(np.zeros((3, 1), np.float32))[-1] for _ in range(3)]
        assert infos[0] == infos[2] == {"chunk_length": 3}
        assert infos[1] == {"chunk_length": 3, "is_success": True, "steps_to_success": expected}


def test_box_of_any_shape():
    single = spaces.Box(np.array([[-1.0, -2.0, -3.0]]), np.array([[1.0, 2.0, 3.0]]), dtype=np.float64)
    env = ChunkedActionWrapper(Scripted([0.0] * 9, action_space=single), chunk_size=2)
    assert env.action_space.shape == (2, 1, 3) and env.action_space.dtype == np.float64
    np.testing.assert_array_equal(env.action_space.low, [[[-1, -2, -3]], [[-1, -2, -3]]])
    env.reset()
    env.step(env.action_space.sample())
    assert all(single.contains(action) for action in env.unwrapped.actions)


def test_discrete_with_a_start_becomes_multi_discrete():
    single = spaces.Discrete(3, start=5)
    env = ChunkedActionWrapper(Scripted([0.0] * 9, action_space=single), chunk_size=4)
    np.testing.assert_array_equal(env.action_space.nvec, [3, 3, 3, 3])
    np.testing.assert_array_equal(env.action_space.start, [5, 5, 5, 5])
    env.reset()
    env.step(np.array([5, 7, 6, 5]))
    assert env.unwrapped.actions == [5, 7, 6, 5]
    assert all(single.contains(action) for action in env.unwrapped.actions)


def test_multi_discrete_is_flat_one_action_after_the_other():
    single = spaces.MultiDiscrete([2, 5], start=[0, 10])
    env = ChunkedActionWrapper(Scripted([0.0] * 9, action_space=single), chunk_size=3)
    np.testing.assert_array_equal(env.action_space.nvec, [2, 5, 2, 5, 2, 5])
    np.testing.assert_array_equal(env.action_space.start, [0, 10, 0, 10, 0, 10])
    env.reset()
    env.step([0, 10, 1, 14, 0, 12])
    np.testing.assert_array_equal(env.unwrapped.actions, [[0, 10], [1, 14], [0, 12]])
    assert all(single.contains(action) for action in env.unwrapped.actions)


def test_monitor_outside_counts_chunks_and_their_rewards():
    env = Monitor(ChunkedActionWrapper(Scripted([1.0, 1.0, 1.0]), chunk_size=2, gamma=0.5))
    env.reset()
    env.step(np.zeros((2, 2), np.float32))
    *_, terminated, _, info = env.step(np.zeros((2, 2), np.float32))
    assert terminated
    assert info["episode"]["r"] == 1.5 + 1.0 and info["episode"]["l"] == 2
    assert info["is_success"] is True and info["chunk_length"] == 1


@pytest.mark.parametrize("statistics", [Monitor, RecordEpisodeStatistics])
def test_episode_statistics_from_inside_survive(statistics):
    env = ChunkedActionWrapper(statistics(Scripted([1.0, 1.0, 1.0])), chunk_size=2, gamma=0.5)
    env.reset()
    assert "episode" not in env.step(np.zeros((2, 2), np.float32))[-1]
    *_, info = env.step(np.zeros((2, 2), np.float32))
    assert info["episode"]["r"] == 3.0 and info["episode"]["l"] == 3
    assert info["is_success"] is True and info["chunk_length"] == 1


def test_default_executes_the_whole_chunk_and_attributes_tell():
    env = ChunkedActionWrapper(Scripted([0.0]), 8)
    assert (env.chunk_size, env.n_action_steps, env.chunk_gamma) == (8, 8, 1.0)


def test_spec_rebuilds_the_wrapper():
    env = ChunkedActionWrapper(gym.make("CartPole-v1"), 4, n_action_steps=2, gamma=0.9)
    again = gym.make(env.spec)
    assert isinstance(again, ChunkedActionWrapper)
    assert (again.chunk_size, again.n_action_steps, again.chunk_gamma) == (4, 2, 0.9)
    assert again.action_space == env.action_space


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chunk_size": 2.0}, TypeError, "chunk_size must be an integer, got 2.0"),
        ({"chunk_size": True}, TypeError, "chunk_size must be an integer, got True"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"chunk_size": 2, "n_action_steps": 0}, ValueError, "n_action_steps must be at least 1, got 0"),
        ({"chunk_size": 2, "n_action_steps": 3}, ValueError, "n_action_steps=3 exceeds chunk_size=2"),
        ({"chunk_size": 2, "gamma": "1"}, TypeError, "gamma must be a number, got '1'"),
        ({"chunk_size": 2, "gamma": 1.1}, ValueError, "gamma must be at most 1, got 1.1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ChunkedActionWrapper(Scripted([0.0]), **arguments)


def test_other_action_spaces_are_refused():
    with pytest.raises(TypeError, match=r"must be a Box, Discrete, MultiDiscrete or MultiBinary"):
        ChunkedActionWrapper(Scripted([0.0], action_space=spaces.Text(3)), 2)


def test_bits_are_chunked_too():
    env = ChunkedActionWrapper(Scripted([0.0] * 2, action_space=spaces.MultiBinary([2, 3])), 2)
    assert env.action_space == spaces.MultiBinary(12)
    env.reset()
    chunk = env.action_space.sample()
    env.step(chunk)
    assert all(env.env.action_space.contains(action) for action in env.unwrapped.actions)
    np.testing.assert_array_equal(env.unwrapped.actions, chunk.reshape(2, 2, 3))


def test_numbers_between_integers_arrive_as_without_chunks():
    env = ChunkedActionWrapper(Scripted([0.0] * 2, action_space=spaces.Box(0, 5, (1,), np.int64)), 2)
    env.reset()
    env.step(np.array([[0.9], [-0.9]], np.float32))
    np.testing.assert_array_equal(env.unwrapped.actions, np.array([[0.9], [-0.9]], np.float32))


@pytest.mark.parametrize(
    ("space", "chunk"),
    [(spaces.Discrete(3), [0.9, 1.7]), (spaces.MultiBinary(2), [0.9, 1, 0, 0]), (spaces.MultiBinary(2), [257, 1, 0, 0])],
)
def test_discrete_actions_are_not_rounded(space, chunk):
    env = ChunkedActionWrapper(Scripted([0.0] * 2, action_space=space), 2)
    env.reset()
    with pytest.raises(ValueError, match=rf"Got the actions \[{chunk[0]}, .*\], but those of .* are whole numbers"):
        env.step(chunk)
    env.step(np.ones(env.action_space.shape, np.float32))
    np.testing.assert_array_equal(env.unwrapped.actions, np.ones((2, *space.shape)))


def test_chunks_of_chunks_are_refused():
    env = ChunkedActionWrapper(Scripted([0.0]), 4)
    with pytest.raises(ValueError, match="takes chunks of 4 already: give chunk_size=2 to what made it"):
        ChunkedActionWrapper(gym.Wrapper(env), 2)


def test_single_action_instead_of_a_chunk_is_refused():
    env = ChunkedActionWrapper(Scripted([0.0]), 2)
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2,\), but a chunk of 2 actions has shape \(2, 2\)"):
        env.step(np.zeros(2, np.float32))

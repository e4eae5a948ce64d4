import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_vla import PPOSelfBC
from sb3_vla.policies.encoded import NOT_ENCODED, EncodedObservations
from sb3_vla.ppo_self_bc.rollout_buffer import ChunkDictRolloutBuffer, ChunkRolloutBuffer
from sb3_vla_envs import ChunkedActionWrapper

BOX = spaces.Box(-1, 1, (2,), np.float32)


def fill(buffer, lengths, rewards, values, starts, log_prob_columns=None):
    """Arrays of shape (buffer_size, n_envs)."""
    for step in range(len(rewards)):
        n = buffer.n_envs
        log_prob = th.zeros(n) if log_prob_columns is None else th.arange(n * log_prob_columns).view(n, -1) + 100 * step
        observation = np.full((n, 2), step, np.float32)
        if isinstance(buffer, DictRolloutBuffer):
            observation = {"x": observation}
        chunks = {} if lengths is None else {"chunk_lengths": np.array(lengths[step]), "tasks": ["a"] * n}
        value = th.tensor(values[step])
        buffer.add(observation, np.zeros((n, 2)), rewards[step].copy(), starts[step], value, log_prob, **chunks)


def brute_force_advantage(t, lengths, rewards, values, last_value, ends, gamma, gae_lambda):
    """``sum_j (prod_i<j gamma**k_i lambda) delta_j`` up to the end of the episode, for one environment."""
    total, weight = 0.0, 1.0
    for j in range(t, len(rewards)):
        next_value = values[j + 1] if j + 1 < len(rewards) else last_value
        total += weight * (rewards[j] + (0.0 if ends[j] else gamma ** lengths[j] * next_value) - values[j])
        if ends[j]:
            break
        weight *= gamma ** lengths[j] * gae_lambda
    return total


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.floats(-2, 2), st.floats(-2, 2)), min_size=2, max_size=8),
    st.floats(-2, 2),
    st.floats(0.5, 1),
    st.floats(0, 1),
)
def test_gae_equals_the_brute_force_sum_over_chunks(chunks, last_value, gamma, gae_lambda):
    lengths, ends, rewards, values = (list(column) for column in zip(*chunks, strict=True))
    buffer = ChunkRolloutBuffer(len(chunks), BOX, BOX, gamma=gamma, gae_lambda=gae_lambda, n_envs=1)

    def column(x):
        return np.array(x, np.float32)[:, None]

    fill(buffer, np.array(lengths)[:, None], column(rewards), column(values), column([True, *ends[:-1]]))
    buffer.compute_returns_and_advantage(th.tensor([[last_value]], dtype=th.float32), np.array([ends[-1]]))
    expected = [
        brute_force_advantage(t, lengths, rewards, values, last_value, ends, gamma, gae_lambda) for t in range(len(chunks))
    ]
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(buffer.returns[:, 0], np.array(expected) + values, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31 - 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_chunks_of_one_step_equal_sb3_to_the_bit(seed, gamma, gae_lambda, announce):
    rng = np.random.default_rng(seed)
    n_steps, n_envs = 6, 3
    rewards, values = (rng.normal(size=(n_steps, n_envs)).astype(np.float32) for _ in range(2))
    starts, dones = rng.random((n_steps, n_envs)) < 0.3, rng.random(n_envs) < 0.5
    last_values = th.tensor(rng.normal(size=(n_envs, 1)), dtype=th.float32)
    buffers = []
    for buffer_class in (RolloutBuffer, ChunkRolloutBuffer):
        buffer = buffer_class(n_steps, BOX, BOX, gamma=gamma, gae_lambda=gae_lambda, n_envs=n_envs)
        lengths = np.ones((n_steps, n_envs), int) if announce and buffer_class is ChunkRolloutBuffer else None
        fill(buffer, lengths, rewards, values, starts)
        buffer.compute_returns_and_advantage(last_values, dones)
        buffers.append(buffer)
    assert np.array_equal(buffers[0].advantages, buffers[1].advantages)
    assert np.array_equal(buffers[0].returns, buffers[1].returns)


def test_a_sparse_reward_is_discounted_by_the_steps_before_it():
    """Three chunks of 4, 4 and 2 steps, reward 1 in the last: V = 0, lambda = 1."""
    buffer = ChunkRolloutBuffer(3, BOX, BOX, gamma=0.9, gae_lambda=1.0, n_envs=1)
    zeros = np.zeros((3, 1), np.float32)
    fill(buffer, [[4], [4], [2]], np.array([[0], [0], [1]], np.float32), zeros, zeros)
    buffer.compute_returns_and_advantage(th.zeros(1, 1), np.array([True]))
    np.testing.assert_allclose(buffer.returns[:, 0], [0.9**8, 0.9**4, 1.0], rtol=1e-6)


class Constant(gym.Env):
    """Reward 1 a step, for ever."""

    observation_space = BOX
    action_space = BOX

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_truncated_chunk_bootstraps_with_gamma_to_the_k():
    """Through ``collect_rollouts``: a time limit of 5 in chunks of 3 cuts the second chunk after 2 steps."""
    gamma, value = 0.9, 7.0
    env = ChunkedActionWrapper(TimeLimit(Constant(), 5), 3, gamma=gamma)
    model = PPOSelfBC("MlpPolicy", env, gamma=gamma, gae_lambda=1.0, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(value)
    seen = []
    model.train = lambda: seen.append(model.rollout_buffer)
    model.learn(4)
    (buffer,) = seen
    assert buffer.chunk_lengths[:, 0].tolist() == [3, 2, 3, 2]
    first, second = 1 + gamma + gamma**2, 1 + gamma + gamma**2 * value
    np.testing.assert_allclose(buffer.rewards[:, 0], [first, second, first, second], rtol=1e-6)
    # gae_lambda = 1: returns are those of the unchunked environment, with V after the time-out
    unchunked = sum(gamma**i for i in range(5)) + gamma**5 * value
    np.testing.assert_allclose(buffer.returns[:, 0], [unchunked, second, unchunked, second], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.integers(1, 5),
    st.data(),
    st.floats(0.5, 1),
)
def test_chunked_returns_are_the_discounted_returns_of_the_unchunked_environment(rewards, chunk_size, data, gamma):
    """The wrapper discounts inside a chunk, the buffer between chunks: together it is gamma a primitive step."""
    n_action_steps = data.draw(st.integers(1, chunk_size))

    class Script(Constant):
        def reset(self, *, seed=None, options=None):
            self.t = 0
            return super().reset(seed=seed)

        def step(self, action):
            self.t += 1
            return np.zeros(2, np.float32), rewards[self.t - 1], self.t == len(rewards), False, {}

    env = ChunkedActionWrapper(Script(), chunk_size, n_action_steps, gamma=gamma)
    env.reset()
    chunks, done = [], False
    while not done:
        _, reward, done, _, info = env.step(np.zeros((chunk_size, 2)))
        chunks.append((info["chunk_length"], reward))
    buffer = ChunkRolloutBuffer(len(chunks), BOX, BOX, gamma=gamma, gae_lambda=1.0, n_envs=1)
    lengths = np.array([length for length, _ in chunks])[:, None]
    zeros = np.zeros((len(chunks), 1), np.float32)
    fill(buffer, lengths, np.array([reward for _, reward in chunks], np.float32)[:, None], zeros, zeros)
    buffer.compute_returns_and_advantage(th.zeros(1, 1), np.array([True]))
    starts = np.cumsum([0, *lengths[:-1, 0]])
    expected = [sum(gamma**i * r for i, r in enumerate(rewards[start:])) for start in starts]
    np.testing.assert_allclose(buffer.returns[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("is_dict", [False, True])
def test_log_probs_per_step_stay_with_their_observation_and_length(columns, is_dict):
    space = spaces.Dict(x=BOX) if is_dict else BOX
    buffer_class = ChunkDictRolloutBuffer if is_dict else ChunkRolloutBuffer
    buffer = buffer_class(3, space, BOX, n_envs=2)
    for _ in range(2):  # also after a reset
        buffer.reset()
        lengths = np.array([[1, 2], [3, 4], [5, 6]])
        zeros = np.zeros((3, 2), np.float32)
        fill(buffer, lengths, zeros, zeros, zeros, log_prob_columns=columns)
        buffer.compute_returns_and_advantage(th.zeros(2, 1), np.zeros(2))
        assert buffer.steps_apart
        (data,) = buffer.get()
        assert data.old_log_prob.shape == (6, columns) and data.chunk_lengths.shape == (6,)
        observations = data.observations["x"] if is_dict else data.observations
        for observation, log_prob, length in zip(observations, data.old_log_prob, data.chunk_lengths, strict=True):
            step = int(observation[0])
            env = [i for i in range(2) if lengths[step, i] == length]
            assert len(env) == 1
            assert log_prob.tolist() == [100 * step + env[0] * columns + j for j in range(columns)]


def test_log_probs_per_chunk_stay_flat():
    buffer = ChunkRolloutBuffer(3, BOX, BOX, n_envs=2)
    zeros = np.zeros((3, 2), np.float32)
    fill(buffer, np.ones((3, 2), int), zeros, zeros, zeros)
    buffer.compute_returns_and_advantage(th.zeros(2, 1), np.zeros(2))
    (data,) = buffer.get()
    assert not buffer.steps_apart and data.old_log_prob.shape == (6,)


def test_every_chunk_is_drawn_once_in_batches():
    buffer = ChunkRolloutBuffer(5, BOX, BOX, n_envs=1)
    zeros = np.zeros((5, 1), np.float32)
    fill(buffer, np.arange(1, 6)[:, None], zeros, zeros, zeros)
    buffer.compute_returns_and_advantage(th.zeros(1, 1), np.zeros(1))
    for _ in range(2):  # epochs
        batches = list(buffer.get(2))
        assert [len(batch.chunk_lengths) for batch in batches] == [2, 2, 1]
        assert sorted(th.cat([batch.chunk_lengths for batch in batches]).tolist()) == [1, 2, 3, 4, 5]


def test_advantages_are_standardised_within_each_task():
    buffer = ChunkRolloutBuffer(2, BOX, BOX, n_envs=3)
    for step in range(2):
        tasks = ["easy", "hard", "rare"] if step == 0 else ["hard", "easy", "hard"]
        buffer.add(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(3), np.zeros(3), th.zeros(3), th.zeros(3), tasks=tasks)
    buffer.advantages = np.array([[1.0, 100.0, 5.0], [200.0, 3.0, 300.0]], np.float32)
    buffer.normalize_advantages_per_task()
    # easy: 1, 3; hard: 100, 200, 300; one of a kind stays as it is
    hard = 100 / np.sqrt(20_000 / 3)
    np.testing.assert_allclose(buffer.advantages, [[-1, -hard, 5], [0, 1, hard]], rtol=1e-5, atol=1e-6)


def test_what_comes_with_a_sample_keeps_its_precision_and_stays_with_it():
    buffer = ChunkDictRolloutBuffer(3, spaces.Dict(x=BOX, y=BOX), BOX, n_envs=2)
    for step in range(3):
        rows = np.array([[step, env] for env in range(2)], np.float32)
        encoded = EncodedObservations(image_tokens=th.tensor(rows, dtype=th.bfloat16))
        extras = {"chain": th.tensor(rows).unsqueeze(1).expand(-1, 4, -1).to(th.float64)}
        where = np.zeros(2), np.zeros(2), th.zeros(2), th.zeros(2)
        buffer.add({"x": rows, "y": -rows}, rows, *where, encoded=encoded, extras=extras)
    seen = []
    for samples in buffer.get(batch_size=4):
        assert samples.encoded.image_tokens.dtype == th.bfloat16 and samples.encoded.features is None
        assert th.equal(samples.encoded.image_tokens.float(), samples.observations["x"])
        assert samples.extras["chain"].dtype == th.float64 and samples.extras["chain"].shape[1:] == (4, 2)
        assert th.equal(samples.extras["chain"][:, 3].float(), samples.actions)
        assert th.equal(samples.observations["x"], samples.actions)
        seen += samples.encoded.image_tokens.tolist()
    assert sorted(seen) == [[step, env] for step in range(3) for env in range(2)]
    for samples in buffer.get(batch_size=4, keys=["y"]):
        assert set(samples.observations) == {"y"} and samples.encoded == NOT_ENCODED and not samples.extras
    buffer.reset()
    buffer.add({"x": rows, "y": rows}, rows, *where)
    with pytest.raises(RuntimeError, match=r"step 1 of the rollout comes with \['image_tokens'\], its first step with \[\]"):
        buffer.add({"x": rows, "y": rows}, rows, *where, encoded=encoded)

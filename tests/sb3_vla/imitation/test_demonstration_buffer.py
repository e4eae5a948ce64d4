from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_vla import DemonstrationBuffer
from sb3_vla_envs import Demonstration

STATE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Box(-9, 9, (3, 1), np.float32)


def make_buffer(rule="shortest", **kwargs) -> DemonstrationBuffer:
    return DemonstrationBuffer(spaces.Dict(state=STATE), ACTION, rule=rule, seed=0, **kwargs)


def episode(lengths, task="a", mark=0.0, success=True) -> Demonstration:
    n = len(lengths)
    return Demonstration(
        task=task,
        observations={"state": np.stack([np.full(n, mark), np.arange(n)], axis=1).astype(np.float32)},
        actions=np.full((n, 3, 1), mark, np.float32),
        chunk_lengths=np.array(lengths, np.int64),
        success=success,
    )


def steps(buffer, task="a") -> list[int]:
    return [demonstration.n_steps for demonstration in buffer.episodes[task]]


def test_admits_everything_while_there_is_room():
    buffer = make_buffer(episodes_per_task=3)
    assert [buffer.add(episode([3] * n)) for n in (4, 2, 3)] == [True, True, True]
    assert steps(buffer) == [6, 9, 12] and len(buffer) == 9


@pytest.mark.parametrize(
    ("space", "wrong"),
    [(spaces.Discrete(2), 2), (spaces.MultiDiscrete([3, 2]), [1, 2]), (spaces.MultiBinary(2), [0, -1])],
    ids=["discrete", "several", "bits"],
)
def test_actions_that_there_are_not_are_refused(space, wrong):
    buffer = DemonstrationBuffer(spaces.Box(-1, 1, (2,)), space)
    actions = np.stack([space.sample() for _ in range(3)]).astype(np.int64)
    assert buffer.add(Demonstration("a", np.zeros((3, 2)), actions, np.ones(3, np.int64), True))
    actions[1] = wrong
    message = rf"the action .*{np.ravel(wrong)[-1]}\]? in chunk 1, but the model's are {type(space).__name__}"
    with pytest.raises(ValueError, match=message):
        buffer.add(Demonstration("a", np.zeros((3, 2)), actions, np.ones(3, np.int64), True))


def test_a_shorter_episode_takes_the_place_of_the_longest():
    buffer = make_buffer(episodes_per_task=2)
    buffer.extend([episode([3, 3]), episode([3, 3, 3])])
    assert not buffer.add(episode([3, 3, 3])), "as long as the longest is not better"
    assert buffer.add(episode([3, 3, 2]))
    assert steps(buffer) == [6, 8] and len(buffer) == 5
    assert buffer.add(episode([1]))
    assert steps(buffer) == [1, 6] and len(buffer) == 3


def test_length_counts_executed_steps_not_chunks():
    buffer = make_buffer(episodes_per_task=1)
    buffer.add(episode([3, 3]))
    assert buffer.add(episode([1, 1, 1, 1]))
    assert steps(buffer) == [4]


def test_every_task_has_its_own_quota():
    buffer = make_buffer(episodes_per_task=2)
    assert buffer.extend([episode([1], task="easy")] * 5 + [episode([3] * 9, task="hard")]) == 3
    assert {task: row["episodes"] for task, row in buffer.summary().items()} == {"easy": 2, "hard": 1}


def test_failures_are_refused():
    buffer = make_buffer()
    assert not buffer.add(episode([1], success=False))
    assert len(buffer) == 0 and buffer.summary() == {}


def test_summary_by_hand():
    buffer = make_buffer()
    buffer.extend([episode([3, 2]), episode([3]), episode([1, 1], task="b")])
    assert buffer.summary() == {
        "a": {"episodes": 2, "mean_steps": 4.0, "min_steps": 3, "max_steps": 5},
        "b": {"episodes": 1, "mean_steps": 2.0, "min_steps": 2, "max_steps": 2},
    }


def test_sampling_is_uniform_over_tasks_then_over_pairs():
    buffer = make_buffer()
    buffer.extend([episode([1] * 4, mark=1), episode([1], mark=2), episode([1] * 40, task="b", mark=3)])
    marks = buffer.sample(6000).observations["state"]
    counts = np.array([(marks[:, 0] == mark).sum().item() for mark in (1, 2, 3)])
    expected = 6000 * np.array([0.4, 0.1, 0.5])
    # Chi-square with 2 degrees of freedom, 99.9 %
    assert ((counts - expected) ** 2 / expected).sum() < 13.8
    first = marks[marks[:, 0] == 1][:, 1]
    assert all((first == step).sum() > 500 for step in range(4))


def test_samples_belong_together():
    buffer = make_buffer(episodes_per_task=2)
    # Evictions and reordering must not mix up episodes
    buffer.extend([episode([3] * 5, mark=1), episode([2, 1], mark=2), episode([3, 3, 1], mark=3), episode([1, 2], mark=4)])
    lengths = {2: [2, 1], 4: [1, 2]}
    batch = buffer.sample(64)
    for state, action, length in zip(batch.observations["state"], batch.actions, batch.chunk_lengths, strict=True):
        mark, step = int(state[0]), int(state[1])
        assert (action == mark).all() and length == lengths[mark][step]
    assert batch.actions.shape == (64, 3, 1) and batch.actions.dtype == th.float32


def test_sampling_is_repeatable_and_leaves_numpys_global_state_alone():
    first, second = (make_buffer() for _ in range(2))
    for buffer in (first, second):
        buffer.extend([episode([1] * 5, mark=i, task="ab"[i % 2]) for i in range(6)])
    np.random.seed(0)
    expected = np.random.random(3)
    np.random.seed(0)
    assert th.equal(first.sample(20).actions, second.sample(20).actions)
    assert np.array_equal(np.random.random(3), expected)


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match="empty: add demonstrations"):
        make_buffer().sample(1)


def test_array_observations_and_discrete_actions():
    buffer = DemonstrationBuffer(STATE, spaces.Discrete(5), seed=0)
    buffer.add(Demonstration("", {"observation": np.ones((4, 2), np.float32)}, np.full(4, 3), np.ones(4, np.int64), True))
    batch = buffer.sample(2)
    assert batch.observations.tolist() == [[1, 1], [1, 1]] and batch.actions.tolist() == [3, 3]


IMAGES_FIRST = spaces.Dict(image=spaces.Box(0, 255, (3, 6, 6), np.uint8), state=STATE)


def with_images(images) -> Demonstration:
    demonstration = episode([2, 1])
    demonstration.observations["image"] = images
    return demonstration


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_are_stored_as_the_model_sees_them(channels_first, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    expected = np.moveaxis(images, -1, 1)
    buffer = DemonstrationBuffer(IMAGES_FIRST, ACTION, seed=0)
    buffer.add(with_images(expected if channels_first else images))
    np.testing.assert_array_equal(buffer.episodes["a"][0].observations["image"], expected)
    buffer.save(tmp_path / "demos.npz")
    loaded = DemonstrationBuffer(IMAGES_FIRST, ACTION, seed=0)
    loaded.load(tmp_path / "demos.npz")
    for key in ("image", "state"):
        assert th.equal(loaded.sample(9).observations[key], buffer.sample(9).observations[key])


def test_save_and_load_round_trip(tmp_path):
    buffer = make_buffer()
    buffer.extend([episode([3, 2], mark=1), episode([3], mark=2), episode([1, 1], task="b", mark=3)])
    buffer.save(tmp_path / "demos.pkl")
    loaded = make_buffer()
    loaded.add(episode([1], task="replaced"))
    loaded.load(tmp_path / "demos.pkl")
    assert loaded.summary() == buffer.summary() and len(loaded) == len(buffer)
    for task in ("a", "b"):
        for ours, theirs in zip(loaded.episodes[task], buffer.episodes[task], strict=True):
            assert np.array_equal(ours.actions, theirs.actions)
            assert np.array_equal(ours.chunk_lengths, theirs.chunk_lengths)
            assert np.array_equal(ours.observations["state"], theirs.observations["state"])
    assert loaded.add(episode([1, 1]))


@pytest.mark.parametrize("action_space", [ACTION, spaces.Discrete(3)], ids=str)
def test_an_empty_buffer_can_be_saved_and_loaded(tmp_path, action_space):
    DemonstrationBuffer(IMAGES_FIRST, action_space).save(tmp_path / "empty")
    loaded = DemonstrationBuffer(IMAGES_FIRST, action_space)
    loaded.load(tmp_path / "empty")
    assert len(loaded) == 0 and loaded.summary() == {}


def test_a_larger_file_is_cut_to_the_quota(tmp_path):
    buffer = make_buffer()
    buffer.extend([episode([1] * n) for n in (5, 3, 4)])
    buffer.save(tmp_path / "demos")
    small = make_buffer(episodes_per_task=2)
    small.load(tmp_path / "demos")
    assert steps(small) == [3, 4]


def write_truncated(path):
    buffer = make_buffer()
    buffer.extend([episode([1] * 20) for _ in range(20)])
    buffer.save(path)
    path.write_bytes(path.read_bytes()[:-200])


def write_foreign(path):
    np.savez(path.open("wb"), x=np.zeros(3))


def write_other_shapes(path):
    other = DemonstrationBuffer(spaces.Dict(state=STATE), spaces.Box(-1, 1, (4, 1), np.float32))
    other.add(Demonstration("a", {"state": np.zeros((1, 2))}, np.zeros((1, 4, 1), np.float32), np.ones(1, np.int64), True))
    other.save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_truncated, "truncated|damaged.*collect the demonstrations again"),
        (write_foreign, "not a demonstration file"),
        (write_other_shapes, r"actions of shape \(4, 1\).*\(3, 1\).*chunk_size"),
        (lambda path: path.write_text("hello"), "not a demonstration file"),
    ],
)
def test_an_unusable_file_is_refused_and_nothing_is_lost(tmp_path, write, message):
    write(tmp_path / "demos")
    buffer = make_buffer()
    buffer.add(episode([2]))
    with pytest.raises(ValueError, match=message):
        buffer.load(tmp_path / "demos")
    assert steps(buffer) == [2] and len(buffer.sample(3).actions) == 3


def test_wrong_shapes_are_refused_and_nothing_is_lost():
    buffer = make_buffer(episodes_per_task=1)
    buffer.add(episode([3, 3]))
    bad_actions, bad_state, no_state = episode([1]), episode([1]), episode([1])
    bad_actions.actions = np.zeros((1, 2, 1), np.float32)
    bad_state.observations["state"] = np.zeros((1, 5), np.float32)
    no_state.observations = {"image": np.zeros((1, 6, 6, 3), np.uint8)}
    for demonstration, message in (
        (bad_actions, r"task 'a' has actions of shape \(2, 1\), the model \(3, 1\).*chunk_size"),
        (bad_state, r"'state' has the shape \(5,\), the model's is \(2,\).*collect"),
        (no_state, r"lacks the observations \['state'\].*\['image'\].*collect"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.add(demonstration)
    assert steps(buffer) == [6] and len(buffer.sample(2).actions) == 2


def test_no_room_at_all_and_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="episodes_per_task must be at least 1, got 0"):
        make_buffer(episodes_per_task=0)
    with pytest.raises(ValueError, match="rule must be 'advantage' or 'shortest', got 'longest'"):
        make_buffer(rule="longest")


# ---------------------------------------------------------------------------------------------------------------------
# The rule "advantage"


def valued(*values):
    """A critic that values an episode's observations by its mark, and its chunks by their number."""
    return lambda batch: th.tensor([[values[int(mark)][int(step)]] for mark, step in batch.observations["state"]])


def test_episodes_are_kept_by_how_much_they_exceed_what_the_critic_expects():
    buffer = make_buffer("advantage", episodes_per_task=2, gamma=0.5)
    # Returns 0.5 ** (steps - 1): 1/2, 1/4, 1/8, 1
    buffer.extend([episode([2], mark=0), episode([3], mark=1), episode([3, 1], mark=2), episode([1], mark=3)])
    assert len(buffer.episodes["a"]) == 4, "until the critic has its say"
    buffer.rate(valued([0.1], [0.2], [0.0, 0.0], [1.0]))
    assert [int(demo.actions[0, 0, 0]) for demo in buffer.episodes["a"]] == [0, 2]
    buffer.rate(valued([0.1], [0.0], [0.2, 0.0], [0.0]))
    assert [int(demo.actions[0, 0, 0]) for demo in buffer.episodes["a"]] == [0], "no longer better than expected"
    buffer.rate(valued([0.6]))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)


def test_while_the_critic_has_no_say_there_is_an_end_to_what_is_held():
    buffer = make_buffer("advantage", episodes_per_task=2)
    assert [buffer.add(episode([3], mark=0)) for _ in range(21)] == [True] * 20 + [False]
    assert buffer.add(episode([3], task="b")), "each task has its own"
    buffer.rate(valued([0.0]))
    assert steps(buffer) == [3, 3] and buffer.add(episode([3]))


def test_pairs_are_drawn_by_how_much_they_exceed_what_the_critic_expects():
    buffer = make_buffer("advantage", gamma=0.5)
    buffer.extend([episode([1, 1, 1], mark=0), episode([1], mark=1), episode([1], task="b", mark=2)])
    buffer.rate(valued([0.0, 0.75, 0.75], [0.5], [0.0]))  # advantages 0.25, -0.25, 0.25 and 0.5
    drawn = buffer.sample(4000).observations["state"]
    shares = {
        (mark, step): ((drawn == th.tensor([mark, step])).all(dim=1)).sum().item() / 4000 for mark, step in drawn.tolist()
    }
    expected = {(0.0, 0.0): 0.125, (0.0, 2.0): 0.125, (1.0, 0.0): 0.25, (2.0, 0.0): 0.5}
    assert shares.keys() == expected.keys()
    assert all(abs(shares[pair] - share) < 0.035 for pair, share in expected.items())
    # An episode that the critic has not seen yet makes its task's pairs alike again
    buffer.add(episode([1], mark=1))
    assert len({tuple(pair) for pair in buffer.sample(200).observations["state"].tolist()}) == 5


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_advantages_are_returns_less_values(data):
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    n = len(lengths)
    rewards = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n))
    values = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n))
    gamma = data.draw(st.floats(0, 1))
    demonstration = replace(episode(lengths), rewards=np.array(rewards, np.float32))
    returns = [sum(gamma ** sum(lengths[t:later]) * rewards[later] for later in range(t, n)) for t in range(n)]
    np.testing.assert_allclose(demonstration.returns(gamma), returns, atol=1e-9)
    buffer = make_buffer("advantage", gamma=gamma)
    buffer.add(demonstration)
    buffer.rate(lambda batch: th.tensor(values, dtype=th.float64).unsqueeze(1))
    advantages = np.array(returns) - values
    assert len(buffer) == (n if advantages[0] > 0 else 0)
    if len(buffer):
        drawn = set(buffer.sample(50).observations["state"][:, 1].int().tolist())
        assert drawn <= {t for t in range(n) if advantages[t] > 0}


def test_without_rewards_a_success_counts_as_one(tmp_path):
    buffer = make_buffer("advantage", gamma=0.5)
    buffer.extend([episode([2, 2]), replace(episode([1]), rewards=np.array([3.0], np.float32))])
    np.testing.assert_allclose([demo.returns(0.5)[0] for demo in buffer.episodes["a"]], [0.125, 3.0])
    buffer.save(tmp_path / "demos")  # of which all have rewards or none
    loaded = make_buffer("advantage", gamma=0.5)
    loaded.load(tmp_path / "demos")
    np.testing.assert_allclose([demo.returns(0.5)[0] for demo in loaded.episodes["a"]], [0.125, 3.0])


@pytest.mark.parametrize("rewards", [[0, 1], [0.0, 1.0], np.array([0, 1], np.float16)], ids=repr)
def test_rewards_of_any_numbers_are_kept_beside_those_of_the_agent(rewards, tmp_path):
    buffer = make_buffer("advantage", gamma=0.5)
    given = [replace(episode([2, 2]), rewards=each) for each in (rewards, np.array([0.5, 1], np.float32))]
    assert buffer.extend(given) == 2
    buffer.save(tmp_path / "demos")
    loaded = make_buffer("advantage", gamma=0.5)
    loaded.load(tmp_path / "demos")
    assert [demo.rewards.tolist() for demo in loaded.episodes["a"]] == [[0, 1], [0.5, 1]]


class Expects:
    """A critic that expects the same everywhere, and remembers how many it was asked about at a time."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def __call__(self, batch):
        self.asked.append(len(batch.observations["state"]))
        return th.full((self.asked[-1], 1), self.value)


def test_returns_are_held_against_the_critic_in_its_units():
    env = VecNormalize(DummyVecEnv([lambda: IdentityEnv(2)]), norm_obs=False)
    env.ret_rms.var = np.array(0.25**2)  # a reward of 1 is 4 to the critic
    for normalizer, kept in ((None, False), (env, True)):
        buffer = make_buffer(rule="advantage")
        buffer.add(episode([1]))
        buffer.rate(Expects(2.0), normalizer)
        assert bool(len(buffer)) == kept


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_critic_is_asked_about_so_many_at_a_time(size):
    buffer = make_buffer(rule="advantage")
    buffer.extend([episode([1] * 5), episode([1] * 4)])
    critic = Expects(0.0)
    buffer.rate(critic, batch_size=size)
    assert sum(critic.asked) == 9 and max(critic.asked) == min(size, 9)


def test_single_steps_are_held_in_chunks_beside_those_of_chunks(tmp_path):
    single = Demonstration(
        "a",
        {"state": np.arange(14, dtype=np.float64).reshape(7, 2)},  # of another dtype, too
        np.arange(7, dtype=np.float64).reshape(7, 1, 1) / 10,
        np.ones(7, np.int64),
        True,
        rewards=np.arange(7),
    )
    buffer = make_buffer(gamma=0.5)
    buffer.extend([episode([3, 3, 3]), single])
    held = buffer.episodes["a"][0]
    assert held.observations["state"].tolist() == [[0, 1], [6, 7], [12, 13]] and held.chunk_lengths.tolist() == [3, 3, 1]
    np.testing.assert_allclose(held.actions[:, :, 0], [[0, 0.1, 0.2], [0.3, 0.4, 0.5], [0.6, 0, 0]], rtol=1e-6)
    assert held.rewards.tolist() == [0 + 0.5 + 0.5, 3 + 2 + 1.25, 6]
    assert held.returns(0.5)[0] == pytest.approx(single.returns(0.5)[0])
    buffer.save(tmp_path / "buffer.npz")
    again = make_buffer()
    again.load(tmp_path / "buffer.npz")
    assert steps(again) == [7, 9] and held.actions.dtype == again.episodes["a"][0].actions.dtype == np.float32

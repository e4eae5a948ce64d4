import numpy as np
import pytest

from sb3_vla_envs import Demonstration


def demonstration(n_chunks, task="push-v3", success=True, seed=0):
    rng = np.random.default_rng(seed)
    return Demonstration(
        task=task,
        observations={
            "image": rng.integers(0, 256, (n_chunks, 6, 5, 3), dtype=np.uint8),
            "state": rng.normal(size=(n_chunks, 4)).astype(np.float32),
        },
        actions=rng.normal(size=(n_chunks, 3, 4)).astype(np.float32),
        chunk_lengths=np.array([3] * (n_chunks - 1) + [2]),
        success=success,
    )


def test_length_is_in_chunks_and_n_steps_in_primitive_steps():
    demo = demonstration(4)
    assert len(demo) == 4
    assert demo.n_steps == 3 + 3 + 3 + 2


def test_an_observation_that_is_an_array_goes_by_its_key():
    demo = Demonstration("", np.zeros((3, 4)), np.zeros((3, 2)), np.ones(3, np.int64), True)
    assert demo.observations["observation"].shape == (3, 4)


def test_each_is_itself():
    first, second = demonstration(3), demonstration(3)
    demos = [first, second]
    demos.remove(second)
    assert first in demos and second not in demos and len({first, second}) == 2


def test_arrays_must_agree_on_the_number_of_chunks():
    with pytest.raises(ValueError, match=r"'actions': 2.*'chunk_lengths': 3"):
        Demonstration("push-v3", {"state": np.zeros((3, 4))}, np.zeros((2, 3, 4), np.float32), np.ones(3, np.int64), True)


@pytest.mark.parametrize(("given", "task"), [("push-v3", "push-v3"), (None, ""), (3, "3"), (("a", 1), "('a', 1)")])
def test_task_of_any_type_becomes_text(given, task):
    assert demonstration(2, task=given).task == task


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["actions", "state"])
def test_numbers_that_are_not_finite_are_refused(field, bad):
    demo = demonstration(4)
    arrays = {"actions": demo.actions, **demo.observations}
    arrays[field][2, 0] = bad
    with pytest.raises(ValueError, match=f"'{field}' of a demonstration of task 'push-v3' must be finite, but chunk 2"):
        Demonstration("push-v3", demo.observations, demo.actions, demo.chunk_lengths, True)


def test_rewards_are_one_number_a_chunk():
    demo = demonstration(2)
    with pytest.raises(ValueError, match=r"'rewards' of .* task 'push-v3' must be one number a chunk, got shape \(2, 1\)"):
        Demonstration("push-v3", demo.observations, demo.actions, demo.chunk_lengths, True, rewards=[[0], [1]])


@pytest.mark.parametrize("length", [-1, 0, 4])
def test_chunk_lengths_out_of_range_are_refused(length):
    demo = demonstration(4)
    demo.chunk_lengths[1] = length
    with pytest.raises(ValueError, match=rf"'chunk_lengths' .* task 'push-v3' must be in 1..3, .* chunk 1 is {length}"):
        Demonstration("push-v3", demo.observations, demo.actions, demo.chunk_lengths, True)


def test_chunks_are_not_cut_to_another_size():
    demo = demonstration(3)
    size = demo.actions.shape[1]
    assert demo.chunk(0, size)[1] == demo.chunk_lengths[0]
    message = f"in chunks of {size} actions, which can't be cut to {size + 1}: .*every_step=True"
    with pytest.raises(ValueError, match=message):
        demo.chunk(0, size + 1)
    with pytest.raises(ValueError, match=message):
        demo.in_chunks(size + 1, gamma=0.99)


def test_actions_without_chunks_count_as_one_step_each():
    demo = Demonstration("", {"observation": np.ones((4, 2))}, np.full(4, 3), np.ones(4, np.int64), True)
    assert demo.n_steps == 4
    with pytest.raises(ValueError, match=r"must be in 1..1, "):
        Demonstration("", {"observation": np.ones((4, 2))}, np.full(4, 3), np.full(4, 2), True)


@pytest.mark.parametrize(("steps", "lengths"), [(1, [1]), (3, [3]), (5, [3, 2]), (11, [3, 3, 3, 2])])
def test_what_comes_after_success_is_left_out(steps, lengths):
    whole = demonstration(4)
    demo = Demonstration("push-v3", whole.observations, whole.actions, whole.chunk_lengths, True, steps_to_success=steps)
    assert list(demo.chunk_lengths) == lengths and demo.n_steps == steps
    np.testing.assert_array_equal(demo.observations["image"], whole.observations["image"][: len(lengths)])
    np.testing.assert_array_equal(demo.actions, whole.actions[: len(lengths)])
    assert list(whole.chunk_lengths) == [3, 3, 3, 2]


@pytest.mark.parametrize("steps", [0, 12])
def test_success_must_lie_in_the_episode(steps):
    whole = demonstration(4)
    with pytest.raises(ValueError, match=r"'steps_to_success' .* must be in 1..11, .* got"):
        Demonstration("push-v3", whole.observations, whole.actions, whole.chunk_lengths, True, steps_to_success=steps)


def test_lists_become_arrays():
    demo = Demonstration("push-v3", {"state": [[1, 2], [3, 4]], "other": [5, 6]}, [[[0.5], [0.5]]] * 2, [2, 1], True)
    assert demo.actions.shape == (2, 2, 1) and demo.n_steps == 3 and demo.chunk_lengths.dtype == np.int64
    assert demo.observations["state"].dtype == np.float32 and demo.observations["state"].tolist() == [[1, 2], [3, 4]]
    assert demo.observations["other"].dtype.kind == "i"


def test_arrays_of_pictures_that_lie_in_a_file_are_not_copied(tmp_path):
    pictures = np.memmap(tmp_path / "pictures", np.uint8, "w+", shape=(4, 6, 5, 3))
    demo = demonstration(4)
    demo = Demonstration("push-v3", {**demo.observations, "image": pictures}, demo.actions, demo.chunk_lengths, True)
    assert np.shares_memory(demo.observations["image"], pictures)


@pytest.mark.parametrize("key", ["state", "other"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.array([[1.0], [None]], dtype=object),
            r"must be an array of numbers, .* got object of shape \(2, 1\)",
        ),
        (["a", "b"], "must be an array of numbers, .* got <U1"),
        (3.0, r"must be an array of numbers, .* got float64 of shape \(\)"),
        ([[1.0], [1.0, 2.0]], "can't be an array: .*inhomogeneous"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_by_its_key(key, values, message):
    with pytest.raises(ValueError, match=f"'{key}' of a demonstration of task 'push-v3' {message}"):
        Demonstration("push-v3", {key: values}, np.zeros((2, 3, 4), np.float32), [3, 3], True)

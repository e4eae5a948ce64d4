import pytest
import torch as th

from sb3_vla import PPOSelfBC
from sb3_vla.imitation.demonstration_buffer import DemonstrationSamples
from sb3_vla.ppo_self_bc.micro_batch import batch_share, largest_micro_batch, split_batch
from sb3_vla.ppo_self_bc.update_memory import missing_optimizer_state


def make_batch() -> DemonstrationSamples:
    observations = {"state": th.arange(10.0).view(5, 2), "image": th.arange(5)}
    return DemonstrationSamples(observations, actions=th.arange(15.0).view(5, 3), chunk_lengths=th.tensor([1, 3, 2, 3, 3]))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pieces_are_the_batch_cut_in_order(size):
    batch = make_batch()
    pieces = list(split_batch(batch, size))
    assert [len(piece.actions) for piece in pieces] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    assert th.equal(th.cat([piece.actions for piece in pieces]), batch.actions)
    for key, values in batch.observations.items():
        assert th.equal(th.cat([piece.observations[key] for piece in pieces]), values)


@pytest.mark.parametrize("size", [None, 5, 6])
def test_a_batch_that_fits_is_left_whole(size):
    batch = make_batch()
    (piece,) = split_batch(batch, size)
    assert piece is batch and batch_share(piece, batch) == 1.0 == batch_share(piece, batch, by_steps=True)


def test_shares_count_chunks_or_executed_steps():
    batch = make_batch()
    first, second, third = split_batch(batch, 2)
    assert [batch_share(piece, batch) for piece in (first, second, third)] == [2 / 5, 2 / 5, 1 / 5]
    shares = [batch_share(piece, batch, by_steps=True) for piece in (first, second, third)]
    assert shares == pytest.approx([4 / 12, 5 / 12, 3 / 12])


def test_chunks_of_no_steps_count_for_nothing():
    batch = make_batch()._replace(chunk_lengths=th.zeros(5, dtype=th.int64))
    assert [float(batch_share(piece, batch, by_steps=True)) for piece in split_batch(batch, 2)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    # Of 10 a sample, and at least 100, pieces of 1, 2, 4, .. are measured; from the last one on all may grow with the samples
    [(99, 0), (100, 1), (199, 1), (310, 16 * 310 // 160), (1000, 64 * 1000 // 640), (10**6, 10**6 // 10)],
)
def test_a_piece_that_surely_fits(n_bytes, expected):
    asked = []

    def peak(size):
        asked.append(max(100, 10 * size))
        return asked[-1]

    found = largest_micro_batch(peak, n_bytes, n_samples=500)
    assert found == expected
    assert max(100, 10 * found) <= n_bytes or found == 0
    assert len(asked) == 1 or max(asked) <= n_bytes  # nothing was tried that does not fit, but for a single sample


@pytest.mark.parametrize("left", [2**40, -1, 600_000])
def test_the_largest_micro_batch_that_fits_is_found_with_the_first_update(
    left, make_model, make_demonstrations, monkeypatch, recwarn
):
    free = missing_optimizer_state(make_model().policy) + left
    monkeypatch.setattr("sb3_vla.ppo_self_bc.micro_batch.free_memory", lambda device: free)
    found = learn_with_demonstrations(make_model, make_demonstrations, micro_batch_size="auto")
    if left == 2**40:
        assert found.micro_batch_size is None
    else:
        assert 1 <= found.micro_batch_size < 16
    assert (left < 0) == any("too little for the gradient of a single sample" in str(each.message) for each in recwarn)
    # Looking for it changes nothing
    given = learn_with_demonstrations(make_model, make_demonstrations, micro_batch_size=found.micro_batch_size)
    for name, value in given.policy.state_dict().items():
        assert th.equal(found.policy.state_dict()[name], value), name


def learn_with_demonstrations(make_model, make_demonstrations, **kwargs):
    model = make_model(bc_weight=0.5, **kwargs)
    model.replay_buffer.extend(make_demonstrations())
    return model.learn(32)


def test_a_micro_batch_that_was_found_is_saved(make_model, tmp_path):
    model = make_model(micro_batch_size="auto").learn(16)
    assert model.micro_batch_size is None
    model.save(tmp_path / "model.zip")
    assert PPOSelfBC.load(tmp_path / "model.zip").micro_batch_size is None
    assert PPOSelfBC.load(tmp_path / "model.zip", micro_batch_size="auto").micro_batch_size == "auto"

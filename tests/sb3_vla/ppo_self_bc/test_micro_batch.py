import pytest
import torch as th

from sb3_vla.imitation.demonstration_buffer import DemonstrationSamples
from sb3_vla.ppo_self_bc.micro_batch import batch_share, split_batch


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

import torch as th

from sb3_vla.common.chunk_mask import executed_mask, masked_mean


def test_executed_mask_has_k_ones_in_front():
    assert executed_mask(th.tensor([1, 3, 4]), 4).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_masked_mean_counts_only_what_the_mask_selects():
    x = th.tensor([[1.0, 100.0], [3.0, 5.0]])
    assert masked_mean(x, th.tensor([[1.0, 0.0], [1.0, 1.0]])) == 3
    assert masked_mean(x, None) == 109 / 4

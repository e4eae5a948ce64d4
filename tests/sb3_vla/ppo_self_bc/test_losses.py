import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_vla.common.chunk_mask import executed_mask, masked_mse
from sb3_vla.ppo_self_bc.losses import approximate_kl, clipped_surrogate_loss, value_loss


def test_clipped_surrogate_per_chunk_by_hand():
    ratio = th.tensor([1.5, 0.5, 1.5, 0.5, 1.1])
    advantages = th.tensor([2.0, 2.0, -2.0, -2.0, 1.0])
    # min(A r, A clip(r)): 2*1.2, 2*0.5, -2*1.5, -2*0.8, 1.1
    expected = -(2.4 + 1.0 - 3.0 - 1.6 + 1.1) / 5
    assert clipped_surrogate_loss(ratio, advantages, 0.2).item() == pytest.approx(expected)


def test_clipped_surrogate_per_step_by_hand():
    ratio = th.tensor([[1.5, 0.9, 99.0], [1.5, 99.0, 99.0]])
    mask = th.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # Executed steps: 2*1.2, 2*0.9 of the first chunk, -1*1.5 of the second
    expected = -(2.4 + 1.8 - 1.5) / 3
    assert clipped_surrogate_loss(ratio, th.tensor([2.0, -1.0]), 0.2, mask).item() == pytest.approx(expected)


def test_gradient_of_the_clipped_surrogate_vanishes_where_clipping_binds():
    ratio = th.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    clipped_surrogate_loss(ratio, th.tensor([1.0, 1.0, -1.0, -1.0]), 0.2).backward()
    assert ratio.grad.tolist() == [0.0, -0.25, 0.25, 0.0]


def test_approximate_kl_by_hand():
    log_ratio = th.tensor([math.log(2.0), math.log(0.5)])
    expected = ((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))) / 2
    assert approximate_kl(log_ratio).item() == pytest.approx(expected)


def test_approximate_kl_of_a_chunk_sums_its_executed_steps():
    log2 = math.log(2.0)
    log_ratio = th.tensor([[log2, log2, 50.0], [log2, 50.0, 50.0]])
    mask = executed_mask(th.tensor([2, 1]), 3)
    # Two steps in the first chunk, one in the second: mean over two chunks
    assert approximate_kl(log_ratio, mask).item() == pytest.approx(3 * (1 - log2) / 2)


def test_bc_mse_by_hand():
    mean = th.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [9.0, 9.0]]])
    actions = th.zeros(2, 2, 2)
    # Executed steps: (0, 0), (1, 1), (2, 0): mean squares 0, 1, 2
    assert masked_mse(mean, actions, executed_mask(th.tensor([2, 1]), 2)).item() == pytest.approx(1.0)
    assert masked_mse(th.tensor([[3.0, 1.0]]), th.tensor([[1.0, 1.0]])).item() == pytest.approx(2.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_losses_equal_a_loop_over_executed_steps_and_unexecuted_steps_get_no_gradient(lengths, seed):
    rng = np.random.default_rng(seed)
    n, h, d = len(lengths), 4, 2
    mean, actions = (th.tensor(rng.normal(size=(n, h, d)), requires_grad=True) for _ in range(2))
    log_ratio = th.tensor(rng.normal(scale=0.3, size=(n, h)), requires_grad=True)
    advantages = th.tensor(rng.normal(size=n))
    mask = executed_mask(th.tensor(lengths), h).double()
    bc = masked_mse(mean, actions, mask)
    surrogate = clipped_surrogate_loss(log_ratio.exp(), advantages, 0.2, mask)

    errors, gains = [], []
    for i, length in enumerate(lengths):
        for step in range(length):
            errors += [(mean[i, step, j].item() - actions[i, step, j].item()) ** 2 for j in range(d)]
            ratio, advantage = math.exp(log_ratio[i, step].item()), advantages[i].item()
            gains.append(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
    assert bc.item() == pytest.approx(np.mean(errors))
    assert surrogate.item() == pytest.approx(-np.mean(gains))

    (bc + surrogate + approximate_kl(log_ratio, mask)).backward()
    assert (mean.grad[mask == 0] == 0).all() and (log_ratio.grad[mask == 0] == 0).all()
    assert (mean.grad[mask == 1] != 0).all()


def test_value_loss_is_the_squared_error_and_clips_the_change():
    values, old, returns = th.tensor([1.0, 2.0]), th.tensor([0.5, 2.0]), th.tensor([0.0, 3.0])
    assert value_loss(values, old, returns).item() == pytest.approx((1.0 + 1.0) / 2)
    # The first value may only move from 0.5 to 0.7
    assert value_loss(values, old, returns, clip_range_vf=0.2).item() == pytest.approx((0.7**2 + 1.0) / 2)

import pytest
import torch as th
from torch._subclasses.fake_tensor import FakeTensorMode

from sb3_vla.common.tensor_memory import TensorMemory, peak_memory

KIB = 256  # float32


def test_tensors_count_while_something_refers_to_them():
    with TensorMemory() as memory:
        a = th.zeros(KIB)
        b = a + 1
        assert memory.n_bytes == memory.peak == 2048
        del a
        assert memory.n_bytes == 1024
        c = th.cat([b, b])
        assert memory.n_bytes == memory.peak == 3072
        del b, c
    assert (memory.n_bytes, memory.peak) == (0, 3072)


def test_another_look_at_a_tensor_and_what_is_changed_in_place_count_nothing():
    before = th.zeros(KIB)
    with TensorMemory() as memory:
        views = [before.view(2, -1), before[:3], before.add_(1), before.to(th.float32)]
    assert memory.peak == 0 and len(views) == 4


def test_a_view_keeps_what_it_looks_at():
    with TensorMemory() as memory:
        part = th.zeros(4 * KIB)[:1]
        assert memory.n_bytes == 4096
        del part
    assert memory.n_bytes == 0


def test_what_a_gradient_needs_counts():
    weights = [th.ones(KIB, requires_grad=True) for _ in range(2)]
    with TensorMemory() as memory:
        loss = ((th.ones(KIB) * weights[0]).exp() * weights[1]).sum()
        # The ones, the exponential and the scalar; two products are needed for no gradient
        assert memory.n_bytes == 2 * 1024 + 4
        loss.backward()
        del loss
    assert memory.n_bytes == 2 * 1024  # the gradients


def test_fake_tensors_count_as_real_ones_and_known_masks_may_choose_of_them():
    mask = th.tensor([True, False, True, True])
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = th.zeros(4, KIB)
    with TensorMemory() as memory:
        chosen = rows[mask]
        assert chosen.shape == (3, KIB) and memory.n_bytes >= 3072
        rows[mask] = chosen
        twice = rows * 2
    assert memory.peak >= 3072 + 4096 and twice.shape == rows.shape


def test_the_peak_of_some_work_is_what_it_took_beside_what_was_there():
    kept = th.zeros(100 * KIB)

    def work():
        return (kept[:KIB] * 2).sum()

    assert peak_memory(th.device("cpu"), work) == pytest.approx(1024, abs=64)

import numpy as np
import pytest
import torch as th

from sb3_vla.policies.normalizer import Normalizer


def test_is_the_identity_until_fitted():
    x = th.randn(5, 3)
    assert th.equal(Normalizer(3)(x), x)


def test_standardises_with_the_statistics_of_the_data():
    x = np.random.default_rng(0).normal([1, -5], [2, 0.5], size=(50, 2)).astype(np.float32)
    normalizer = Normalizer(2)
    normalizer.fit(th.tensor(x))
    np.testing.assert_allclose(normalizer(th.tensor(x)).numpy(), (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)


def test_a_number_that_never_changes_is_not_blown_up():
    normalizer = Normalizer(1)
    normalizer.fit(th.full((10, 1), 3.0), minimum_std=0.5)
    assert normalizer(th.tensor([[3.0], [4.0]])).flatten().tolist() == [0.0, 1.0]


def test_a_number_that_hardly_ever_changes_is_divided_by_the_minimum():
    normalizer = Normalizer(1)
    normalizer.fit(th.tensor([[3.0], [3.001]]), minimum_std=0.5)
    assert normalizer(th.tensor([[4.0005]])).item() == pytest.approx(2.0, abs=1e-4)


def test_a_single_sample_can_be_fitted():
    normalizer = Normalizer(2)
    normalizer.fit(th.tensor([[1.0, 2.0]]))
    assert normalizer(th.tensor([[1.0, 2.0]])).tolist() == [[0.0, 0.0]]


def test_statistics_travel_with_the_weights_and_are_not_trained():
    fitted, fresh = Normalizer(2), Normalizer(2)
    fitted.fit(th.tensor([[0.0, 10.0], [4.0, 30.0]]))
    fresh.load_state_dict(fitted.state_dict())
    assert fresh(th.tensor([[2.0, 30.0]])).tolist() == [[0.0, 1.0]]
    assert list(fitted.parameters()) == []


def test_accepts_float64_input():
    assert Normalizer(1)(th.ones(1, 1, dtype=th.float64)).dtype == th.float32


@pytest.mark.parametrize("dtype", [th.uint8, th.int64, th.float16])
def test_any_numbers_can_be_fitted(dtype):
    normalizer = Normalizer(1)
    normalizer.fit(th.tensor([[0], [4]], dtype=dtype))
    assert normalizer.mean.item() == normalizer.std.item() == 2

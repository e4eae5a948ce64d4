import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_vla.ppo_self_bc.bc_weight import (
    BC_WEIGHTS,
    ConstantWeight,
    GradientBalance,
    LossWeights,
    SuccessDriven,
    TanhWarmup,
    TrainingStatistics,
    make_bc_weight,
)


def test_constant():
    assert ConstantWeight(0.3)(TrainingStatistics(123)) == LossWeights(ppo=1.0, bc=0.3)


def test_tanh_warmup_fades_ppo_in_by_the_hyperbolic_tangent():
    rule = TanhWarmup(weight=0.7, warmup_timesteps=100)
    assert rule(TrainingStatistics(0)) == LossWeights(ppo=0.0, bc=0.7)
    assert rule(TrainingStatistics(50)).ppo == pytest.approx((math.e - 1) / (math.e + 1))  # tanh(1/2)
    assert rule(TrainingStatistics(10_000)).ppo == pytest.approx(1.0)


def test_success_driven_goes_linearly_from_weight_to_minimum():
    rule = SuccessDriven(weight=2.0, minimum=0.5)
    weights = [rule(TrainingStatistics(0, success_rate=rate)).bc for rate in (0.0, 0.5, 1.0)]
    assert weights == [2.0, 1.25, 0.5]
    # Before the first episode ended nothing is known to succeed
    assert rule(TrainingStatistics(0, success_rate=None)).bc == 2.0


def test_gradient_balance_holds_the_proportion():
    rule = GradientBalance(ratio=0.5, maximum=10.0)
    weights = rule(TrainingStatistics(0, ppo_grad_norm=3.0, bc_grad_norm=6.0))
    assert weights == LossWeights(ppo=1.0, bc=0.25)


def test_gradient_balance_is_bounded_and_off_without_a_gradient():
    rule = GradientBalance(ratio=0.5, maximum=10.0)
    assert rule(TrainingStatistics(0, ppo_grad_norm=1.0, bc_grad_norm=1e-6)).bc == 10.0
    assert rule(TrainingStatistics(0, ppo_grad_norm=1.0, bc_grad_norm=0.0)).bc == 0.0
    assert rule(TrainingStatistics(0, ppo_grad_norm=0.0, bc_grad_norm=1.0)).bc == 0.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_success_never_means_more_imitation(first, second):
    worse, better = sorted((first, second))
    rule = SuccessDriven(weight=1.0, minimum=0.1)
    bc_worse, bc_better = (rule(TrainingStatistics(0, success_rate=rate)).bc for rate in (worse, better))
    assert 0.1 <= bc_better <= bc_worse + 1e-12 and bc_worse <= 1.0


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_ppo_only_fades_in(first, second):
    early, late = sorted((first, second))
    rule = TanhWarmup(warmup_timesteps=1000)
    assert rule(TrainingStatistics(early)).ppo <= rule(TrainingStatistics(late)).ppo


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 2))
def test_gradient_balance_weighs_bc_at_most_by_its_ratio(ppo, bc, ratio):
    weight = GradientBalance(ratio=ratio)(TrainingStatistics(0, ppo_grad_norm=ppo, bc_grad_norm=bc)).bc
    assert weight * bc == pytest.approx(min(ratio * ppo, 10 * bc))


def test_only_a_constant_zero_is_off():
    assert make_bc_weight(0).is_off and make_bc_weight("constant", {"weight": 0}).is_off
    assert not any(make_bc_weight(name).is_off for name in BC_WEIGHTS)


def test_rules_by_number_name_and_instance():
    assert make_bc_weight(0.5) == ConstantWeight(0.5)
    assert make_bc_weight("tanh", {"warmup_timesteps": 5}) == TanhWarmup(warmup_timesteps=5)
    rule = GradientBalance()
    assert make_bc_weight(rule) is rule


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("sucess",), ValueError, "'sucess'.*constant.*gradient_balance.*success.*tanh"),
        ((-0.5,), ValueError, "weight of the BC loss must be at least 0, got -0.5"),
        ((None,), TypeError, "bc_weight must be a number, a BCWeight or one of .*tanh.*, got None"),
        (("tanh", {"T": 3}), TypeError, r"'tanh'.*\['T'\].*weight.*warmup_timesteps"),
        ((0.5, {"weight": 1}), TypeError, "weight.*0.5"),
        (("constant", {"weight": -1}), ValueError, "weight of the BC loss must be at least 0, got -1"),
        (("success", {"minimum": -0.1}), ValueError, "minimum of the BC loss must be at least 0, got -0.1"),
        (("tanh", {"warmup_timesteps": 0}), ValueError, "warmup_timesteps must be above 0, got 0"),
        (("gradient_balance", {"ratio": -2}), ValueError, "ratio of the BC loss must be at least 0, got -2"),
    ],
)
def test_bad_rules_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_bc_weight(*arguments)

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch.distributions import Normal

from sb3_vla.policies.heads.gaussian import GaussianChunkHead


def make_head(correlation: float = 0.0) -> GaussianChunkHead:
    th.manual_seed(0)
    head = GaussianChunkHead(features_dim=5, chunk_size=3, primitive_dim=2, hidden_dim=8, noise_correlation=correlation)
    head.log_std.data = th.tensor([-1.0, 0.5])
    return head


def test_shapes():
    distribution = make_head()(th.randn(4, 5))
    actions = distribution.get_actions()
    assert actions.shape == distribution.mode().shape == (4, 3, 2)
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == (4, 3)


def test_log_prob_of_a_step_is_the_closed_form():
    head, features = make_head(), th.randn(4, 5)
    distribution = head(features)
    actions = th.randn(4, 3, 2)
    mean, std = distribution.mode().detach().numpy(), np.exp([-1.0, 0.5])
    z = (actions.numpy() - mean) / std
    expected = (-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(distribution.log_prob(actions).detach().numpy(), expected, rtol=1e-4)


def test_flat_actions_as_the_rollout_buffer_stores_them_give_the_same_log_prob():
    distribution = make_head()(th.randn(4, 5))
    actions = th.randn(4, 3, 2)
    assert th.equal(distribution.log_prob(actions), distribution.log_prob(actions.flatten(1)))


def test_steps_sum_to_sb3s_gaussian_over_the_flat_chunk():
    head, features = make_head(), th.randn(4, 5)
    distribution, actions = head(features), th.randn(4, 6)
    flat = DiagGaussianDistribution(6).proba_distribution(distribution.mode().flatten(1), head.log_std.repeat(3))
    assert th.allclose(distribution.log_prob(actions).sum(1), flat.log_prob(actions), atol=1e-5)
    assert th.allclose(distribution.entropy().sum(1), flat.entropy(), atol=1e-5)


def test_entropy_is_the_closed_form():
    expected = Normal(0.0, th.tensor([-1.0, 0.5]).exp()).entropy().sum().item()
    np.testing.assert_allclose(make_head()(th.randn(2, 5)).entropy().detach().numpy(), expected, rtol=1e-6)


def test_unexecuted_steps_get_no_gradient_through_the_mean():
    distribution = make_head()(th.randn(2, 5))
    mean = distribution.mode()
    mean.retain_grad()
    distribution.distribution.loc.retain_grad()
    distribution.log_prob(th.randn(2, 3, 2))[:, :2].sum().backward()
    gradient = distribution.distribution.loc.grad
    assert (gradient[:, 2] == 0).all() and (gradient[:, :2] != 0).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_samples_vary(deterministic):
    distribution = make_head()(th.randn(2, 5))
    first, second = (distribution.get_actions(deterministic=deterministic) for _ in range(2))
    assert th.equal(first, second) == deterministic


def test_standard_deviation_of_samples_is_exp_log_std():
    distribution = make_head()(th.randn(1, 5).repeat(20_000, 1))
    std = distribution.get_actions().detach().std(dim=0)
    assert th.allclose(std, th.tensor([-1.0, 0.5]).exp().expand(3, 2), rtol=0.03)


def noise_covariance(correlation: float) -> th.Tensor:
    """Covariance of the three steps of one dimension's noise, in units of its variance: ``rho**|s - t|``."""
    steps = th.arange(3)
    return correlation ** (steps[:, None] - steps).abs().float()


@pytest.mark.parametrize("correlation", [0.4, 1.0])
def test_log_prob_and_entropy_are_those_of_each_step_alone_whatever_the_correlation(correlation):
    features, actions = th.randn(4, 5), th.randn(4, 3, 2)
    independent, correlated = make_head()(features), make_head(correlation)(features)
    assert th.equal(correlated.log_prob(actions), independent.log_prob(actions))
    assert th.equal(correlated.entropy(), independent.entropy())


@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_samples_have_the_covariance_of_an_autoregressive_process(correlation):
    distribution = make_head(correlation)(th.randn(1, 5).repeat(40_000, 1))
    samples = distribution.get_actions().detach()
    for j, std in enumerate(th.tensor([-1.0, 0.5]).exp()):
        covariance = th.cov(samples[:, :, j].T) / std**2
        assert th.allclose(covariance, noise_covariance(correlation), atol=0.03)
    assert th.allclose(samples.mean(0), distribution.mode()[0], atol=0.05)


def test_full_correlation_shifts_the_whole_chunk_by_one_draw():
    distribution = make_head(1.0)(th.randn(4, 5))
    noise = distribution.get_actions() - distribution.mode()
    assert th.allclose(noise, noise[:, :1].expand(-1, 3, -1), atol=1e-6) and (noise[:, 0].abs() > 1e-4).all()


def test_policy_gradient_is_the_noise_covariance_times_the_gradient_of_the_return():
    """Of a return that is linear in the actions, whose gradient is known: the claim of the class's docstring."""
    distribution = make_head(0.7)(th.randn(1, 5).repeat(100_000, 1))
    distribution.distribution.loc.retain_grad()
    weights = th.tensor([[1.0, 0.0], [-2.0, 0.5], [0.0, 1.0]])
    actions = distribution.get_actions().detach()
    advantages = ((actions - distribution.mode().detach()) * weights).sum((1, 2))
    (advantages[:, None] * distribution.log_prob(actions)).mean(0).sum().backward()
    gradient = distribution.distribution.loc.grad.sum(0)
    assert th.allclose(gradient, noise_covariance(0.7) @ weights, atol=0.06)


@pytest.mark.parametrize("correlation", [-0.1, 1.1])
def test_correlation_out_of_range_is_refused(correlation):
    with pytest.raises(ValueError, match=rf"noise_correlation must be in \[0, 1\], got {correlation}"):
        make_head(correlation)

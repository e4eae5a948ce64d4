import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch.distributions import Normal

from sb3_vla import BackboneFeatures, ChunkSample, GaussianHead

UNIT = spaces.Box(-1, 1, (3, 2), np.float32)


def make_head(correlation: float = 0.0, space: spaces.Box = UNIT) -> GaussianHead:
    th.manual_seed(0)
    head = GaussianHead(5, space, hidden_dim=8, noise_correlation=correlation)
    head.log_std.data = th.tensor([-1.0, 0.5])
    return head


def features(action: th.Tensor) -> BackboneFeatures:
    return BackboneFeatures(action, th.full_like(action, th.nan))


def test_shapes():
    distribution = make_head()(features(th.randn(4, 5)))
    actions = distribution.get_actions()
    assert actions.shape == distribution.mode().shape == (4, 3, 2)
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == (4,)
    assert distribution.step_log_prob(ChunkSample(actions)).shape == distribution.step_entropy().shape == (4, 3)


def test_log_prob_of_a_step_is_the_closed_form():
    head = make_head()
    distribution = head(features(th.randn(4, 5)))
    actions = th.randn(4, 3, 2)
    mean, std = distribution.mode().detach().numpy(), np.exp([-1.0, 0.5])
    z = (actions.numpy() - mean) / std
    expected = (-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(distribution.step_log_prob(ChunkSample(actions)).detach().numpy(), expected, rtol=1e-4)


def test_flat_actions_as_the_rollout_buffer_stores_them_give_the_same_log_prob():
    distribution = make_head()(features(th.randn(4, 5)))
    actions = th.randn(4, 3, 2)
    assert th.equal(distribution.log_prob(actions), distribution.log_prob(actions.flatten(1)))


def test_steps_sum_to_sb3s_gaussian_over_the_flat_chunk():
    head = make_head()
    distribution, actions = head(features(th.randn(4, 5))), th.randn(4, 6)
    flat = DiagGaussianDistribution(6).proba_distribution(distribution.mode().flatten(1), head.log_std.repeat(3))
    assert th.allclose(distribution.log_prob(actions), flat.log_prob(actions), atol=1e-5)
    assert th.allclose(distribution.entropy(), flat.entropy(), atol=1e-5)


def test_entropy_is_the_closed_form():
    expected = Normal(0.0, th.tensor([-1.0, 0.5]).exp()).entropy().sum().item()
    np.testing.assert_allclose(make_head()(features(th.randn(2, 5))).step_entropy().detach().numpy(), expected, rtol=1e-6)


def test_unexecuted_steps_get_no_gradient_through_the_mean():
    distribution = make_head()(features(th.randn(2, 5)))
    mean = distribution.mode()
    mean.retain_grad()
    distribution.distribution.loc.retain_grad()
    distribution.step_log_prob(ChunkSample(th.randn(2, 3, 2)))[:, :2].sum().backward()
    gradient = distribution.distribution.loc.grad
    assert (gradient[:, 2] == 0).all() and (gradient[:, :2] != 0).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_samples_vary(deterministic):
    distribution = make_head()(features(th.randn(2, 5)))
    first, second = (distribution.get_actions(deterministic=deterministic) for _ in range(2))
    assert th.equal(first, second) == deterministic


def test_standard_deviation_of_samples_is_exp_log_std():
    distribution = make_head()(features(th.randn(1, 5).repeat(20_000, 1)))
    std = distribution.get_actions().detach().std(dim=0)
    assert th.allclose(std, th.tensor([-1.0, 0.5]).exp().expand(3, 2), rtol=0.03)


def noise_covariance(correlation: float) -> th.Tensor:
    """Covariance of the three steps of one dimension's noise, in units of its variance: ``rho**|s - t|``."""
    steps = th.arange(3)
    return correlation ** (steps[:, None] - steps).abs().float()


@pytest.mark.parametrize("correlation", [0.4, 1.0])
def test_log_prob_and_entropy_are_those_of_each_step_alone_whatever_the_correlation(correlation):
    read, actions = features(th.randn(4, 5)), th.randn(4, 3, 2)
    independent, correlated = make_head()(read), make_head(correlation)(read)
    assert th.equal(correlated.log_prob(actions), independent.log_prob(actions))
    assert th.equal(correlated.entropy(), independent.entropy())


@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_samples_have_the_covariance_of_an_autoregressive_process(correlation):
    distribution = make_head(correlation)(features(th.randn(1, 5).repeat(40_000, 1)))
    samples = distribution.get_actions().detach()
    for j, std in enumerate(th.tensor([-1.0, 0.5]).exp()):
        covariance = th.cov(samples[:, :, j].T) / std**2
        assert th.allclose(covariance, noise_covariance(correlation), atol=0.03)
    assert th.allclose(samples.mean(0), distribution.mode()[0], atol=0.05)


def test_full_correlation_shifts_the_whole_chunk_by_one_draw():
    distribution = make_head(1.0)(features(th.randn(4, 5)))
    noise = distribution.get_actions() - distribution.mode()
    assert th.allclose(noise, noise[:, :1].expand(-1, 3, -1), atol=1e-6) and (noise[:, 0].abs() > 1e-4).all()


def test_policy_gradient_is_the_noise_covariance_times_the_gradient_of_the_return():
    """Of a return that is linear in the actions, whose gradient is known: the claim of the class's docstring."""
    distribution = make_head(0.7)(features(th.randn(1, 5).repeat(100_000, 1)))
    distribution.distribution.loc.retain_grad()
    weights = th.tensor([[1.0, 0.0], [-2.0, 0.5], [0.0, 1.0]])
    actions = distribution.get_actions().detach()
    advantages = ((actions - distribution.mode().detach()) * weights).sum((1, 2))
    (advantages[:, None] * distribution.step_log_prob(ChunkSample(actions))).mean(0).sum().backward()
    gradient = distribution.distribution.loc.grad.sum(0)
    assert th.allclose(gradient, noise_covariance(0.7) @ weights, atol=0.06)


@pytest.mark.parametrize("correlation", [-0.1, 1.1])
def test_correlation_out_of_range_is_refused(correlation):
    with pytest.raises(ValueError, match=rf"noise_correlation must be at (least|most) [01], got {correlation}"):
        make_head(correlation)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-100.0, 100.0), (-0.05, 0.05)])
def test_other_bounds_are_the_same_policy_in_other_units(low, high):
    space = spaces.Box(low, high, (3, 2), np.float32)
    half, center = (high - low) / 2, (high + low) / 2
    read, mask = features(th.randn(4, 5)), th.ones(4, 3)
    unit, scaled = make_head(), make_head(space=space)
    assert th.allclose(scaled(read).mode(), center + half * unit(read).mode(), rtol=1e-5)
    actions = th.randn(4, 3, 2)
    in_env = ChunkSample(center + half * actions)
    log_prob = unit(read).step_log_prob(ChunkSample(actions)) - 2 * np.log(half)
    assert th.allclose(scaled(read).step_log_prob(in_env), log_prob, atol=1e-3)
    for kind in ("auto", "mse"):
        losses = unit.imitation_loss(read, actions, mask, kind), scaled.imitation_loss(read, in_env.actions, mask, kind)
        assert th.allclose(*losses, rtol=1e-4)


def test_imitation_losses_by_hand():
    head, read = make_head(), features(th.randn(2, 5))
    actions, mask = th.randn(2, 3, 2), th.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    error = (head(read).mode() - actions).square().mean(2)
    mse = (error[0, 0] + error[1, 0] + error[1, 1]) / 3
    assert th.allclose(head.imitation_loss(read, actions, mask), mse)
    log_prob = head(read).step_log_prob(ChunkSample(actions))
    nll = -(log_prob[0, 0] + log_prob[1, 0] + log_prob[1, 1]) / 3
    assert th.allclose(head.imitation_loss(read, actions, mask, "nll"), nll)
    with pytest.raises(
        ValueError, match=r"GaussianHead has no imitation loss 'huber': give 'auto' or one of \('mse', 'nll'\)"
    ):
        head.imitation_loss(read, actions, mask, "huber")


def test_some_chunks_get_noise_and_only_those_have_a_likelihood():
    th.manual_seed(0)
    head = GaussianHead(5, UNIT, hidden_dim=8, noise_probability=0.3)
    distribution = head(features(th.randn(4000, 5)))
    sample = distribution.draw()
    at_mean = (sample.actions == distribution.mode()).flatten(1).all(dim=1)
    has_noise = sample.extras["has_noise"]
    assert th.equal(at_mean, has_noise == 0) and abs(has_noise.mean().item() - 0.3) < 0.03
    log_prob = distribution.step_log_prob(sample)
    assert not log_prob[at_mean].any()
    assert th.equal(log_prob[~at_mean], distribution.step_log_prob(ChunkSample(sample.actions))[~at_mean])
    log_prob[at_mean].sum().backward()
    assert not head.log_std.grad.any(), "nothing to learn from a chunk without noise"
    assert th.equal(distribution.evaluate(sample)[1], distribution.step_entropy() * has_noise.unsqueeze(1))
    assert distribution.draw(deterministic=True).extras == {} == make_head()(features(th.randn(2, 5))).draw().extras


@pytest.mark.parametrize("probability", [0.0, 1.5, float("nan")])
def test_a_noise_probability_out_of_range_is_refused(probability):
    with pytest.raises(ValueError, match=f"noise_probability must be (above 0|at most 1|finite), got {probability}"):
        GaussianHead(5, UNIT, noise_probability=probability)

import numpy as np
import pytest
import scipy.stats
import torch as th
from gymnasium import spaces

from sb3_vla import BackboneFeatures, ChunkSample, FlowHead, PPOSelfBC, fine_tune
from sb3_vla.policies.heads.flow import FlowDistribution

UNIT = spaces.Box(-1, 1, (3, 2), np.float32)
NOISES = ["noise", "sde"]


def make_head(space=UNIT, **kwargs) -> FlowHead:
    th.manual_seed(0)
    return FlowHead(5, space, **{"net_arch": (16,), **kwargs})


def features(n=4, seed=1):
    return BackboneFeatures(th.randn(n, 5, generator=th.Generator().manual_seed(seed)), th.full((n, 5), th.nan))


def gaussian_flow(n, noise, n_steps, scale=0.7, mean=0.3, std=0.2) -> FlowDistribution:
    """
    Of actions that are N(mean, std^2) the velocity is known: x_t is Gaussian, and noise - action is linear in it.
    """

    def velocity(x, t):
        t = t.view(-1, 1, 1)
        variance = t**2 + (1 - t) ** 2 * std**2
        return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)

    return FlowDistribution(velocity, th.zeros(n, 1, 1), n_steps, noise, th.tensor(scale), lambda x: x, (1, 1))


def test_the_velocity_leads_from_noise_to_the_actions():
    distribution = gaussian_flow(20_000, "noise", n_steps=400, scale=0.0)
    th.manual_seed(0)
    x = th.randn(20_000, 1, 1)
    for number in range(400):
        x, _ = distribution.advance(x, th.full((20_000,), number), th.zeros(20_000, dtype=th.bool))
    assert x.mean().item() == pytest.approx(0.3, abs=0.01) and x.std().item() == pytest.approx(0.2, abs=0.01)


def test_the_stochastic_equation_leaves_the_distribution_at_each_time_as_it_is():
    n, n_steps = 40_000, 400
    distribution = gaussian_flow(n, "sde", n_steps)
    th.manual_seed(0)
    start = th.randn(n, 1, 1)
    x, fixed = start, start
    for number in range(n_steps):
        which, t = th.full((n,), number), 1 - (number + 1) / n_steps
        x, _ = distribution.advance(x, which, th.ones(n, dtype=th.bool))
        fixed, _ = distribution.advance(fixed, which, th.zeros(n, dtype=th.bool))
        if (number + 1) % 80 == 0:
            std = (t**2 + (1 - t) ** 2 * 0.2**2) ** 0.5
            for chains in (x, fixed):
                assert chains.mean().item() == pytest.approx((1 - t) * 0.3, abs=0.02), t
                assert chains.std().item() == pytest.approx(std, rel=0.03), t
    # ... though it has long forgotten where it began
    assert np.corrcoef(start.flatten(), fixed.flatten())[0, 1] > 0.99
    assert abs(np.corrcoef(start.flatten(), x.flatten())[0, 1]) < 0.6


def test_log_prob_of_a_chain_of_learned_noise_by_hand():
    distribution = gaussian_flow(50, "noise", n_steps=3, scale=0.4)
    th.manual_seed(0)
    sample = distribution.draw()
    before, after = (sample.extras[name][..., 0, 0].numpy() for name in ("before", "after"))
    assert sample.extras["step"].tolist() == [[0, 1, 2]] * 50
    assert np.array_equal(before[:, 1:], after[:, :-1]) and np.array_equal(after[:, -1], sample.actions[:, 0, 0].numpy())
    expected = np.zeros(50)
    for step, t in enumerate((1, 2 / 3, 1 / 3)):
        x, variance = before[:, step], t**2 + (1 - t) ** 2 * 0.04
        velocity = -0.3 + (t - (1 - t) * 0.04) / variance * (x - (1 - t) * 0.3)
        expected += scipy.stats.norm.logpdf(after[:, step], x - velocity / 3, 0.4)
    np.testing.assert_allclose(distribution.step_log_prob(sample)[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(distribution.evaluate(sample)[1].numpy(), 3 * scipy.stats.norm(0, 0.4).entropy(), rtol=1e-5)


def test_log_prob_of_a_step_of_the_stochastic_equation_by_hand():
    distribution = gaussian_flow(400, "sde", n_steps=4, scale=0.7)
    th.manual_seed(0)
    sample = distribution.draw()
    x, after = (sample.extras[name][:, 0, 0, 0].double().numpy() for name in ("before", "after"))
    step = sample.extras["step"][:, 0].numpy()
    assert set(step) == {0, 1, 2, 3}
    t = 1 - step / 4
    velocity = -0.3 + (t - (1 - t) * 0.04) / (t**2 + (1 - t) ** 2 * 0.04) * (x - (1 - t) * 0.3)
    sigma = 0.7 * np.sqrt(t / (1 - np.minimum(t, 0.75)))
    mean = x - (velocity + sigma**2 / (2 * t) * (x + (1 - t) * velocity)) / 4
    expected = scipy.stats.norm.logpdf(after, mean, sigma * np.sqrt(1 / 4))
    np.testing.assert_allclose(distribution.step_log_prob(sample)[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", NOISES)
def test_shapes_and_gradients_of_each_primitive_step(noise):
    head = make_head(noise=noise)
    distribution = head(features())
    sample = distribution.draw()
    n_random = {"noise": 4, "sde": 1}[noise]
    assert sample.extras["before"].shape == sample.extras["after"].shape == (4, n_random, 3, 2)
    assert distribution.step_log_prob(sample).shape == distribution.evaluate(sample)[1].shape == (4, 3)
    # What the rollout buffer stores is flat
    flat = ChunkSample(sample.actions.flatten(1), sample.extras)
    assert th.equal(distribution.step_log_prob(flat), distribution.step_log_prob(sample))
    distribution.step_log_prob(sample).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.expert.parameters())
    assert (head.log_std.grad is not None) == (noise == "noise")


@pytest.mark.parametrize("noise", NOISES)
def test_what_drawing_knows_of_the_likelihood_is_what_is_computed_of_the_chain(noise):
    distribution = make_head(noise=noise)(features(50))
    sample = distribution.draw()
    assert sample.step_log_prob is not None
    assert th.allclose(distribution.drawn_log_prob(sample), distribution.step_log_prob(sample), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", NOISES)
def test_deterministic_chunks_are_the_same_whatever_the_noise(noise):
    distribution = make_head(noise=noise)(features())
    assert th.equal(distribution.mode(), distribution.mode())
    assert th.equal(distribution.mode(), make_head(noise="noise")(features()).mode())
    assert not th.equal(distribution.sample(), distribution.sample())


@pytest.mark.parametrize("noise", ["noise", "sde"])
def test_the_noise_of_its_steps_can_be_scaled(noise):
    head = make_head(noise=noise)
    wide = head(features()).scale
    head.noise_scale = 0.5
    assert th.equal(head(features()).scale, 0.5 * wide)


def test_chunks_are_in_the_environments_units():
    space = spaces.Box(np.full((3, 2), 10, np.float32), np.full((3, 2), 14, np.float32))
    ours, unit = make_head(space)(features()), make_head()(features())
    assert th.allclose(ours.mode(), 12 + 2 * unit.mode(), atol=1e-5)


def test_it_learns_both_ways_of_doing_something():
    """A Gaussian would take the mean of them, which is neither."""
    head = make_head(spaces.Box(-1, 1, (1, 1), np.float32), n_flow_steps=10, net_arch=(64, 64), log_std_init=-4.0)
    optimizer = th.optim.Adam(head.parameters(), lr=1e-2)
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    generator = th.Generator().manual_seed(0)
    one = BackboneFeatures(th.zeros(256, 5), th.zeros(256, 5))
    mask = th.ones(256, 1)
    for _ in range(1000):
        actions = 0.6 * (2 * th.randint(2, (256, 1, 1), generator=generator) - 1).float()
        optimizer.zero_grad()
        head.imitation_loss(one, actions, mask).backward()
        optimizer.step()
        schedule.step()
    drawn = head(BackboneFeatures(th.zeros(1000, 5), th.zeros(1000, 5))).get_actions().detach().flatten()
    assert (drawn.abs() > 0.3).float().mean() > 0.85  # of a Gaussian of this mean and deviation it would be 0.62
    assert 0.4 < (drawn > 0).float().mean() < 0.6


def test_unexecuted_steps_do_not_count_in_imitation():
    head = make_head()
    actions, mask = th.zeros(4, 3, 2), th.tensor([[1.0, 1, 0]] * 4)
    losses = []
    for last in (0.0, 0.9):
        head.expert.net[-1].weight.data[4:] = 0  # the last step's velocity does not look at the chunk
        actions[:, 2] = last
        th.manual_seed(3)
        loss = head.imitation_loss(features(), actions, mask)
        (gradient,) = th.autograd.grad(loss, head.expert.net[-1].bias)
        losses.append(gradient)
    assert (losses[0][4:] == 0).all() and (losses[0][:4] != 0).all() and losses[1].shape == losses[0].shape


@pytest.mark.parametrize("noise", NOISES)
def test_fine_tuned_trained_saved_and_loaded(noise, make_model, make_demonstrations, record_logs, tmp_path):
    head_kwargs = {"noise": noise, "net_arch": (32,)}
    model = make_model(policy_kwargs={"head": "flow", "head_kwargs": head_kwargs}, n_epochs=1, batch_size=16, bc_weight=0.2)
    demonstrations = make_demonstrations(8)
    result = fine_tune(model, demonstrations, n_epochs=40, learning_rate=1e-2, held_out_fraction=0.25)
    assert result.train_losses[-1] < 0.7 * result.train_losses[0]
    model.replay_buffer.extend(demonstrations)
    logs = record_logs(model)
    model.learn(32)
    assert abs(logs[0]["train/approx_kl"]) < 1e-5 and logs[0]["train/clip_fraction"] == 0
    assert logs[-1]["train/bc_loss"] > 0
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    del model.train  # what records the logs
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    more = PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"head_kwargs": {"n_flow_steps": 10}})
    assert more.policy.head.n_flow_steps == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_flow_steps": 0}, "n_flow_steps must be at least 1, got 0"),
        ({"noise": "ode"}, "noise must be 'noise' or 'sde', got 'ode'"),
        ({"noise_level": 0.0}, "noise_level must be above 0"),
        ({"log_std_init": float("nan")}, "log_std_init must be finite"),
        ({"net_arch": (0,)}, "net_arch must hold positive numbers"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_head(**arguments)

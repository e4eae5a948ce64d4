import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_vla import BackboneFeatures, ChunkSample, PPOSelfBC, TokenHead, fine_tune

UNIT = spaces.Box(-1, 1, (3, 2), np.float32)
DECODINGS = ["parallel", "autoregressive"]


def make_head(space=UNIT, **kwargs) -> TokenHead:
    th.manual_seed(0)
    return TokenHead(5, space, **{"n_bins": 4, "hidden_dim": 16, **kwargs})


def features(n=4, seed=1):
    return BackboneFeatures(th.randn(n, 5, generator=th.Generator().manual_seed(seed)), th.full((n, 5), th.nan))


@pytest.mark.parametrize("decoding", DECODINGS)
def test_samples_are_centres_of_bins_within_the_bounds(decoding):
    space = spaces.Box(np.float32([0, -2]), np.float32([4, 2]), dtype=np.float32)
    head = make_head(spaces.Box(np.tile(space.low, (3, 1)), np.tile(space.high, (3, 1)), dtype=np.float32), decoding=decoding)
    actions = head(features(500)).get_actions()
    assert actions.shape == (500, 3, 2)
    assert set(actions[..., 0].flatten().tolist()) == {0.5, 1.5, 2.5, 3.5}
    assert set(actions[..., 1].flatten().tolist()) == {-1.5, -0.5, 0.5, 1.5}


@pytest.mark.parametrize("decoding", DECODINGS)
def test_an_action_between_centres_belongs_to_the_nearest(decoding):
    head = make_head(decoding=decoding)
    distribution = head(features(1))
    centres = th.tensor([-0.75, -0.25, 0.25, 0.75])
    exact = distribution.step_log_prob(ChunkSample(centres[[0, 1, 2, 3, 3, 0]].view(1, 3, 2)))
    near = th.tensor([-5.0, -0.45, 0.01, 0.51, 1.0, -0.51])  # beyond the bounds, too, as experts' unclipped actions are
    assert th.equal(distribution.step_log_prob(ChunkSample(near.view(1, 3, 2))), exact)
    assert th.equal(distribution.step_log_prob(ChunkSample(near.view(1, 6))), exact)


def test_parallel_log_prob_and_entropy_are_those_of_independent_categories():
    head = make_head()
    distribution = head(features())
    logits = head.net(features().action).view(4, 3, 2, 4)
    categories = th.distributions.Categorical(logits=logits)
    sample = distribution.draw()
    tokens = head.to_tokens(sample.actions)
    assert th.allclose(distribution.step_log_prob(sample), categories.log_prob(tokens).sum(dim=-1), atol=1e-6)
    assert th.allclose(distribution.step_entropy(), categories.entropy().sum(dim=-1), atol=1e-6)
    assert th.equal(head.to_tokens(distribution.mode()), logits.argmax(dim=-1))


def all_chunks(head):
    centres = head.to_env(head.unit_bins[:1].T.unsqueeze(1).expand(-1, head.chunk_size, -1))[:, 0, 0]
    return th.tensor(list(itertools.product(centres.tolist(), repeat=head.chunk_size))).view(-1, head.chunk_size, 1)


def test_autoregressive_log_prob_and_entropy_by_enumeration():
    head = make_head(spaces.Box(-1, 1, (3, 1), np.float32), decoding="autoregressive", temperature=0.3)
    chunks = all_chunks(head)
    one = features(1)
    distribution = head(BackboneFeatures(one.action.expand(len(chunks), -1), one.value))
    log_prob = distribution.log_prob(chunks)
    probabilities = log_prob.exp()
    assert len(chunks) == 64 and probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    # Chain rule of entropy: H(a1, a2, a3) = E[H(a1) + H(a2 | a1) + H(a3 | a1, a2)]
    conditional = distribution.evaluate(ChunkSample(chunks))[1].sum(dim=1)
    assert (probabilities * conditional).sum().item() == pytest.approx(-(probabilities * log_prob).sum().item(), abs=1e-5)
    # Later numbers depend on earlier ones
    assert distribution.evaluate(ChunkSample(chunks))[1][:, 2].std() > 1e-3
    assert distribution.step_entropy() is None and distribution.entropy() is None


def test_autoregressive_samples_come_as_often_as_their_probability_says():
    head = make_head(spaces.Box(-1, 1, (2, 1), np.float32), decoding="autoregressive", temperature=0.3)
    n = 40_000
    one = features(1)
    drawn = head(BackboneFeatures(one.action.expand(n, -1), one.value)).get_actions().detach()
    chunks = all_chunks(head)
    expected = head(BackboneFeatures(one.action.expand(len(chunks), -1), one.value)).log_prob(chunks).exp().detach()
    counts = th.stack([(drawn == chunk).all(dim=2).all(dim=1).float().mean() for chunk in chunks])
    assert th.allclose(counts, expected, atol=4 * (0.25 / n) ** 0.5)


def test_what_drawing_knows_of_the_likelihood_is_what_is_computed_of_the_chunk():
    head = make_head(decoding="autoregressive", temperature=0.5)
    distribution = head(features())
    sample = distribution.draw()
    assert sample.step_log_prob is not None
    assert th.allclose(distribution.drawn_log_prob(sample), distribution.step_log_prob(sample), atol=1e-5)


def test_autoregressive_mode_takes_the_likeliest_number_each_time():
    head = make_head(decoding="autoregressive")
    distribution = head(features())
    mode = head.to_tokens(distribution.mode())
    logits = head.net(features().action, mode.flatten(1))  # without a cache, all at once
    assert th.equal(logits.argmax(dim=-1), mode.flatten(1))


@pytest.mark.parametrize("decoding", DECODINGS)
def test_imitation_is_the_cross_entropy_of_what_was_executed(decoding):
    head = make_head(decoding=decoding)
    actions = 2 * th.rand(4, 3, 2) - 1
    mask = th.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    tokens = head.to_tokens(actions)
    net = head.net(features().action) if decoding == "parallel" else head.net(features().action, tokens.flatten(1))
    each = F.cross_entropy(net.view(-1, 4), tokens.flatten(), reduction="none").view(4, 3, 2).sum(dim=-1)
    expected = (each * mask).sum() / mask.sum()
    assert head.imitation_loss(features(), actions, mask).item() == pytest.approx(expected.item(), rel=1e-5)


def test_temperature_sharpens():
    sharp, flat = (make_head(temperature=t)(features()).step_entropy().mean() for t in (0.1, 10.0))
    assert sharp < 0.5 * flat and flat.item() == pytest.approx(2 * np.log(4), rel=0.01)


def test_quantile_bins_are_filled_alike():
    head = make_head(spaces.Box(-2, 2, (1, 1), np.float32), bins="quantile", n_bins=10)
    actions = np.random.default_rng(0).normal(0, 0.3, (5000, 1, 1)).astype(np.float32)
    head.fit(actions[:, 0])
    counts = th.bincount(head.to_tokens(th.from_numpy(actions)).flatten(), minlength=10)
    assert counts.min() > 400 and counts.max() < 800  # the outermost reach to infinity
    assert head.to_env(head.unit_bins.T.unsqueeze(2)).flatten().diff().min() > 0


def test_quantile_bins_differ_where_most_actions_are_the_same():
    head = make_head(spaces.Box(-1, 1, (2, 1), np.float32), bins="quantile", n_bins=16)
    actions = np.ones((1000, 1), np.float32)
    actions[:100] = -1.3  # beyond the bound
    actions[100:120] = 0.25
    head.fit(actions)
    bins = head.unit_bins[0]
    assert len(bins) == 16 and bins.diff().min() > 0 and bins.min() == -1 and bins.max() == 1
    assert (bins == 0.25).any()
    before = make_head()
    before.fit(actions)
    assert th.equal(before.unit_bins, make_head().unit_bins), "uniform bins stay"


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2, 1), np.float32), spaces.Box(99, 101, (2, 1), np.float32)])
def test_no_two_quantile_bins_are_so_close_that_rounding_confuses_them(space):
    head = make_head(space, bins="quantile", n_bins=32)
    resting = np.float32(0.3) + np.arange(8, dtype=np.float32) * np.spacing(np.float32(0.3))  # a sensor's noise
    others = np.random.default_rng(0).uniform(-1, 1, 200).astype(np.float32)
    actions = np.concatenate([np.tile(resting, 100), others])[:, None]
    head.fit(actions + space.low.mean() + 1)
    tokens = th.arange(32).repeat(2, 1).T.unsqueeze(2)
    assert th.equal(head.to_tokens(head.from_tokens(tokens)), tokens)


def test_of_many_close_quantiles_those_stay_that_are_apart():
    head = make_head(spaces.Box(-1, 1, (1, 1), np.float32), bins="quantile", n_bins=64)
    head.fit(np.linspace(0.5, 0.506, 6400, dtype=np.float32)[:, None])  # quantiles 9.4e-5 apart: every second one
    assert ((head.unit_bins[0] >= 0.5) & (head.unit_bins[0] <= 0.506)).sum() == 32


@pytest.mark.parametrize("decoding", DECODINGS)
def test_fine_tuned_trained_saved_and_loaded(decoding, make_model, make_demonstrations, record_logs, tmp_path):
    head_kwargs = {"decoding": decoding, "n_bins": 8, "hidden_dim": 16, "bins": "quantile"}
    model = make_model(policy_kwargs={"head": "token", "head_kwargs": head_kwargs}, n_epochs=1, batch_size=16)
    result = fine_tune(model, make_demonstrations(8), n_epochs=30, learning_rate=1e-2, held_out_fraction=0.25)
    assert result.train_losses[-1] < 0.5 * result.train_losses[0]
    assert not th.equal(model.policy.head.unit_bins, TokenHead(16, model.action_space, n_bins=8).unit_bins)
    logs = record_logs(model)
    model.learn(32)
    assert abs(logs[0]["train/approx_kl"]) < 1e-6 and logs[0]["train/clip_fraction"] == 0
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    del model.train  # what records the logs
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"head_kwargs": {"temperature": 0.5}})
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert loaded.policy.head.temperature == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_bins": 1}, "n_bins must be at least 2, got 1"),
        ({"bins": "log"}, "bins must be 'uniform' or 'quantile', got 'log'"),
        ({"decoding": "beam"}, "decoding must be 'parallel' or 'autoregressive', got 'beam'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"hidden_dim": 12}, "hidden_dim must be a positive multiple of 8, got 12"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_head(**arguments)

"""An action head of one's own, in one file."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_vla import BackboneFeatures, ChunkSample, PPOSelfBC, make_vla_vec_env


@pytest.fixture
def make_vla_model_of():
    def make(head: type, **kwargs) -> PPOSelfBC:
        env = make_vla_vec_env("drawer-close-v3", 1)
        return PPOSelfBC("VLAPolicy", env, n_steps=4, batch_size=4, policy_kwargs={"head": head}, device="cpu", **kwargs)

    return make


@pytest.fixture
def head(load_example):
    th.manual_seed(0)
    return load_example("own_head").LaplaceHead(5, spaces.Box(-2, 2, (3, 2), np.float32), scale=0.25)


def test_it_goes_the_whole_way(load_example, small_run, capsys):
    example = load_example("own_head")
    loaded = example.main(**small_run)
    assert isinstance(loaded.policy.head, example.LaplaceHead) and loaded.policy.head.scale == 0.12
    assert capsys.readouterr().out.count("mean") == 2


def test_what_a_head_says_of_itself_is_logged(load_example, make_vla_model_of):
    head = load_example("own_head").LaplaceHead
    head.metrics = lambda self: {"scale": self.scale}
    assert make_vla_model_of(head).adapter.metrics() == {"scale": 0.12}


def test_a_head_that_knows_of_no_noise_scale_refuses_one(load_example, make_vla_model_of):
    with pytest.raises(ValueError, match=r"noise_scale=0.5 needs a head that .*: LaplaceHead has no noise_scale"):
        make_vla_model_of(load_example("own_head").LaplaceHead, noise_scale=0.5)


def test_it_imitates_by_the_absolute_error_in_units_of_the_scale(head):
    features = BackboneFeatures(th.randn(4, 5), th.zeros(4, 5))
    actions, mask = th.randn(4, 3, 2), th.tensor([1.0, 1.0, 0.0]).repeat(4, 1)
    error = (head(features).mode() - actions).abs()[:, :2].sum(2).mean() / (0.25 * 2)
    assert head.imitation_loss(features, actions, mask).item() == pytest.approx((error + 2 * np.log(2 * 0.25 * 2)).item())


def test_its_samples_have_its_log_probability(head):
    distribution = head(BackboneFeatures(th.randn(1, 5).expand(50_000, -1), th.zeros(50_000, 5)))
    sample = distribution.draw()
    assert th.allclose(sample.actions.std(0), th.tensor(2**0.5 * 0.5), rtol=0.03)
    log_prob = distribution.step_log_prob(ChunkSample(sample.actions))
    assert th.allclose(-log_prob.mean(), distribution.step_entropy().mean(), rtol=0.02)

"""What frozen parts of a backbone compute is computed once, and changes nothing that is learnt."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import PPOSelfBC, VLAPolicy
from sb3_vla.imitation.feature_cache import FeatureCache
from sb3_vla.policies.encoded import NOT_ENCODED


class EncodesEveryTime(VLAPolicy):
    """Frozen parts and all, each time that it sees an observation."""

    def precompute(self, obs):
        return NOT_ENCODED

    @property
    def stored_keys(self):
        return self.read_keys


@pytest.mark.parametrize("frozen", [("vision", "connector"), ("all",)])
def test_encoding_once_changes_nothing_that_is_learnt(frozen, make_vec_env, make_demonstrations, policy_kwargs):
    models = []
    for policy in (VLAPolicy, EncodesEveryTime):
        model = PPOSelfBC(
            policy,
            make_vec_env(),
            policy_kwargs={**policy_kwargs, "frozen": frozen},
            **dict(n_steps=8, batch_size=8, n_epochs=2, critic_epochs=3, gamma=0.9, learning_rate=1e-2, bc_weight=0.5),
            **dict(seed=0, device="cpu"),
        )
        model.replay_buffer.extend(make_demonstrations())
        models.append(model.learn(48))
    once, every_time = (model.policy.state_dict() for model in models)
    assert all(th.allclose(once[name], every_time[name], atol=1e-4) for name in once)
    assert set(models[0].rollout_buffer.observations) == set(models[0].policy.stored_keys) < set(models[0].observation_space)
    assert len(models[0].replay_buffer) == len(models[1].replay_buffer)


def test_frozen_encoder_sees_each_observation_once(make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")}, n_epochs=3, bc_weight=1.0, bc_batch_size=64)
    demonstrations = make_demonstrations()
    model.replay_buffer.extend(demonstrations)
    seen = []
    model.policy.backbone.model.connector.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model.learn(4 * 16)
    own = len(model.replay_buffer) - sum(map(len, demonstrations))
    assert own > 0, "some of the policy's own episodes are imitated"
    assert sum(seen) <= 4 * 16 + sum(map(len, demonstrations))


def test_demonstrations_are_encoded_anew_when_the_frozen_weights_change(make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")})
    model.replay_buffer.extend(make_demonstrations())

    cache = FeatureCache(model.adapter, "cpu")

    def sample():
        model.replay_buffer.rng = np.random.default_rng(0)
        batch = model.replay_buffer.sample(8, cache=cache)
        assert set(batch.observations) == {"state", "instruction", "privileged"}
        return {**batch.observations, **batch.encoded.tensors}

    before = sample()
    weights = model.policy.state_dict()
    model.policy.load_state_dict({name: value + 0.1 * ("vision" in name) for name, value in weights.items()})
    after = sample()
    assert th.equal(before["state"], after["state"]) and not th.allclose(before["image_tokens"], after["image_tokens"])
    model.replay_buffer.rng = np.random.default_rng(0)
    raw = model.replay_buffer.sample(8).observations
    assert th.allclose(model.policy.precompute(raw).image_tokens, after["image_tokens"], atol=1e-5)


def test_unfreezing_what_the_rollout_buffer_left_out_is_refused(make_model):
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")})
    model.policy.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match=r"reads \['image'\], which the rollout buffer does not keep.*policy_kwargs"):
        model.learn(16)


def test_what_was_made_of_an_episode_goes_with_it(make_model, make_demonstrations):
    rule = {"episodes_per_task": 2, "rule": "shortest"}
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")}, replay_buffer_kwargs=rule)
    cache = FeatureCache(model.adapter, "cpu")
    model.replay_buffer.extend(make_demonstrations(2, goal=4))
    model.replay_buffer.sample(64, cache=cache)
    assert len(cache) == 2 and cache.n_bytes == 2 * 2 * 16 * 4, "two chunks each, of one token of 16 float32 numbers"
    model.replay_buffer.extend(make_demonstrations(1, goal=2))
    assert len(cache) == 1 and cache.n_bytes == 2 * 16 * 4, "a shorter episode has taken the place of one of them"


def test_what_was_made_of_an_episode_that_the_critic_drops_goes_with_it(make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")})
    cache = FeatureCache(model.adapter, "cpu")
    model.replay_buffer.extend(make_demonstrations(2))
    model.replay_buffer.sample(64, cache=cache)
    assert len(cache) == 2
    model.replay_buffer.rate(lambda batch: th.full((len(batch.observations["privileged"]), 1), 2.0), keys=("privileged",))
    assert len(model.replay_buffer) == len(cache) == cache.n_bytes == 0


def test_frozen_parts_under_vec_normalize(make_model, make_vec_env, make_demonstrations):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    model = make_model(env, policy_kwargs={"frozen": ("all",)}, bc_weight=1.0)
    model.replay_buffer.extend(make_demonstrations())
    model.learn(48)
    batch = model.replay_buffer.sample(4, env, FeatureCache(model.adapter, "cpu"))
    assert batch.encoded == NOT_ENCODED and "image" in batch.observations, "the statistics of state go on changing"


def test_a_full_cache_gives_the_same_features_and_grows_no_further(make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": ("vision", "connector")})
    model.replay_buffer.extend(make_demonstrations(4))
    # A chunk is one image token of 16 float32 numbers, an episode two chunks
    unlimited, full = FeatureCache(model.adapter, "cpu"), FeatureCache(model.adapter, "cpu", max_bytes=3 * 2 * 16 * 4)
    pairs = [(demo, step) for demo in model.replay_buffer.episodes["push"] for step in (1, 0, 1)]
    assert th.allclose(unlimited.at(pairs).image_tokens, full.at(pairs).image_tokens, atol=1e-6)
    assert (len(unlimited), len(full)) == (4, 3) and full.n_bytes == full.max_bytes
    assert len(FeatureCache(model.adapter, "cpu", max_bytes=0).at(pairs).image_tokens) == len(pairs)

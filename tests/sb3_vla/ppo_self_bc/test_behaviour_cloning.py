import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO

from sb3_vla import BCWeight, LossWeights, PPOSelfBC
from sb3_vla.common.chunk_mask import executed_mask, masked_mse
from sb3_vla.ppo_self_bc.bc_weight import BC_WEIGHTS
from sb3_vla_envs import ChunkedActionWrapper, Demonstration

from .small_training import (
    LOGGED,
    Drift,
    Fixed,
    bc_loss_of,
    changed,
    collect,
    constant_demonstration,
    drift,
    only_gradients,
    parameters_equal,
    ppo_loss_of,
    snapshot,
)


class IdentityGoal(gym.Env):
    """Ten random observations, no reward, ends after ten steps."""

    def __init__(self, action_space):
        self.observation_space = spaces.Box(-5, 5, (3,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        self.n += 1
        return self.np_random.normal(size=3).astype(np.float32), 0.0, self.n == 10, False, {}


def expert_demonstrations(action_space, n=8) -> list[Demonstration]:
    """The expert looks at the sign of the first number."""
    rng = np.random.default_rng(0)
    demonstrations = []
    for _ in range(n):
        observations = rng.normal(size=(10, 3)).astype(np.float32)
        positive = observations[:, 0] > 0
        if isinstance(action_space, spaces.Box):
            actions = np.where(positive, 0.5, -0.5)[:, None].repeat(action_space.shape[0], 1).astype(np.float32)
        elif isinstance(action_space, spaces.Discrete):
            actions = positive.astype(np.int64)
        else:
            actions = positive.astype(np.int64)[:, None].repeat(2, 1)
        demonstrations.append(Demonstration("sign", {"observation": observations}, actions, np.ones(10, np.int64), True))
    return demonstrations


@pytest.mark.parametrize(
    ("action_space", "bc_loss"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), "mse"),
        (spaces.Box(-1, 1, (2,), np.float32), "nll"),
        (spaces.Discrete(2), "auto"),
        (spaces.MultiDiscrete([2, 2]), "nll"),
        (spaces.MultiBinary(2), "auto"),
    ],
    ids=str,
)
def test_bc_imitates_the_expert(action_space, bc_loss, record_logs):
    env = IdentityGoal(action_space)
    model = PPOSelfBC(
        "MlpPolicy", env, n_steps=20, batch_size=20, n_epochs=20, learning_rate=5e-3, bc_loss=bc_loss, seed=0, device="cpu"
    )
    logs = record_logs(model)
    assert model.replay_buffer.extend(expert_demonstrations(action_space)) == 8
    model.learn(100)
    assert logs[-1]["train/bc_loss"] < logs[0]["train/bc_loss"] - 0.05
    observations = np.array([[1.0, 0.3, -0.2], [-1.0, 0.3, -0.2], [2.0, -1.0, 0.0], [-2.0, -1.0, 0.0]], np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    signs = np.sign(actions.reshape(4, -1) - (0 if isinstance(action_space, spaces.Box) else 0.5))
    assert (signs == np.array([[1], [-1], [1], [-1]])).all()


def test_bc_loss_values_by_hand():
    model = PPOSelfBC("MlpPolicy", drift(), n_steps=8, batch_size=8, seed=0, device="cpu", bc_loss="mse")
    model.replay_buffer.add(constant_demonstration(action=(0.7, -0.4)))
    batch = model.replay_buffer.sample(4)
    mean = model.policy.get_distribution(batch.observations).distribution.mean
    expected = (mean - th.tensor([0.7, -0.4])).square().mean().item()
    assert bc_loss_of(model, batch).item() == pytest.approx(expected, rel=1e-5)
    log_prob = th.distributions.Normal(mean, 1.0).log_prob(th.tensor([0.7, -0.4])).sum(1).mean().item()
    assert bc_loss_of(model, batch, "nll").item() == pytest.approx(-log_prob, rel=1e-5)


@pytest.mark.parametrize("action_shape", [(2,), (3, 2)])
def test_bc_mse_of_a_flat_policy_counts_executed_steps_only(action_shape):
    """An MLP over chunks: the distribution is flat, the demonstrations are not."""
    env = ChunkedActionWrapper(drift(), 3, gamma=0.99) if len(action_shape) == 2 else drift()
    model = PPOSelfBC("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    rng = np.random.default_rng(0)
    lengths = np.array([1, 2, 3, 2]) if len(action_shape) == 2 else np.ones(4, np.int64)
    actions = rng.normal(size=(4, *action_shape)).astype(np.float32)
    observations = rng.normal(size=(4, 3)).astype(np.float32)
    model.replay_buffer.add(Demonstration("", {"observation": observations}, actions, lengths, True))
    batch = model.replay_buffer.sample(8)
    mean = model.policy.get_distribution(batch.observations).mode().reshape(8, *action_shape)
    mask = executed_mask(batch.chunk_lengths, 3) if len(action_shape) == 2 else None
    assert bc_loss_of(model, batch).item() == pytest.approx(masked_mse(mean, batch.actions, mask).item())


def test_matrix_actions_without_chunks_count_every_row():
    """A Box of two dimensions is not a chunk unless the environment says so."""

    class MatrixActions(Drift):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1, 1, (3, 2), np.float32)

        def step(self, action):
            return super().step(action[0])

    model = PPOSelfBC("MlpPolicy", TimeLimit(MatrixActions(), 7), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    actions = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    model.replay_buffer.add(Demonstration("", {"observation": np.zeros((4, 3))}, actions, np.ones(4, np.int64), True))
    batch = model.replay_buffer.sample(8)
    batch = batch._replace(observations=batch.observations.float())
    mean = model.policy.get_distribution(batch.observations).mode().reshape(8, 3, 2)
    assert bc_loss_of(model, batch).item() == pytest.approx((mean - batch.actions).square().mean().item())
    assert np.isfinite(bc_loss_of(model, batch, "nll").item())


class Double(BCWeight):
    def __call__(self, stats):
        return LossWeights(ppo=0.5, bc=2.0)


@pytest.mark.parametrize("bc_weight", [*sorted(BC_WEIGHTS), pytest.param(Double(), id="own")])
def test_learns_with_every_rule_and_logs_its_weights(bc_weight, make_model, make_demonstrations, record_logs):
    model = make_model(bc_weight=bc_weight)
    model.replay_buffer.extend(make_demonstrations(3))
    logs = record_logs(model)
    before = snapshot(model)
    model.learn(16)
    assert changed(model, before) == {"backbone", "head", "critic"}
    assert logs[-1]["train/bc_weight"] > 0 and np.isfinite(logs[-1]["train/bc_loss"])
    if bc_weight == "tanh":
        assert logs[-1]["train/ppo_weight"] == pytest.approx(np.tanh(16 / 10_000))
    if isinstance(bc_weight, Double):
        assert (logs[-1]["train/ppo_weight"], logs[-1]["train/bc_weight"]) == (0.5, 2.0)


def test_total_loss_is_the_weighted_sum(make_model, make_demonstrations, record_logs):
    model = make_model(bc_weight=Double(), batch_size=16, ent_coef=0.1, vf_coef=0.3)
    model.replay_buffer.extend(make_demonstrations(3))
    logs = record_logs(model)
    model.learn(16)
    row = {name: logs[-1][f"train/{name}"] for name in LOGGED}
    ppo = row["policy_gradient_loss"] + 0.1 * row["entropy_loss"] + 0.3 * row["value_loss"]
    assert row["loss"] == pytest.approx(0.5 * ppo + 2.0 * row["bc_loss"], rel=1e-5)


def test_weights_multiply_the_two_gradients(make_model, make_demonstrations):
    def gradient(ppo: float, bc: float) -> th.Tensor:
        model = make_model(ent_coef=0.1, batch_size=16, bc_weight=Fixed(ppo, bc))
        model.replay_buffer.extend(make_demonstrations(3))
        collect(model)
        only_gradients(model)
        return th.cat([p.grad.flatten() if p.grad is not None else th.zeros(p.numel()) for p in model.policy.parameters()])

    ppo, bc = gradient(1.0, 0.0), gradient(0.0, 1.0)
    assert ppo.norm() > 1e-3 and bc.norm() > 1e-3
    assert th.allclose(gradient(0.5, 2.0), 0.5 * ppo + 2.0 * bc, atol=1e-5)


def test_kl_limit_is_one_and_a_half_times_the_target_as_in_sb3(make_model):
    model = make_model(bc_weight=0, batch_size=16)
    collect(model)
    (data,) = model.rollout_buffer.get()
    with th.no_grad():
        model.policy.head.log_std += 0.2
    kl = ppo_loss_of(model, data).approx_kl
    before = snapshot(model)
    for factor, goes_on in ((1.6, False), (1.4, True)):
        model.target_kl = kl / factor
        model.train()
        # Beyond the limit the step is not taken
        assert bool(changed(model, before)) == goes_on


def test_gradient_balance_reaches_its_proportion(make_model, make_demonstrations):
    """Both gradients by backward(), over the parameters that behaviour cloning trains."""
    rule = {"bc_weight": "gradient_balance", "bc_weight_kwargs": {"ratio": 0.3, "maximum": 1e6}}
    model = make_model(batch_size=16, bc_batch_size=16, normalize_advantage="task", **rule)
    model.replay_buffer.extend(make_demonstrations(3))
    collect(model)
    rng = copy.deepcopy(model.replay_buffer.rng)
    only_gradients(model)
    weights = {name: model.logger.name_to_value[f"train/{name}_weight"] for name in ("ppo", "bc")}
    (data,) = model.rollout_buffer.get()
    model.replay_buffer.rng = rng
    actor = [*model.policy.backbone.parameters(), *model.policy.head.mean_net.parameters()]

    def norm(loss) -> float:
        model.policy.zero_grad()
        loss.backward()
        return float(np.sqrt(sum(p.grad.square().sum().item() for p in actor if p.grad is not None)))

    bc_norm = norm(bc_loss_of(model, model.replay_buffer.sample(16)))
    ppo_norm = norm(ppo_loss_of(model, data).policy)
    assert weights["bc"] * bc_norm == pytest.approx(0.3 * ppo_norm, rel=1e-4)
    assert weights["ppo"] == 1.0


def test_bc_waits_for_the_first_demonstration(record_logs):
    model = PPOSelfBC("MlpPolicy", drift(), bc_weight="tanh", n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
    logs = record_logs(model)
    model.learn(16)
    # No success, no demonstration: plain PPO, and no fading in
    assert logs[-1]["train/bc_weight"] == 0 and logs[-1]["train/ppo_weight"] == 1
    assert "train/bc_loss" not in logs[-1]
    reference = PPO("MlpPolicy", drift(), n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)
    assert parameters_equal(model, reference)


def test_success_rule_reads_the_success_rate(make_model, make_demonstrations, record_logs):
    model = make_model(bc_weight="success", bc_weight_kwargs={"weight": 2.0, "minimum": 0.0}, n_steps=32)
    model.replay_buffer.extend(make_demonstrations(1))
    logs = record_logs(model)
    model.learn(64)
    rates = [logs[-1][f"rollout/success_rate/{task}"] for task in ("push", "pull")]
    rate = np.mean(rates)
    assert 0 < rate < 1, "the toy task is meant to be neither trivial nor hopeless"
    assert rates[0] != rates[1] and rate != pytest.approx(logs[-1]["rollout/success_rate"])
    assert logs[-1]["train/bc_weight"] == pytest.approx(2 * (1 - rate))


class OneOfThree(Drift):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(3)

    def step(self, action):
        return super().step(np.full(2, float(action) - 1))


@pytest.mark.parametrize(("make_single", "bc_loss"), [(drift, "nll"), (lambda: TimeLimit(OneOfThree(), 7), "auto")])
def test_bc_nll_of_a_flat_policy_counts_executed_steps_only(make_single, bc_loss):
    env = ChunkedActionWrapper(make_single(), 3, gamma=0.99)
    model = PPOSelfBC("MlpPolicy", env, n_steps=8, batch_size=8, bc_loss=bc_loss, seed=0, device="cpu")
    rng = np.random.default_rng(0)
    actions = np.stack([env.action_space.sample() for _ in range(4)])
    demonstration = Demonstration("", {"observation": rng.normal(size=(4, 3))}, actions, np.array([1, 2, 3, 2]), True)
    model.replay_buffer.add(demonstration)
    batch = model.replay_buffer.sample(8)
    distribution = model.policy.get_distribution(batch.observations)
    mask = executed_mask(batch.chunk_lengths, 3)
    if isinstance(distribution.distribution, list):
        log_prob = th.stack([each.log_prob(batch.actions[:, i]) for i, each in enumerate(distribution.distribution)], dim=1)
    else:
        log_prob = distribution.distribution.log_prob(batch.actions.flatten(1)).view(8, 3, 2).sum(2)
    assert bc_loss_of(model, batch).item() == pytest.approx(-((log_prob * mask).sum() / mask.sum()).item(), rel=1e-5)
    changed_beyond = batch.actions.clone()
    changed_beyond[batch.chunk_lengths == 1, 1:] = 0
    assert bc_loss_of(model, batch._replace(actions=changed_beyond)).item() == bc_loss_of(model, batch).item()


def test_chunks_that_are_no_whole_actions_are_refused():
    env = ChunkedActionWrapper(drift(), 3, gamma=0.99)
    env.chunk_size = 4
    with pytest.raises(ValueError, match=r"chunk_size=4 does not divide its actions of shape \(3, 2\).*ChunkedActionWrapper"):
        PPOSelfBC("MlpPolicy", env, device="cpu")


def test_nll_of_chunks_of_squashed_actions_is_refused():
    env = ChunkedActionWrapper(drift(), 3, gamma=0.99)
    with pytest.raises(ValueError, match=r"bc_loss='nll'.*squashed.*bc_loss='mse'"):
        PPOSelfBC("MlpPolicy", env, use_sde=True, policy_kwargs={"squash_output": True}, bc_loss="nll", device="cpu")

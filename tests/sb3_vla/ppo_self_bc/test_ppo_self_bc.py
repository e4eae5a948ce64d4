import copy
import re
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.envs import (
    BitFlippingEnv,
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_vla import BCWeight, LossWeights, PPOSelfBC
from sb3_vla.common.chunk_mask import executed_mask, masked_mse
from sb3_vla.policies.adapter import ActionEvaluation, adapt
from sb3_vla.ppo_self_bc.bc_weight import BC_WEIGHTS
from sb3_vla.ppo_self_bc.losses import PPOLoss, clipped_surrogate_loss, ppo_loss
from sb3_vla_envs import ChunkedActionWrapper, Demonstration


def parameters_equal(first, second) -> bool:
    pairs = zip(first.policy.state_dict().values(), second.policy.state_dict().values(), strict=True)
    return all(th.equal(a, b) for a, b in pairs)


def snapshot(model) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def changed(model, before: dict[str, th.Tensor]) -> set[str]:
    """First part of the names of the parameters that differ."""
    return {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}


# --- PPO, bit for bit -------------------------------------------------------------------------------------------------


class Drift(gym.Env):
    """Box in, Box out; the reward depends on both, and only a time limit ends it."""

    def __init__(self):
        self.observation_space = spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=3).astype(np.float32)
        return self.x, {}

    def step(self, action):
        self.x = np.clip(0.9 * self.x + 0.1 * np.resize(action, 3) + 0.05 * self.np_random.normal(size=3), -10, 10)
        self.x = self.x.astype(np.float32)
        return self.x, float(action[0] - np.abs(self.x).sum()), False, False, {}


def drift():
    return TimeLimit(Drift(), 7)


ENVIRONMENTS = {
    "box": ("MlpPolicy", drift),
    "discrete": ("MlpPolicy", lambda: IdentityEnv(4, ep_length=9)),
    "multi_discrete": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(3, ep_length=9)),
    "multi_binary": ("MlpPolicy", lambda: IdentityEnvMultiBinary(3, ep_length=9)),
    "images": ("CnnPolicy", lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=3, discrete=False)),
    "dict": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=True)),
    "goal": ("MultiInputPolicy", lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=5)),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ENVIRONMENTS),
        ("box", {"clip_range_vf": 0.1, "ent_coef": 0.01, "vf_coef": 0.7, "clip_range": lambda progress: 0.1 + 0.1 * progress}),
        ("box", {"normalize_advantage": False, "learning_rate": lambda progress: 1e-3 * progress, "max_grad_norm": 0.05}),
        ("box", {"use_sde": True, "sde_sample_freq": 3, "ent_coef": 0.01}),
        ("box", {"use_sde": True, "policy_kwargs": {"squash_output": True}, "ent_coef": 0.01}),
        ("box", {"target_kl": 1e-4, "n_epochs": 5}),
        ("discrete", {"target_kl": 1e-4, "n_epochs": 5, "clip_range_vf": 0.2}),
        ("multi_discrete", {"gamma": 0.9, "gae_lambda": 1.0, "ent_coef": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_without_bc_it_is_ppo_bit_for_bit(name, options, record_logs):
    policy, make_env = ENVIRONMENTS[name]
    settings = {
        "n_steps": 12,
        # Does not divide the 24 transitions of a rollout
        "batch_size": 10,
        "n_epochs": 3,
        "learning_rate": 3e-3,
        "seed": 3,
        "device": "cpu",
        **options,
    }
    if policy != "MlpPolicy":
        settings["n_epochs"] = 1

    def make_seeded_env():
        env = Monitor(make_env())
        # Some of SB3's toy environments draw from their spaces, which seeding the environment does not seed
        env.observation_space.seed(0)
        env.action_space.seed(0)
        return env

    models, logs = [], []
    for algorithm, extra in ((PPO, {}), (PPOSelfBC, {"bc_weight": 0})):
        model = algorithm(policy, DummyVecEnv([make_seeded_env] * 2), **copy.deepcopy(settings), **extra)
        logs.append(record_logs(model))
        models.append(model.learn(72, log_interval=1))
    assert parameters_equal(*models)
    ppo_logs, our_logs = logs
    assert len(ppo_logs) == len(our_logs) > 0
    for theirs, ours in zip(ppo_logs, our_logs, strict=True):
        for key in theirs:
            if key not in ("time/fps", "time/time_elapsed"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, nan_ok=True), key
        # SB3's names, and two of ours
        assert set(ours) - set(theirs) <= {"time/primitive_steps", "rollout/steps_to_success"}
    if "target_kl" in options:
        assert our_logs[-1]["train/n_updates"] < 2 * options["n_epochs"], "the KL limit was meant to bind"


def test_bit_for_bit_in_subprocesses_with_normalisation():
    models = []
    for algorithm, extra in ((PPO, {}), (PPOSelfBC, {"bc_weight": 0})):
        env = VecNormalize(SubprocVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=5)] * 2))
        model = algorithm("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=2, seed=1, device="cpu", **extra)
        models.append(model.learn(32))
        env.close()
    assert parameters_equal(*models)


def test_with_bc_it_is_not_ppo():
    # Guards the tests above: what they compare can differ
    models = []
    for weight in (0, 1):
        model = PPOSelfBC("MlpPolicy", drift(), bc_weight=weight, n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
        if weight:
            model.replay_buffer.add(constant_demonstration())
        models.append(model.learn(16))
    assert not parameters_equal(*models)


def constant_demonstration(action=(0.7, -0.4), n=6, dim=3, task="") -> Demonstration:
    observations = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    actions = np.tile(np.asarray(action), (n, *([1] * np.ndim(action))))
    return Demonstration(task, {"observation": observations}, actions, np.ones(n, np.int64), True)


# --- Chunks -----------------------------------------------------------------------------------------------------------


def first_ratios(model) -> th.Tensor:
    """Likelihood ratios of a fresh rollout, before any update."""
    (data,) = model.rollout_buffer.get()
    model.policy.set_training_mode(True)
    log_prob = model.adapter.evaluate(data.policy_input, data.actions, data.extras).log_prob
    return (log_prob - data.old_log_prob).exp().detach()


def ppo_loss_of(model, data) -> PPOLoss:
    evaluation = model.adapter.evaluate(data.policy_input, data.actions, data.extras)
    return ppo_loss(evaluation, data, clip_range=0.2, ratio_per_step=model.ratio_per == "step")


def bc_loss_of(model, batch, kind: str | None = None, chunked: bool = False) -> th.Tensor:
    adapter = model.adapter if kind is None else adapt(model.policy, kind, chunked)
    return adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths)


def collect(model, n_steps=None):
    """One rollout without training on it."""
    _, callback = model._setup_learn(1)
    callback.on_training_start(locals(), globals())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps or model.n_steps)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_first_ratio_is_one_per_step(chunk_size, make_model, make_vec_env):
    model = make_model(make_vec_env(chunk_size=chunk_size))
    collect(model)
    ratios = first_ratios(model)
    assert ratios.shape == (16, chunk_size)
    assert th.allclose(ratios, th.ones_like(ratios), atol=1e-5)


@pytest.mark.parametrize(("ratio_per", "clipped"), [("step", 0.0), ("chunk", 0.0)])
def test_first_update_sees_no_clipping_and_no_divergence(ratio_per, clipped, make_model, record_logs):
    model = make_model(ratio_per=ratio_per, batch_size=16, bc_weight=0)
    logs = record_logs(model)
    model.learn(16)
    assert logs[-1]["train/clip_fraction"] == clipped
    assert logs[-1]["train/approx_kl"] == pytest.approx(0, abs=1e-6)


class UnexecutedEnv(gym.Env):
    """Executes only the first k steps of a chunk of 3, k from 1 to 3 in turn."""

    chunk_size, chunk_gamma = 3, 0.9

    def __init__(self, dims=1):
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (8, 8, 3), np.uint8),
            state=spaces.Box(-1, 1, (2,), np.float32),
            instruction=spaces.Box(0, 255, (4,), np.uint8),
        )
        self.action_space = spaces.Box(-1, 1, (3, dims), np.float32)

    def _observation(self):
        return {"image": np.zeros((8, 8, 3), np.uint8), "state": np.zeros(2, np.float32), "instruction": np.zeros(4, np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self._observation(), {}

    def step(self, action):
        self.n += 1
        return self._observation(), float(action[0, 0]), self.n % 4 == 0, False, {"chunk_length": (self.n - 1) % 3 + 1}


@pytest.mark.parametrize("ratio_per", ["step", "chunk"])
def test_ppo_loss_gives_unexecuted_steps_exactly_no_gradient(ratio_per, make_model):
    model = make_model(UnexecutedEnv(), ratio_per=ratio_per, ent_coef=0.1, bc_weight=0, n_steps=6)
    collect(model)
    (data,) = model.rollout_buffer.get()
    assert sorted(set(data.chunk_lengths.tolist())) == [1, 2, 3]
    values, log_prob, entropy = model.adapter.evaluate(data.policy_input, data.actions, data.extras)
    watched = [log_prob.detach().requires_grad_(), entropy.detach().requires_grad_()]
    loss = ppo_loss(ActionEvaluation(values, *watched), data, 0.2, ratio_per_step=ratio_per == "step")
    (loss.policy + loss.entropy).backward()
    unexecuted = executed_mask(data.chunk_lengths, 3) == 0
    for tensor in watched:
        assert (tensor.grad[unexecuted] == 0).all()
        assert (tensor.grad[~unexecuted] != 0).all()


@pytest.mark.parametrize("bc_loss", ["mse", "nll"])
def test_bc_loss_gives_unexecuted_steps_exactly_no_gradient(bc_loss, make_model, make_demonstrations):
    # 4 steps of progress in chunks of 3: the second chunk runs for one step
    model = make_model(bc_loss=bc_loss)
    model.replay_buffer.extend(make_demonstrations(2))
    batch = model.replay_buffer.sample(16)
    assert set(batch.chunk_lengths.tolist()) == {1, 3}
    last_layer = model.policy.head.mean_net[-1]
    outputs = []

    def keep(module, args, output):
        output.retain_grad()
        outputs.append(output)

    last_layer.register_forward_hook(keep)
    bc_loss_of(model, batch).backward()
    gradient = outputs[0].grad.view(16, 3, 2)
    executed = executed_mask(batch.chunk_lengths, 3) == 1
    assert (gradient[~executed] == 0).all() and (gradient[executed] != 0).all()


def test_policy_loss_of_a_rollout_is_the_masked_surrogate(make_model):
    """With the policy moved by hand, against a loop over executed steps."""
    model = make_model(UnexecutedEnv(dims=2), bc_weight=0, n_steps=6)
    collect(model)
    (data,) = model.rollout_buffer.get()
    with th.no_grad():
        model.policy.head.log_std += 0.3
        log_prob = model.adapter.evaluate(data.policy_input, data.actions, data.extras).log_prob
    gains = []
    for i, length in enumerate(data.chunk_lengths.tolist()):
        for step in range(length):
            ratio = np.exp(log_prob[i, step].item() - data.old_log_prob[i, step].item())
            advantage = data.advantages[i].item()
            gains.append(min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
    assert ppo_loss_of(model, data).policy.item() == pytest.approx(-np.mean(gains), rel=1e-4)


def test_ratio_per_chunk_is_the_product_of_the_executed_steps(make_model):
    model = make_model(UnexecutedEnv(dims=2), bc_weight=0, n_steps=6, ratio_per="chunk")
    collect(model)
    (data,) = model.rollout_buffer.get()
    with th.no_grad():
        model.policy.head.log_std += 0.1
        log_prob = model.adapter.evaluate(data.policy_input, data.actions, data.extras).log_prob
    ratios = []
    for i, length in enumerate(data.chunk_lengths.tolist()):
        ratios.append(np.exp((log_prob[i, :length] - data.old_log_prob[i, :length]).sum().item()))
    expected = clipped_surrogate_loss(th.tensor(ratios, dtype=th.float32), data.advantages, 0.2)
    loss = ppo_loss_of(model, data)
    assert loss.policy.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.clip_fraction == pytest.approx(np.mean([abs(ratio - 1) > 0.2 for ratio in ratios]))


# --- Micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
@pytest.mark.parametrize("bc_loss", ["mse", "nll"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size, bc_loss, make_model, make_demonstrations):
    models = []
    for size in (None, micro_batch_size):
        model = make_model(
            UnexecutedEnv(dims=2),
            micro_batch_size=size,
            ent_coef=0.01,
            n_steps=6,
            batch_size=6,
            bc_loss=bc_loss,
            bc_batch_size=16,
            bc_weight=Fixed(ppo=0.7, bc=0.4),
        )
        model.replay_buffer.extend(unexecuted_demonstrations())
        collect(model)
        models.append(only_gradients(model))
    whole, pieces = models
    for (name, a), b in zip(whole.policy.named_parameters(), pieces.policy.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert th.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4), name


class Fixed(BCWeight):
    """Any two weights."""

    def __init__(self, ppo: float, bc: float) -> None:
        self.weights = LossWeights(ppo, bc)

    def __call__(self, stats):
        return self.weights


def only_gradients(model):
    """Train on the rollout in the buffer without a step: gradients, neither clipped nor applied, stay with the parameters."""
    model.max_grad_norm = 1e9
    model.policy.optimizer.step = lambda: None
    model.train()
    return model


LOGGED = ("policy_gradient_loss", "entropy_loss", "value_loss", "approx_kl", "clip_fraction", "loss", "bc_loss")


def unexecuted_demonstrations() -> list[Demonstration]:
    env = UnexecutedEnv(dims=2)
    env.reset()
    observation, rng = env._observation(), np.random.default_rng(0)
    return [
        Demonstration(
            task,
            {key: np.stack([value] * 4) for key, value in observation.items()},
            rng.normal(size=(4, 3, 2)).astype(np.float32),
            np.array([1, 2, 3, 1]),
            True,
        )
        for task in ("a", "b")
    ]


@pytest.mark.parametrize("ratio_per", ["step", "chunk"])
@pytest.mark.parametrize("target_kl", [None, 1e-4])
def test_micro_batches_learn_the_same_and_stop_as_early(ratio_per, target_kl, make_model, make_demonstrations, record_logs):
    models, logs = [], []
    for size in (None, 3):
        model = make_model(micro_batch_size=size, n_epochs=3, ratio_per=ratio_per, target_kl=target_kl)
        model.replay_buffer.extend(make_demonstrations(3))
        logs.append(record_logs(model))
        # SGD, because Adam's first steps are signs of gradients, which rounding may flip
        model.policy.optimizer = th.optim.SGD(model.policy.optimizer.param_groups)
        model.lr_schedule = lambda progress: 0.03
        models.append(model.learn(16))
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(a, b, atol=1e-5)
    for name in (*LOGGED, "n_updates"):
        assert logs[1][-1][f"train/{name}"] == pytest.approx(logs[0][-1][f"train/{name}"], rel=1e-3, abs=1e-5), name
    assert (logs[0][-1]["train/n_updates"] < 3) == (target_kl is not None)


# --- Parts, learning rates, critic warm-up ----------------------------------------------------------------------------


def test_separate_learning_rates_reach_their_parts(make_model, record_logs):
    model = make_model(
        learning_rate=lambda progress: 1e-3 * progress, backbone_learning_rate=1e-4, critic_learning_rate=lambda p: 0.1 * p
    )
    logs = record_logs(model)
    model.learn(32)
    rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
    # The last of two updates: half of the way at the first, all of it at the second
    assert rates == pytest.approx({"backbone": 1e-4, "head": 0.0, "critic": 0.0})
    assert [row["train/learning_rate"] for row in logs] == pytest.approx([0.5e-3, 0.0])


def test_a_part_without_a_learning_rate_does_not_move(make_model):
    model = make_model(backbone_learning_rate=0.0)
    before = snapshot(model)
    model.learn(16)
    assert changed(model, before) == {"head", "critic"}


@pytest.mark.parametrize("privileged", [True, False])
def test_critic_warmup_changes_only_the_critic(privileged, make_model, make_vec_env, make_demonstrations, record_logs):
    model = make_model(make_vec_env(privileged=privileged), critic_warmup_steps=32)
    model.replay_buffer.extend(make_demonstrations(2, privileged=privileged))
    logs = record_logs(model)
    before = snapshot(model)
    model.learn(32)
    assert changed(model, before) == {"critic"}
    assert "train/value_loss" in logs[-1] and "train/policy_gradient_loss" not in logs[-1]
    model.learn(16, reset_num_timesteps=False)
    assert changed(model, before) == {"critic", "head", "backbone"}
    assert "train/policy_gradient_loss" in logs[-1]


@pytest.mark.parametrize("privileged", [True, False])
def test_further_epochs_of_the_critic_change_only_the_critic(privileged, make_model, make_vec_env):
    without, equal, further = (
        make_model(make_vec_env(privileged=privileged), critic_epochs=epochs, bc_weight=0).learn(16) for epochs in (None, 1, 4)
    )
    assert parameters_equal(without, equal)
    assert changed(further, snapshot(without)) == {"critic"}
    assert further._n_updates == without._n_updates == 1


@pytest.mark.parametrize(
    "head",
    [
        {"head": "gaussian", "head_kwargs": {"hidden_dim": 16}},
        {"head": "token", "head_kwargs": {"hidden_dim": 16}},
        {"head": "token", "head_kwargs": {"hidden_dim": 16, "decoding": "autoregressive"}},
    ],
    ids=str,
)
def test_noise_follows_its_schedule_from_rollout_to_rollout(head, make_model, record_logs, tmp_path):
    def spread(model):
        th.manual_seed(0)
        observation = model.env.reset()
        mode = model.predict(observation, deterministic=True)[0]
        return np.mean([np.square(model.predict(observation)[0] - mode).mean() for _ in range(20)])

    model = make_model(policy_kwargs=head, noise_scale=LinearSchedule(1.0, 0.2, 1.0), learning_rate=0.0)
    wide = spread(model)
    logs = record_logs(model)
    model.learn(32)
    # Of the second of two rollouts; both are learned from with the noise that they were collected with
    assert model.policy.head.noise_scale == pytest.approx(0.6)
    assert len(logs) == 2 and all(abs(row["train/approx_kl"]) < 1e-5 for row in logs)
    del model.train  # of record_logs, which no file can hold
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=model.env)
    assert loaded.policy.head.noise_scale == pytest.approx(0.2) and spread(loaded) < spread(model) < wide


def test_critic_epochs_improve_the_value(make_model):
    losses = []
    for epochs in (1, 30):
        model = make_model(n_steps=32, critic_epochs=epochs, critic_learning_rate=1e-2, bc_weight=0).learn(64)
        (data,) = model.rollout_buffer.get()
        with th.no_grad():
            values = model.policy.predict_values(data.observations).flatten()
        losses.append((values - data.returns).square().mean().item())
    assert losses[1] < 0.8 * losses[0]


def test_critic_warmup_of_an_mlp_policy_runs_on_the_value_loss():
    model = PPOSelfBC("MlpPolicy", drift(), n_steps=16, batch_size=8, n_epochs=1, critic_warmup_steps=16, seed=0, device="cpu")
    before = snapshot(model)
    model.learn(16)
    assert changed(model, before) == {"mlp_extractor", "value_net"}


@pytest.mark.parametrize("frozen", [("vision",), ("text", "connector"), ("all",)])
def test_frozen_parts_do_not_change(frozen, make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": frozen})
    model.replay_buffer.extend(make_demonstrations(2))
    parts = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in model.policy.backbone.parts.items()}
    model.learn(32)
    for name, part in model.policy.backbone.parts.items():
        if name == "all":
            continue
        same = all(th.equal(value, parts[name][key]) for key, value in part.state_dict().items())
        assert same == (name in frozen or frozen == ("all",)), name


def test_advantages_are_normalised_per_task(make_model, make_vec_env):
    model = make_model(normalize_advantage="task", n_epochs=1)
    model.learn(16)
    tasks, advantages = model.rollout_buffer.tasks.flatten(), model.rollout_buffer.advantages.flatten()
    assert tasks.tolist() == ["push"] * 8 + ["pull"] * 8, "one environment after the other, as SB3 flattens"
    for task in ("push", "pull"):
        assert advantages[tasks == task].mean() == pytest.approx(0, abs=1e-5)
        assert advantages[tasks == task].std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("normalize_advantage", [True, False, "task"])
def test_a_rollout_can_be_trained_on_twice(normalize_advantage, make_model):
    model = make_model(normalize_advantage=normalize_advantage).learn(16)
    before = model.rollout_buffer.advantages.copy()
    model.train()
    assert np.array_equal(model.rollout_buffer.advantages, before)
    collect(model)
    model.train()
    assert not np.array_equal(model.rollout_buffer.advantages, before)


# --- Behaviour cloning ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("bc_weight", [*sorted(BC_WEIGHTS), Double()], ids=str)
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
    rate = logs[-1]["rollout/success_rate"]
    assert 0 < rate < 1, "the toy task is meant to be neither trivial nor hopeless"
    assert logs[-1]["train/bc_weight"] == pytest.approx(2 * (1 - rate))


# --- Saving and loading -----------------------------------------------------------------------------------------------


def test_demonstrations_are_not_in_the_models_zip(tmp_path, make_model, make_demonstrations):
    model = make_model()
    model.save(tmp_path / "empty.zip")
    for demonstration in make_demonstrations(50):
        model.replay_buffer.add(demonstration)
    model.save(tmp_path / "full.zip")
    with zipfile.ZipFile(tmp_path / "full.zip") as archive:
        data = archive.read("model.json").decode()
    assert '"replay_buffer"' not in data and '"replay_buffer_kwargs"' in data
    sizes = [(tmp_path / name).stat().st_size for name in ("empty.zip", "full.zip")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert len(PPOSelfBC.load(tmp_path / "full.zip", device="cpu").replay_buffer) == 0


def test_checkpoints_hold_the_demonstrations_even_before_the_first_success(tmp_path, make_model, make_demonstrations):
    model = make_model()
    # Nobody succeeds within one chunk
    model.learn(2, callback=CheckpointCallback(1, str(tmp_path), save_replay_buffer=True))
    empty = tmp_path / "rl_model_replay_buffer_2_steps.pkl"
    model.replay_buffer.extend(make_demonstrations(3))
    full = tmp_path / "full.pkl"
    model.save_replay_buffer(full)
    loaded = PPOSelfBC.load(tmp_path / "rl_model_2_steps.zip", env=model.env)
    loaded.load_replay_buffer(full)
    assert loaded.replay_buffer.summary() == model.replay_buffer.summary() != {}
    loaded.load_replay_buffer(empty)
    assert len(loaded.replay_buffer) == 0


def test_everything_needed_to_continue_is_loaded(tmp_path, make_model, make_vec_env, make_demonstrations, record_logs):
    model = make_model(bc_weight="tanh", bc_weight_kwargs={"warmup_timesteps": 70}, critic_learning_rate=1e-2)
    model.learn(16)
    steps = model.num_primitive_steps
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert loaded.num_timesteps == 16 and loaded.num_primitive_steps == steps > 16
    states = [m.policy.optimizer.state_dict()["state"] for m in (model, loaded)]
    assert all(th.equal(states[0][key]["exp_avg"], states[1][key]["exp_avg"]) for key in states[0])
    before = snapshot(loaded)
    loaded.replay_buffer.extend(make_demonstrations())
    logs = record_logs(loaded)
    loaded.learn(16, reset_num_timesteps=False)
    # The rule of the BC weight goes on from where it was, and so does the count of updates
    assert logs[-1]["train/ppo_weight"] == pytest.approx(np.tanh(32 / 70)) and logs[-1]["train/n_updates"] == 2
    assert loaded.num_timesteps == 32 and loaded.num_primitive_steps > steps
    assert changed(loaded, before) == {"backbone", "head", "critic"}


def test_loads_the_same_predictions(tmp_path, make_model):
    model = make_model().learn(16)
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert type(loaded.policy.backbone) is type(model.policy.backbone)


def test_set_parameters_takes_over_another_model(make_model):
    first, second = make_model().learn(16), make_model(seed=5)
    assert not parameters_equal(first, second)
    second.set_parameters(first.get_parameters())
    assert parameters_equal(first, second)


def test_loading_can_turn_bc_off(tmp_path, make_model):
    make_model().save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", bc_weight=0)
    assert loaded.replay_buffer is None
    with pytest.raises(ValueError, match=r"no demonstration buffer.*bc_weight=0"):
        loaded.save_replay_buffer(tmp_path / "demos")


def test_an_environment_that_does_not_fit_is_refused_on_loading(tmp_path, make_model, make_vec_env):
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"Action spaces do not match.*\(3, 2\).*\(4, 2\)"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(chunk_size=4))
    with pytest.raises(ValueError, match=r"gamma=0\.5, PPOSelfBC by gamma=0\.9"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(gamma=0.5))


# --- Drop-in ----------------------------------------------------------------------------------------------------------


class Counter(BaseCallback):
    def __init__(self):
        super().__init__()
        self.inits = self.steps = self.rollouts = 0

    def _init_callback(self):
        self.inits += 1

    def _on_step(self):
        self.steps += 1
        assert self.locals["rewards"].shape == (self.training_env.num_envs,)
        return True

    def _on_rollout_end(self):
        self.rollouts += 1


@pytest.mark.parametrize("form", ["callback", "list", "callback_list"])
def test_user_callbacks_are_initialised_once_and_called_every_step(form, make_model):
    counter = Counter()
    callback = {"callback": counter, "list": [counter], "callback_list": CallbackList([counter])}[form]
    make_model().learn(32, callback=callback)
    assert (counter.inits, counter.steps, counter.rollouts) == (1, 16, 2)


def test_a_function_is_a_callback_and_can_stop_training(make_model):
    steps = []
    model = make_model().learn(1000, callback=lambda locals_, globals_: bool(steps.append(1)) or len(steps) < 3)
    assert len(steps) == 3 and model.num_timesteps == 6


def test_eval_and_checkpoint_callbacks(tmp_path, make_model, make_vec_env):
    model = make_model()
    evaluation = EvalCallback(
        make_vec_env(1), n_eval_episodes=2, eval_freq=8, best_model_save_path=str(tmp_path), log_path=str(tmp_path), verbose=0
    )
    with pytest.warns(UserWarning, match="Monitor"):
        model.learn(16, callback=[evaluation, CheckpointCallback(8, str(tmp_path))])
    assert evaluation.best_mean_reward in (0.0, 0.5, 1.0)
    best = PPOSelfBC.load(tmp_path / "best_model.zip")
    assert best.num_timesteps == 16
    assert (tmp_path / "rl_model_16_steps.zip").exists()


def test_vec_normalize_around_a_vla_environment(make_model, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    before = snapshot(model := make_model(env))
    model.learn(16)
    assert changed(model, before) == {"backbone", "head", "critic"}
    assert len(env.obs_rms["state"].mean) == 3 and env.obs_rms["state"].count > 16


def test_timesteps_and_primitive_steps_go_on_without_reset(make_model):
    model = make_model().learn(16)
    first = model.num_primitive_steps
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 32 and model.num_primitive_steps > first
    model.learn(16)
    assert model.num_timesteps == 16 and model.num_primitive_steps <= 3 * 16


def test_environment_by_name_and_default_arguments():
    model = PPOSelfBC("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)
    assert model.num_primitive_steps == 16 and len(model.replay_buffer) == 0


def test_same_seed_same_result(make_model, make_vec_env, make_demonstrations):
    models = []
    for _ in range(2):
        model = make_model(make_vec_env())
        model.replay_buffer.extend(make_demonstrations(3))
        models.append(model.learn(32))
    assert parameters_equal(*models)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio_per": "token"}, ValueError, r"ratio_per.*'step' or 'chunk'.*'token'"),
        ({"bc_loss": "l1"}, ValueError, r"bc_loss.*'mse' or 'nll'.*'l1'"),
        ({"normalize_advantage": "env"}, ValueError, r"normalize_advantage.*'task'.*'env'"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size.*at least 1.*0"),
        ({"micro_batch_size": "all"}, ValueError, "micro_batch_size must be 'auto', got 'all'"),
        ({"critic_epochs": 3, "n_epochs": 4}, ValueError, "critic_epochs=3 is less than n_epochs=4"),
        ({"bc_batch_size": 0}, ValueError, "bc_batch_size.*at least 1.*0"),
        ({"bc_weight": "adaptive"}, ValueError, "'adaptive'.*gradient_balance"),
        ({"bc_weight": "tanh", "bc_weight_kwargs": {"T": 5}}, TypeError, r"'tanh'.*\['T'\].*warmup_timesteps"),
        ({"bc_weight": -1.0}, ValueError, "negative.*-1.0"),
        ({"replay_buffer_kwargs": {"episodes_per_task": 0}}, ValueError, "episodes_per_task.*at least 1.*0"),
        ({"replay_buffer_kwargs": {"size": 3}}, TypeError, r"replay_buffer_kwargs.*\['size'\].*episodes_per_task"),
        ({"replay_buffer_kwargs": [3]}, TypeError, r"replay_buffer_kwargs must be a dictionary.*\[3\]"),
        ({"policy_kwargs": "tanh"}, TypeError, "policy_kwargs must be a dictionary.*'tanh'"),
        ({"learning_rate": -1e-3}, ValueError, "^learning_rate must be at least 0, got -0.001"),
        ({"learning_rate": np.nan}, ValueError, "^learning_rate must be finite, got nan"),
        ({"backbone_learning_rate": np.inf}, ValueError, "^backbone_learning_rate must be finite, got inf"),
        (
            {"critic_learning_rate": np.float32(-1)},
            ValueError,
            "^critic_learning_rate must be at least 0, got -1.0",
        ),
        ({"critic_warmup_steps": -1}, ValueError, "^critic_warmup_steps must be at least 0, got -1"),
        ({"gamma": 1.01}, ValueError, "^gamma must be at most 1, got 1.01"),
        ({"gae_lambda": -0.1}, ValueError, "^gae_lambda must be at least 0, got -0.1"),
        ({"gae_lambda": np.nan}, ValueError, "^gae_lambda must be finite, got nan"),
        ({"clip_range": 0.0}, ValueError, "^clip_range must be above 0, got 0.0"),
        ({"clip_range": -0.2}, ValueError, "^clip_range must be above 0, got -0.2"),
        ({"noise_scale": 0.0}, ValueError, "^noise_scale must be above 0, got 0.0"),
        ({"noise_scale": lambda remaining: remaining}, ValueError, "^noise_scale at the end.* must be above 0, got 0.0"),
        ({"noise_scale": 0.5}, ValueError, "noise_scale=0.5 needs VLAPolicy: ActorCriticPolicy can't"),
        ({"critic_learning_rate": 1e-3}, ValueError, "critic_learning_rate.*VLAPolicy.*ActorCriticPolicy.*learning_rate"),
        ({"backbone_learning_rate": 1e-3}, ValueError, "backbone_learning_rate.*VLAPolicy.*learning_rate"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        PPOSelfBC("MlpPolicy", drift(), n_steps=8, batch_size=8, device="cpu", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0, "gamma": 1, "gae_lambda": 0},
        {"learning_rate": lambda progress: 1e-3 * progress, "clip_range": lambda progress: 0.2},
        {"learning_rate": np.float64(1e-3), "clip_range": np.float64(0.1), "gamma": np.float32(0.9), "bc_weight": 0},
    ],
)
def test_what_sb3_takes_is_taken(arguments):
    PPOSelfBC("MlpPolicy", drift(), n_steps=8, batch_size=8, n_epochs=1, device="cpu", **arguments).learn(8)


def test_arguments_are_checked_when_a_model_is_loaded(tmp_path, make_model):
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="critic_learning_rate must be at least 0"):
        PPOSelfBC.load(tmp_path / "model.zip", critic_learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"ratio_per.*'token'"):
        PPOSelfBC.load(tmp_path / "model.zip", ratio_per="token")
    with pytest.raises(TypeError, match=r"policy_kwargs must be a dictionary.*'vision'"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs="vision")
    assert PPOSelfBC.load(tmp_path / "model.zip", replay_buffer_kwargs=None).replay_buffer.episodes_per_task == 100


def test_another_rollout_buffer_is_refused():
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match=r"subclass of ChunkRolloutBuffer.*got RolloutBuffer"):
        PPOSelfBC("MlpPolicy", drift(), rollout_buffer_class=RolloutBuffer, device="cpu")


def test_mse_of_discrete_actions_is_refused():
    with pytest.raises(ValueError, match=r"bc_loss='mse'.*Discrete\(2\).*bc_loss='nll'"):
        PPOSelfBC("MlpPolicy", "CartPole-v1", bc_loss="mse", device="cpu")


def test_another_gamma_inside_the_chunk_is_refused(make_model, make_vec_env):
    message = re.escape("gamma=0.9, PPOSelfBC by gamma=0.99") + ".*ChunkedActionWrapper.*gamma=0.99"
    with pytest.raises(ValueError, match=message):
        make_model(make_vec_env(gamma=0.9), gamma=0.99)
    model = make_model(make_vec_env(gamma=0.9))
    with pytest.raises(ValueError, match=r"gamma=1\.0, PPOSelfBC by gamma=0\.9"):
        model.set_env(make_vec_env(gamma=1.0))


def test_vla_policy_needs_chunks_images_and_instructions():
    with pytest.raises(ValueError, match=r"chunk.*ChunkedActionWrapper\(env, chunk_size"):
        PPOSelfBC("VLAPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match=r"Dict observation.*'image', 'instruction', 'state'.*CameraObservation"):
        PPOSelfBC("VLAPolicy", ChunkedActionWrapper(drift(), 3, gamma=0.99), device="cpu")

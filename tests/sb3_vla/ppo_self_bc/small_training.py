"""Small trainings and what is held against what, for the tests of PPOSelfBC."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from sb3_vla import BCWeight, LossWeights
from sb3_vla.policies.adapter import adapt
from sb3_vla.ppo_self_bc.losses import PPOLoss, ppo_loss
from sb3_vla_envs import Demonstration


def parameters_equal(first, second) -> bool:
    pairs = zip(first.policy.state_dict().values(), second.policy.state_dict().values(), strict=True)
    return all(th.equal(a, b) for a, b in pairs)


def snapshot(model) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def changed(model, before: dict[str, th.Tensor]) -> set[str]:
    """First part of the names of the parameters that differ."""
    return {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}


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


def constant_demonstration(action=(0.7, -0.4), n=6, dim=3, task="") -> Demonstration:
    observations = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    actions = np.tile(np.asarray(action), (n, *([1] * np.ndim(action))))
    return Demonstration(task, {"observation": observations}, actions, np.ones(n, np.int64), True)


def collect(model, n_steps=None):
    """One rollout without training on it."""
    _, callback = model._setup_learn(1)
    callback.on_training_start(locals(), globals())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps or model.n_steps)


def ppo_loss_of(model, data) -> PPOLoss:
    evaluation = model.adapter.evaluate(data.policy_input, data.actions, data.extras)
    return ppo_loss(evaluation, data, clip_range=0.2, ratio_per_step=model.ratio_per == "step")


def bc_loss_of(model, batch, kind: str | None = None, chunk_size: int | None = None) -> th.Tensor:
    adapter = model.adapter if kind is None else adapt(model.policy, kind, chunk_size)
    return adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths)


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


# Terms of the loss, as logged under "train/"
LOGGED = ("policy_gradient_loss", "entropy_loss", "value_loss", "approx_kl", "clip_fraction", "loss", "bc_loss")

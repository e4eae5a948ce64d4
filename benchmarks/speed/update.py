"""PPOSelfBC's update against a plain PyTorch loop and against SB3's PPO: python benchmarks/speed/update.py"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from measure import alternate, clock, ratio, row, save
from stable_baselines3 import PPO
from torch.nn.functional import mse_loss

from sb3_vla import PPOSelfBC, VLAPolicy, fine_tune, make_vla_vec_env
from sb3_vla.policies.encoded import PolicyInput
from sb3_vla.policies.heads import ChunkSample
from sb3_vla.runs.config import load_config
from sb3_vla_envs import collect_demonstrations

N_ROUNDS = 7


def main() -> None:
    """Fill rollout buffers once, at the quickstart's settings, and learn from them in turn."""
    config = load_config()
    # No early stop, so that all do the same work; standardising per task would change the buffer at each update from it
    settings = {**config.train.model_arguments(), "target_kl": None, "critic_warmup_steps": 0, "normalize_advantage": True}
    settings |= {"seed": 0, "gamma": config.wrapping.gamma}
    policy_kwargs = {**vars(config.policy), **settings.pop("policy_kwargs")}
    env_settings = config.env_settings()
    demonstrations = collect_demonstrations(config.tasks, n_per_task=8, progress=False, **env_settings)
    env = make_vla_vec_env(config.tasks, config.train.n_envs, **env_settings)
    try:
        ours, half = (
            PPOSelfBC("VLAPolicy", env, policy_kwargs={**policy_kwargs, "head_kwargs": head_kwargs}, **settings)
            for head_kwargs in (config.policy.head_kwargs, {**config.policy.head_kwargs, "noise_probability": 0.5})
        )
        for model in (ours, half):
            assert model.replay_buffer is not None
            model.replay_buffer.extend(demonstrations)
            model.learn(1)
        names = ("n_steps", "batch_size", "n_epochs", "learning_rate", "gae_lambda", "gamma", "seed")
        ppo_settings: dict[str, Any] = {"policy_kwargs": policy_kwargs, **{name: settings[name] for name in names}}
        sb3 = PPO(VLAPolicy, env, **ppo_settings).learn(1)
        ours_as_ppo = PPOSelfBC("VLAPolicy", env, bc_weight=0, **ppo_settings).learn(1)
        as_they_are = dict(vars(config.policy))
        float32 = PPOSelfBC("VLAPolicy", env, policy_kwargs={**as_they_are, "autocast": None}, n_steps=4, batch_size=4)
        auto = PPOSelfBC("VLAPolicy", env, policy_kwargs=as_they_are, n_steps=4, batch_size=4)
    finally:
        env.close()
    raw = {
        "plain_loop": alternate({"ours": clock(ours.train), "other": clock(plain_loop(ours))}, N_ROUNDS),
        "ppo": alternate({"ours": clock(ours_as_ppo.train), "other": clock(sb3.train)}, N_ROUNDS),
        "half_explores": alternate({"ours": clock(half.train), "other": clock(ours.train)}, N_ROUNDS),
        "precision": alternate(
            {
                name: clock(partial(fine_tune, model.policy, demonstrations, n_epochs=1, progress=False))
                for name, model in (("ours", auto), ("other", float32))
            },
            N_ROUNDS,
        ),
    }
    rows = []
    for name, what, other, bar in (
        (
            "plain_loop",
            "update: 960 chunks, 2 epochs with BC, 18 of the critic",
            "plain PyTorch loop, same tensors",
            "at least 0.91",
        ),
        ("ppo", "update: 960 chunks, 2 epochs, image encoder frozen, no BC", "SB3's `PPO`, same network", ""),
        ("half_explores", "update: 960 chunks as above with BC, noise in half of them", "noise in all of them", ""),
        ("precision", 'an epoch of SFT, `autocast="auto"`', "float32", ""),
    ):
        seconds = raw[name]
        figures = {way: f"{statistics.median(values):.2f} s" for way, values in seconds.items()}
        ratios = ratio(seconds["other"], seconds["ours"])
        rows.append(row(what, figures["ours"], f"{other}, {figures['other']}", ratios, bar))
    save("update", rows, raw)


def plain_loop(model: PPOSelfBC) -> Callable[[], None]:
    """
    What a researcher would write for this loss alone, all tensors at hand.

    :param model: Its policy, optimizer, rollout and demonstrations
    :return: A function that makes one update
    """
    policy, optimizer = model.policy, model.policy.optimizer
    assert isinstance(policy, VLAPolicy) and model.replay_buffer is not None
    everything = next(model.rollout_buffer.get())
    demos = model.replay_buffer.sample(2000)
    rollout = PolicyInput(everything.observations, everything.encoded)
    demonstrations = PolicyInput(demos.observations, policy.precompute(demos.observations))
    critic_inputs = PolicyInput({"privileged": everything.observations["privileged"]})
    steps = th.arange(8)
    n, batch_size, bc_batch_size = len(everything.actions), model.batch_size, model.bc_batch_size
    assert bc_batch_size is not None and isinstance(model.bc_weight, float) and model.critic_epochs is not None

    def select(batch: Any, index: th.Tensor) -> PolicyInput:
        observations = {key: value[index] for key, value in batch.observations.items()}
        return PolicyInput(observations, batch.encoded.map(lambda tensor: tensor[index]))

    def step(loss: th.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            th.nn.utils.clip_grad_norm_(group["params"], model.max_grad_norm)
        optimizer.step()

    def update() -> None:
        policy.set_training_mode(True)
        for _ in range(model.n_epochs):
            for index in th.as_tensor(np.random.permutation(n)).split(batch_size):
                chosen = th.randint(len(demos.actions), (bc_batch_size,))
                seen, demonstrated = policy.encode_together(select(rollout, index), select(demonstrations, chosen))
                features = policy.encode(*seen)
                values = policy.values(seen.observations, features)
                log_prob = policy.head(features).step_log_prob(ChunkSample(everything.actions[index]))
                advantages = everything.advantages[index]
                advantages = ((advantages - advantages.mean()) / (advantages.std() + 1e-8)).unsqueeze(1)
                mask = (steps < everything.chunk_lengths[index].unsqueeze(1)).float()
                ratios = (log_prob - everything.old_log_prob[index]).exp()
                surrogate = th.minimum(ratios * advantages, ratios.clamp(0.8, 1.2) * advantages)
                policy_loss = -(surrogate * mask).sum() / mask.sum()
                value_loss = mse_loss(values.flatten(), everything.returns[index])
                mean = policy.head(policy.encode(*demonstrated)).mode()
                bc_mask = (steps < demos.chunk_lengths[chosen].unsqueeze(1)).float()
                error = (mean - demos.actions[chosen]).pow(2).mean(dim=2)
                bc_loss = (error * bc_mask).sum() / bc_mask.sum()
                step(policy_loss + model.vf_coef * value_loss + model.bc_weight * bc_loss)
        for _ in range(model.critic_epochs - model.n_epochs):
            for index in th.as_tensor(np.random.permutation(n)).split(batch_size):
                values = policy.predict_values(select(critic_inputs, index).observations)
                step(mse_loss(values.flatten(), everything.returns[index]))

    return update


if __name__ == "__main__":
    main()

"""Supervised fine-tuning (SFT): behaviour cloning of demonstrations with the policy that PPOSelfBC post-trains."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch as th
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from sb3_vla_envs import Demonstration

from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.losses import bc_mse_loss, executed_mask
from .demonstration_buffer import DemonstrationBuffer


@dataclass
class SFTResult:
    """
    What :func:`fine_tune` did.

    :param train_losses: Mean training loss of each epoch
    :param held_out_losses: Loss on the held-out episodes after each epoch
    :param best_epoch: The epoch whose weights were kept, from 0
    """

    train_losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0


@dataclass
class _Pairs:
    """Observation-chunk pairs as tensors, first dimension the pair."""

    observations: dict[str, th.Tensor]
    actions: th.Tensor
    chunk_lengths: th.Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def select(self, index: th.Tensor | slice, device: th.device) -> "_Pairs":
        return _Pairs(
            {key: value[index].to(device) for key, value in self.observations.items()},
            self.actions[index].to(device),
            self.chunk_lengths[index].to(device),
        )


def fine_tune(
    policy: VLAPolicy,
    demonstrations: Sequence[Demonstration],
    n_epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    max_grad_norm: float = 1.0,
    held_out_fraction: float = 0.1,
    patience: int | None = None,
    max_shift: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> SFTResult:
    """
    Clone demonstrations: mean squared error between the policy's mean chunk and the demonstrated one, over executed steps.

    AdamW with a linear warm-up over the first twentieth of the steps and a cosine decay to zero. Every task's episodes are
    split into training and held-out ones, and the weights of the epoch with the lowest held-out loss are kept. ``state`` (and
    ``privileged``) are standardised with the statistics of the training episodes.

    :param policy: The policy, changed in place
    :param demonstrations: Successful episodes
    :param n_epochs: Passes over the training pairs
    :param batch_size: Pairs in a batch
    :param learning_rate: Peak learning rate
    :param weight_decay: AdamW's
    :param max_grad_norm: Gradient clipping
    :param held_out_fraction: Part of each task's episodes that is held out, at least one episode
    :param patience: Stop after so many epochs without a lower held-out loss; ``None`` never stops early
    :param max_shift: Augmentation: each image is shifted by up to so many pixels, at random (Yarats et al. 2021, DrQ)
    :param seed: Seed of the split, the order and the augmentation
    :param progress: Whether to show a progress bar
    :return: Losses by epoch
    :raises ValueError: if ``n_epochs`` is not positive, a task has fewer than two episodes, or the demonstrations don't fit
        the policy's spaces
    """
    if n_epochs < 1:
        raise ValueError(f"n_epochs must be at least 1, got {n_epochs}")
    rng = np.random.default_rng(seed)
    generator = th.Generator().manual_seed(seed)
    train_episodes, held_out_episodes = _split_episodes(policy, demonstrations, held_out_fraction, rng)
    train, held_out = _to_pairs(train_episodes), _to_pairs(held_out_episodes)
    policy.fit_normalizers({key: train.observations[key].to(policy.device) for key in policy.normalized_keys})
    parameters = [p for part in (policy.backbone, policy.head) for p in part.parameters() if p.requires_grad]
    optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    n_batches = -(-len(train) // batch_size)
    n_steps = n_epochs * n_batches
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=n_steps // 20, num_training_steps=n_steps)
    result = SFTResult()
    best_weights = {}
    policy.set_training_mode(True)
    with tqdm(total=n_steps, desc="SFT", unit="batch", disable=not progress) as bar:
        for epoch in range(n_epochs):
            losses = []
            order = th.randperm(len(train), generator=generator)
            for index in order.split(batch_size):
                batch = train.select(index, policy.device)
                for key in policy.image_keys:
                    batch.observations[key] = random_shift(batch.observations[key], max_shift, generator)
                loss = _loss(policy, batch)
                optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                bar.update()
            result.train_losses.append(th.stack(losses).double().mean().item())
            result.held_out_losses.append(_evaluate(policy, held_out, batch_size))
            bar.set_postfix(train=f"{result.train_losses[-1]:.4f}", held_out=f"{result.held_out_losses[-1]:.4f}")
            if result.held_out_losses[-1] <= min(result.held_out_losses):
                result.best_epoch = epoch
                best_weights = {name: value.clone() for name, value in policy.state_dict().items()}
            elif patience is not None and epoch - result.best_epoch >= patience:
                break
    policy.load_state_dict(best_weights)
    policy.set_training_mode(False)
    return result


def random_shift(images: th.Tensor, max_shift: int, generator: th.Generator) -> th.Tensor:
    """
    Shift each image by its own whole number of pixels; the border is repeated.

    :param images: ``(batch, channels, height, width)`` uint8
    :param max_shift: Largest shift in pixels, to either side
    :param generator: Source of randomness (on the CPU)
    :return: Of the same shape and dtype
    """
    batch, channels, height, width = images.shape
    shifts = th.randint(-max_shift, max_shift + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = (th.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1)
    columns = (th.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(start_dim=1)  # (batch, height * width)
    # A flat gather is several times as fast as indexing by rows and columns
    return images.flatten(start_dim=2).gather(2, pixels.unsqueeze(1).expand(-1, channels, -1)).view_as(images)


def _loss(policy: VLAPolicy, pairs: _Pairs) -> th.Tensor:
    mean = policy.get_distribution(pairs.observations).mode()
    return bc_mse_loss(mean, pairs.actions, executed_mask(pairs.chunk_lengths, mean.shape[1]))


def _evaluate(policy: VLAPolicy, pairs: _Pairs, batch_size: int) -> float:
    """
    :param policy: The policy
    :param pairs: Held-out pairs
    :param batch_size: Pairs in a batch
    :return: Mean loss, each executed step counting the same
    """
    total = 0.0
    with th.no_grad():
        for start in range(0, len(pairs), batch_size):
            batch = pairs.select(slice(start, start + batch_size), policy.device)
            total += _loss(policy, batch).item() * batch.chunk_lengths.sum().item()
    return total / pairs.chunk_lengths.sum().item()


def _split_episodes(
    policy: VLAPolicy, demonstrations: Sequence[Demonstration], held_out_fraction: float, rng: np.random.Generator
) -> tuple[list[Demonstration], list[Demonstration]]:
    """
    :param policy: Its spaces are what the demonstrations must fit
    :param demonstrations: Episodes of any number of tasks
    :param held_out_fraction: Part of each task's episodes
    :param rng: Source of randomness
    :return: Training and held-out episodes
    :raises ValueError: if a task has fewer than two successful episodes
    """
    largest_quota = max(len(demonstrations), 1)
    buffer = DemonstrationBuffer(policy.observation_space, policy.action_space, episodes_per_task=largest_quota)
    buffer.extend(demonstrations)
    if not buffer.episodes:
        raise ValueError("there are no demonstrations: collect some with sb3_vla_envs.collect_demonstrations")
    train, held_out = [], []
    for task, episodes in buffer.episodes.items():
        if len(episodes) < 2:
            raise ValueError(f"task {task!r} has one successful demonstration: give two or more, one is held out")
        order = rng.permutation(len(episodes))
        n_held_out = min(max(1, round(held_out_fraction * len(episodes))), len(episodes) - 1)
        held_out += [episodes[i] for i in order[:n_held_out]]
        train += [episodes[i] for i in order[n_held_out:]]
    return train, held_out


def _to_pairs(episodes: Sequence[Demonstration]) -> _Pairs:
    observations = {
        key: th.from_numpy(np.concatenate([demo.observations[key] for demo in episodes])) for key in episodes[0].observations
    }
    actions = np.concatenate([demo.actions for demo in episodes])
    lengths = np.concatenate([demo.chunk_lengths for demo in episodes])
    return _Pairs(observations, th.from_numpy(actions), th.from_numpy(lengths))

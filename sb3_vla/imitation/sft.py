"""Supervised fine-tuning (SFT): behaviour cloning of demonstrations with the policy that PPOSelfBC post-trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from sb3_vla_envs import Demonstration

from ..common.observation_normalization import normalize_observations, observation_normalizer
from ..policies.adapter import PolicyAdapter, adapt
from ..policies.vla_policy import VLAPolicy
from .demonstration_set import DemonstrationSamples, DemonstrationSet, Pair


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
    """
    Observation-chunk pairs of some episodes.

    :param demonstrations: The set that makes batches of them
    :param episodes: The episodes
    :param device: Where batches go
    :param normalizer: What normalises their observations
    """

    demonstrations: DemonstrationSet
    episodes: list[Demonstration]
    device: th.device
    normalizer: VecNormalize | None

    def __post_init__(self) -> None:
        self.pairs: list[Pair] = [(demo, step) for demo in self.episodes for step in range(len(demo))]

    def batches(self, order: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[DemonstrationSamples]:
        for start in range(0, len(order), batch_size):
            pairs = [self.pairs[i] for i in order[start : start + batch_size]]
            yield self.demonstrations.batch(pairs, self.device, self.normalizer)

    def numbers(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """All observations of some low-dimensional keys, before normalisation."""
        return {key: np.concatenate([demo.observations[key] for demo in self.episodes]) for key in keys}


def fine_tune(
    model: BaseAlgorithm | VLAPolicy,
    demonstrations: Sequence[Demonstration],
    n_epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    max_grad_norm: float = 1.0,
    loss: str = "auto",
    held_out_fraction: float = 0.1,
    patience: int | None = None,
    max_shift: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> SFTResult:
    """
    Clone demonstrations by the imitation loss of the policy's head, over executed steps.

    AdamW with a linear warm-up over the first twentieth of the steps and a cosine decay to zero. Every task's episodes are
    split into training and held-out ones, and the weights of the epoch with the lowest held-out loss are kept. ``state`` (and
    ``privileged``) are standardised with the statistics of the training episodes; those go into the model's ``VecNormalize``,
    too, if it has one. Parts of the backbone that are frozen stay as they are.

    :param model: A model with a VLAPolicy, or the policy alone where no ``VecNormalize`` stands before it; changed in place
    :param demonstrations: Successful episodes
    :param n_epochs: Passes over the training pairs
    :param batch_size: Pairs in a batch
    :param learning_rate: Peak learning rate
    :param weight_decay: AdamW's
    :param max_grad_norm: Gradient clipping
    :param loss: One of the imitation losses of the policy's head, ``"auto"`` for its own choice
    :param held_out_fraction: Part of each task's episodes that is held out, at least one episode
    :param patience: Stop after so many epochs without a lower held-out loss; ``None`` never stops early
    :param max_shift: Augmentation: each image is shifted by up to so many pixels, at random (Yarats et al. 2021, DrQ)
    :param seed: Seed of the split, the order and the augmentation
    :param progress: Whether to show a progress bar
    :return: Losses by epoch
    :raises ValueError: If ``n_epochs`` is not positive, a task has fewer than two episodes, the demonstrations don't fit
        the policy's spaces, or the observations that the policy sees are normalised by a ``VecNormalize`` that is not here
    :raises TypeError: If there is no VLAPolicy
    :raises FloatingPointError: If a gradient is not finite; the weights are those of before
    """
    for name, number in (("n_epochs", n_epochs), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    policy, normalizer = _policy_and_normalizer(model)
    adapter = adapt(policy, loss)
    rng = np.random.default_rng(seed)
    generator = th.Generator().manual_seed(seed)
    train, held_out = _split_episodes(adapter, demonstrations, held_out_fraction, rng, normalizer)
    _fit_normalizers(policy, normalizer, train)
    parameters = [p for part in (policy.backbone, policy.head) for p in part.parameters() if p.requires_grad]
    optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    n_steps = n_epochs * -(-len(train.pairs) // batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=n_steps // 20, num_training_steps=n_steps)
    result = SFTResult()
    best_weights = {}
    policy.set_training_mode(True)
    with tqdm(total=n_steps, desc="SFT", unit="batch", disable=not progress) as bar:
        for epoch in range(n_epochs):
            losses = []
            order = th.randperm(len(train.pairs), generator=generator).numpy()
            for batch in train.batches(order, batch_size):
                for key in policy.image_keys:
                    batch.observations[key] = random_shift(batch.observations[key], max_shift, generator)  # type: ignore[index]
                batch_loss = _loss(adapter, batch)
                optimizer.zero_grad()
                batch_loss.backward()
                norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                _check_finite(policy, epoch, batch_loss, norm)
                optimizer.step()
                schedule.step()
                losses.append(batch_loss.detach())
                bar.update()
            result.train_losses.append(th.stack(losses).double().mean().item())
            result.held_out_losses.append(_evaluate(adapter, held_out, batch_size))
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


def _policy_and_normalizer(model: BaseAlgorithm | VLAPolicy) -> tuple[VLAPolicy, VecNormalize | None]:
    """
    :param model: A model, or a policy
    :return: The policy, and what normalises its observations
    :raises TypeError: If it is no VLAPolicy
    :raises ValueError: If its observations are normalised by something that is not here
    """
    policy = model.policy if isinstance(model, BaseAlgorithm) else model
    if not isinstance(policy, VLAPolicy):
        raise TypeError(
            f"fine_tune trains VLAPolicy, or a model with one, got {type(model).__name__} with {type(policy).__name__}"
        )
    if policy is model and policy.normalized_keys:
        raise ValueError(
            f"VecNormalize normalises the observations {list(policy.normalized_keys)} of this policy: give the model, which "
            "knows it, fine_tune(model, demonstrations)"
        )
    return policy, observation_normalizer(model)


def _fit_normalizers(policy: VLAPolicy, normalizer: VecNormalize | None, train: _Pairs) -> None:
    """
    :param policy: Standardises its numbers from now on
    :param normalizer: Normalises some of them before, and takes over their statistics if it learns
    :param train: The training pairs
    """
    numbers = train.numbers(policy.standardized_keys)
    if normalizer is not None:
        assert isinstance(normalizer.obs_rms, dict)
        if normalizer.training:
            for key in numbers.keys() & normalizer.obs_rms.keys():
                normalizer.obs_rms[key].update(numbers[key])
        numbers = normalize_observations(normalizer, numbers)
    policy.fit_normalizers({key: th.from_numpy(values).to(policy.device) for key, values in numbers.items()})


def _loss(adapter: PolicyAdapter, batch: DemonstrationSamples) -> th.Tensor:
    return adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths)


def _evaluate(adapter: PolicyAdapter, pairs: _Pairs, batch_size: int) -> float:
    """
    :param adapter: The policy's
    :param pairs: Held-out pairs
    :param batch_size: Pairs in a batch
    :return: Mean loss, each executed step counting the same
    """
    total = n_executed = 0.0
    with th.no_grad():
        for batch in pairs.batches(range(len(pairs.pairs)), batch_size):
            executed = batch.chunk_lengths.sum().item()
            total += _loss(adapter, batch).item() * executed
            n_executed += executed
    return total / n_executed


def _check_finite(policy: VLAPolicy, epoch: int, loss: th.Tensor, norm: th.Tensor) -> None:
    """
    :param policy: Leaves training mode if it has to stop, with the weights of before this step
    :param epoch: For the message
    :param loss: Of a batch
    :param norm: Of its gradient
    :raises FloatingPointError: If it is not finite
    """
    if not th.isfinite(norm):
        policy.set_training_mode(False)
        raise FloatingPointError(
            f"in epoch {epoch} of SFT the loss is {loss.item()} and its gradient {norm.item()}: the weights are those of "
            "before this step; lower the learning rate, or look for extreme numbers in the demonstrations"
        )


def _split_episodes(
    adapter: PolicyAdapter,
    demonstrations: Sequence[Demonstration],
    held_out_fraction: float,
    rng: np.random.Generator,
    normalizer: VecNormalize | None,
) -> tuple[_Pairs, _Pairs]:
    """
    :param adapter: Its policy's spaces are what the demonstrations must fit
    :param demonstrations: Episodes of any number of tasks
    :param held_out_fraction: Part of each task's episodes
    :param rng: Source of randomness
    :param normalizer: What normalises their observations
    :return: Training and held-out pairs
    :raises ValueError: If a task has fewer than two successful episodes
    """
    matched = DemonstrationSet(adapter.read_space, adapter.policy.action_space, demonstrations)
    if not matched.episodes:
        raise ValueError("there are no demonstrations: collect some with sb3_vla_envs.collect_demonstrations")
    train, held_out = [], []
    for task, episodes in matched.episodes.items():
        if len(episodes) < 2:
            raise ValueError(f"task {task!r} has one successful demonstration: give two or more, one is held out")
        # The shortest first, so that the split does not depend on the order in which they come
        episodes = sorted(episodes, key=lambda demo: demo.n_steps)
        order = rng.permutation(len(episodes))
        n_held_out = min(max(1, round(held_out_fraction * len(episodes))), len(episodes) - 1)
        held_out += [episodes[i] for i in order[:n_held_out]]
        train += [episodes[i] for i in order[n_held_out:]]
    device = adapter.policy.device
    return _Pairs(matched, train, device, normalizer), _Pairs(matched, held_out, device, normalizer)

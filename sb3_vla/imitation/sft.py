"""Supervised fine-tuning (SFT): behaviour cloning of demonstrations with the policy that PPOSelfBC post-trains."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration
from sb3_vla_envs.argument_checks import Limits
from sb3_vla_envs.progress import Progress

from ..common.observation_normalization import normalize_observations, observation_normalizer
from ..common.random_states import forked_random
from ..policies.adapter import adapt
from ..policies.heads import ActionHead
from ..policies.vla_policy import VLAPolicy
from .auxiliary_target import AuxiliaryTarget, Targets
from .demonstration_set import DemonstrationSamples, as_episodes, warn_of_units
from .random_shift import random_shift
from .sft_checkpoint import SFTCheckpoint, fingerprint_episodes, fingerprint_policy
from .sft_pairs import Pairs, other_pairs, split_episodes
from .sft_state import SFTResult, SFTState

#: What arguments of :func:`fine_tune` may be
SFT_LIMITS = {
    **dict.fromkeys(("n_epochs", "batch_size"), Limits(at_least=1, whole=True)),
    **dict.fromkeys(("patience", "checkpoint_every"), Limits(at_least=1, whole=True, others=(None,))),
    **dict.fromkeys(("max_shift", "seed"), Limits(at_least=0, whole=True)),
    **dict.fromkeys(("learning_rate", "weight_decay", "auxiliary_weight"), Limits(at_least=0)),
    "max_grad_norm": Limits(above=0, may_be_infinite=True),
    "held_out_fraction": Limits(above=0, below=1),
}


def check_sft_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: Some of the arguments of :func:`fine_tune`, by name
    :raises TypeError: If one that must be a number, or the dictionary of targets, is none
    :raises ValueError: If one is out of range
    """
    for name, value in arguments.items():
        if name in SFT_LIMITS:
            SFT_LIMITS[name].check(name, value)
    targets = arguments.get("auxiliary_targets")
    if not (targets is None or isinstance(targets, Mapping)):
        raise TypeError(f"auxiliary_targets must be a dictionary of indices by observation, got {targets!r:.200}")


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
    auxiliary_targets: Mapping[str, Sequence[int] | None] | None = None,
    auxiliary_weight: float = 0.3,
    auxiliary_episodes: Sequence[Demonstration] = (),
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = 500,
) -> SFTResult:
    """
    Clone demonstrations by the imitation loss of the policy's head, over executed steps.

    AdamW with a linear warm-up over the first twentieth of the steps and a cosine decay to zero. Every task's episodes are
    split into training and held-out ones. The weights of the last epoch are kept: the lowest held-out loss does not tell the
    policy that succeeds most often (Mandlekar et al. 2021, arXiv 2108.03298). ``state`` and ``privileged`` are standardised
    with the statistics of the training episodes, which go into the model's ``VecNormalize``, too, if it has one, and a token
    head's quantiles are those of their actions: all of it once, as a policy that has learned goes on from what it is. Parts of
    the backbone that are frozen stay as they are, and so does the critic.

    :param model: A model with a VLAPolicy, or the policy alone where no ``VecNormalize`` stands before it; changed in place
    :param demonstrations: Successful episodes; of those of a real robot ``privileged``, which the critic alone reads, may be
        missing
    :param n_epochs: Passes over the training pairs
    :param batch_size: Pairs in a batch
    :param learning_rate: Peak learning rate
    :param weight_decay: AdamW's
    :param max_grad_norm: Gradient clipping
    :param loss: One of the imitation losses of the policy's head, ``"auto"`` for its own choice
    :param held_out_fraction: Part of each task's episodes that is held out, at least one episode
    :param patience: Stop after so many epochs without a lower held-out loss, and keep the epoch with the lowest
    :param max_shift: Augmentation: each image is shifted by up to so many pixels, at random (Yarats et al. 2021, DrQ)
    :param auxiliary_targets: Numbers that the policy's action features are to know, too: indices into observations by key
        (``None`` for all of a key's), e.g. ``{"privileged": [4, 5, 6]}`` for an object's place; see
        :class:`~sb3_vla.imitation.auxiliary_target.AuxiliaryTarget`
    :param auxiliary_weight: Weight of their loss
    :param auxiliary_episodes: Episodes of any policy, failures too, whose observations teach these numbers beside those of the
        demonstrations, as many a batch; their actions don't count. Of few demonstrations the features learn a few goals by
        heart; see :func:`~sb3_vla.collect_episodes`
    :param seed: Seed of the split, the order and the augmentation
    :param progress: Whether to show a progress bar
    :param checkpoint: File that holds all that is needed to go on: where it is there, as the same call was made before and
        stopped, this one goes on from it, the global random generators too, and ends as the other would have, bit for bit. It
        is there at the end, too
    :param checkpoint_every: Batches between two times that it is written, the first one before all; ``None`` for never
    :return: Losses by epoch
    :raises ValueError: If an argument is out of range, a task has fewer than two episodes, the demonstrations don't fit
        the policy's spaces, there are ``auxiliary_episodes`` but no ``auxiliary_targets``, the observations that the policy
        sees are normalised by a ``VecNormalize`` that is not here, or ``checkpoint`` is damaged or of another model, other
        demonstrations or arguments
    :raises TypeError: If there is no VLAPolicy, what should be episodes is something else, or a number is none
    :raises FloatingPointError: If a gradient is not finite, the weights are those of before; or the held-out loss
    :raises OSError: If ``checkpoint`` can't be written
    """
    demonstrations = as_episodes("demonstrations", demonstrations)
    auxiliary_episodes = as_episodes("auxiliary_episodes", auxiliary_episodes)
    arguments = locals()
    # On use only: it brings PEFT with it, where that is installed, which takes a second to import
    from transformers import get_cosine_schedule_with_warmup

    check_sft_arguments(arguments)
    policy, normalizer = _policy_and_normalizer(model)
    adapter = adapt(policy, loss)
    rng = np.random.default_rng(seed)
    generator = th.Generator().manual_seed(seed)
    targets = {} if auxiliary_targets is None else auxiliary_targets
    train, held_out = split_episodes(adapter, demonstrations, targets, held_out_fraction, rng, normalizer)
    warn_of_units(demonstrations, policy.action_space)
    others = other_pairs(adapter, auxiliary_episodes, targets, normalizer)
    saved = _open_checkpoint(arguments, policy, normalizer)
    has_learned = getattr(model, "lifetime_timesteps", 0) > 0 or bool(policy.optimizer.state)
    auxiliary = _make_auxiliary(policy, targets, (train, held_out, others), seed) if targets else None
    parts = [policy.backbone, policy.head, *([] if auxiliary is None else [auxiliary])]
    parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
    optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    n_steps = n_epochs * -(-len(train.pairs) // batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=n_steps // 20, num_training_steps=n_steps)
    state = SFTState(policy, normalizer, auxiliary, optimizer, schedule, generator)
    _begin(state, saved, train, has_learned)
    learner = _Learner(state, others, loss, max_grad_norm, max_shift, auxiliary_weight)
    policy.set_training_mode(True)
    with _unscaled_noise(policy.head), Progress(n_steps, "SFT", "batch", progress, done=schedule.last_epoch) as bar:
        while state.epoch < n_epochs:
            if not state.losses:
                state.order = th.randperm(len(train.pairs), generator=generator).numpy()
            for batch, to_predict in train.batches(state.order[len(state.losses) * batch_size :], batch_size):
                learner.step(batch, to_predict)
                if saved is not None:
                    saved.save_if_due(state)
                bar.update()
            learner.end_epoch(held_out, batch_size)
            bar.update(0, **state.result.last_epoch())
            if learner.keep_best(patience):
                break
    if patience is not None:
        policy.load_state_dict(state.kept_weights, strict=False)
    policy.set_training_mode(False)
    return state.result


@contextmanager
def _unscaled_noise(head: ActionHead) -> Iterator[None]:
    """Meanwhile the head's noise is its own: what is learned by likelihood would make up for a factor that explores by it."""
    scale = head.noise_scale
    head.noise_scale = None if scale is None else 1.0
    try:
        yield
    finally:
        head.noise_scale = scale


@dataclass
class _Learner:
    """
    Takes the steps of :func:`fine_tune`.

    :param state: What changes
    :param others: Pairs that teach the auxiliary targets, too
    :param kind: Of the imitation loss
    :param max_grad_norm: Gradient clipping
    :param max_shift: Of images, in pixels
    :param auxiliary_weight: Of the loss of the auxiliary targets
    """

    state: SFTState
    others: Pairs
    kind: str
    max_grad_norm: float
    max_shift: int
    auxiliary_weight: float

    def step(self, batch: DemonstrationSamples, to_predict: Targets | None) -> None:
        """
        Learn from a batch.

        :param batch: Observation-chunk pairs
        :param to_predict: What is to be predicted of them beside the action
        :raises FloatingPointError: If a gradient is not finite
        """
        state, generator = self.state, self.state.generator
        self._shift_images(batch)
        imitation, unexplained = self._losses(batch, to_predict)
        loss = imitation
        if unexplained is not None:
            if state.auxiliary is not None and self.others.pairs:
                seen, of_others = self.others.draw(len(batch.actions), generator)
                self._shift_images(seen)
                features = state.policy.encode(*seen.policy_input).action
                unexplained = (unexplained + state.auxiliary.loss(features, of_others)) / 2
            loss = imitation + self.auxiliary_weight * unexplained
        state.optimizer.zero_grad()
        loss.backward()
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not th.isfinite(norm):
            state.policy.set_training_mode(False)
            raise FloatingPointError(
                f"in epoch {state.epoch} of SFT the loss is {loss.item()} and its gradient {norm.item()}: the weights are "
                "those of before this step; lower the learning rate, or look for extreme numbers in the demonstrations"
            )
        state.optimizer.step()
        state.schedule.step()
        state.losses.append(imitation.detach())

    def end_epoch(self, held_out: Pairs, batch_size: int) -> None:
        """
        Note the mean losses: of training, and on held-out pairs, of imitation each executed step counting the same, of the
        targets each number. A loss that draws random numbers (flow matching) draws the same ones after each epoch, so that
        the epochs can be compared.

        :param held_out: Held-out pairs
        :param batch_size: Pairs in a batch
        """
        result = self.state.result
        result.train_losses.append(th.stack(self.state.losses).double().mean().item())
        self.state.losses = []
        total = n_executed = unexplained = n_numbers = 0.0
        self.state.policy.set_training_mode(False)
        with th.no_grad(), forked_random(self.state.policy.device):
            th.manual_seed(0)
            for batch, targets in held_out.batches(np.arange(len(held_out.pairs)), batch_size):
                imitation, auxiliary = self._losses(batch, targets)
                executed = batch.chunk_lengths.sum().item()
                total += imitation.item() * executed
                n_executed += executed
                if auxiliary is not None and targets is not None:
                    numbers = targets.counts.sum().item()
                    unexplained += auxiliary.item() * numbers
                    n_numbers += numbers
        if not np.isfinite(total):
            raise FloatingPointError(
                f"after epoch {self.state.epoch - 1} of SFT the loss on held-out episodes is {total}: look for extreme "
                "numbers in the demonstrations"
            )
        self.state.policy.set_training_mode(True)
        result.held_out_losses.append(total / n_executed)
        if n_numbers:
            result.unexplained.append(unexplained / n_numbers)

    def keep_best(self, patience: int | None) -> bool:
        """
        Note which epoch's weights are to be kept, and keep those of the one that has ended if they are the best.

        :param patience: Of :func:`fine_tune`
        :return: Whether there is no patience left
        """
        state, result = self.state, self.state.result
        last = state.epoch - 1
        if patience is None:
            result.kept_epoch = last
        elif result.held_out_losses[-1] <= min(result.held_out_losses):
            result.kept_epoch = last
            state.kept_weights = {name: value.clone() for name, value in state.weights().items()}
        return patience is not None and last - result.kept_epoch >= patience

    def _losses(self, batch: DemonstrationSamples, targets: Targets | None) -> tuple[th.Tensor, th.Tensor | None]:
        """:return: Imitation loss, and that of the targets, if there are any"""
        policy, auxiliary = self.state.policy, self.state.auxiliary
        features = policy.encode(*batch.policy_input)
        imitation = policy.imitation_loss(features, batch.actions, batch.chunk_lengths, self.kind)
        if auxiliary is None or targets is None:
            return imitation, None
        return imitation, auxiliary.loss(features.action, targets)

    def _shift_images(self, batch: DemonstrationSamples) -> None:
        for key in self.state.policy.image_keys:
            images = batch.observations[key]  # type: ignore[index]
            batch.observations[key] = random_shift(images, self.max_shift, self.state.generator)  # type: ignore[index]


def _open_checkpoint(arguments: Mapping[str, Any], policy: VLAPolicy, normalizer: VecNormalize | None) -> SFTCheckpoint | None:
    """
    :param arguments: Of :func:`fine_tune`
    :param policy: That of the model
    :param normalizer: What normalises its observations
    :return: The checkpoint, ``None`` if there shall be none
    """
    if arguments["checkpoint"] is None or arguments["checkpoint_every"] is None:
        return None
    given = ("demonstrations", "auxiliary_episodes")
    others = ("model", "progress", "checkpoint", "checkpoint_every")
    targets = arguments["auxiliary_targets"] or {}
    settings = {
        **{name: value for name, value in arguments.items() if name not in (*given, *others)},
        "auxiliary_targets": [[key, indices if indices is None else list(indices)] for key, indices in targets.items()],
        "autocast": policy.autocast,
        "normalized_keys": [] if normalizer is None else sorted(normalizer.norm_obs_keys or ()),
        "lifetime_timesteps": getattr(arguments["model"], "lifetime_timesteps", 0),
    }
    fingerprints = {name: fingerprint_episodes(arguments[name]) for name in given} | {"networks": fingerprint_policy(policy)}
    return SFTCheckpoint(Path(arguments["checkpoint"]), arguments["checkpoint_every"], fingerprints, settings)


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


def _begin(state: SFTState, saved: SFTCheckpoint | None, train: Pairs, has_learned: bool) -> None:
    """
    Go on from the checkpoint, if there is one, or fit to the training pairs what is no weight.

    :param state: Of the fine-tuning
    :param saved: Its checkpoint, there or not
    :param train: The training pairs
    :param has_learned: Whether the policy has been trained otherwise before: what it reads and does stays what it was
    :raises ValueError: If the checkpoint is damaged or of another fine-tuning, before anything is changed
    """
    if saved is not None and saved.restore(state):
        return
    if not has_learned:
        if not state.policy.is_fine_tuned:
            state.policy.head.fit(np.concatenate([demo.executed_actions() for demo in train.episodes]))
        _fit_normalizers(state.policy, state.normalizer, train)
    if saved is not None:
        saved.save(state)


def _fit_normalizers(policy: VLAPolicy, normalizer: VecNormalize | None, train: Pairs) -> None:
    """
    :param policy: Standardises its numbers from now on, if it has not done so before
    :param normalizer: Normalises some of them before, and takes over their statistics if it learns
    :param train: The training pairs
    """
    numbers = train.numbers([key for key in policy.unfitted_keys if key in train.episodes[0].observations])
    if normalizer is not None:
        assert isinstance(normalizer.obs_rms, dict)
        if normalizer.training:
            for key in numbers.keys() & normalizer.obs_rms.keys():
                normalizer.obs_rms[key].update(numbers[key])
        numbers = normalize_observations(normalizer, numbers)
    policy.fit_normalizers({key: th.from_numpy(values).to(policy.device) for key, values in numbers.items()})


def _make_auxiliary(
    policy: VLAPolicy, targets: Mapping[str, Sequence[int] | None], pairs: tuple[Pairs, Pairs, Pairs], seed: int
) -> AuxiliaryTarget:
    """
    :param policy: Whose features are to know the targets
    :param targets: Numbers among the observations
    :param pairs: Those of training, held-out ones and others, which get their targets
    :param seed: Of the network's first weights
    :return: The network that predicts them
    """
    train, _, others = pairs
    with forked_random(policy.device):
        th.manual_seed(seed)
        seen = [*train.episodes, *others.episodes]
        auxiliary = AuxiliaryTarget(policy.backbone.features_dim, targets, seen).to(policy.device)
    for each in pairs:
        if each.episodes:
            each.targets = auxiliary.of(each.episodes)
    return auxiliary

"""What changes while a policy is fine-tuned."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from torch.optim.lr_scheduler import LRScheduler

from ..common.normalizer_state import get_observation_statistics, set_observation_statistics
from ..common.random_states import get_random_states, set_random_states
from ..policies.vla_policy import VLAPolicy
from .auxiliary_target import AuxiliaryTarget


@dataclass
class SFTResult:
    """
    What :func:`~sb3_vla.fine_tune` did.

    :param train_losses: Mean training loss of each epoch
    :param held_out_losses: Loss on the held-out episodes after each epoch
    :param unexplained: Share of the auxiliary targets' variance, on the held-out episodes, that the features don't explain
        after each epoch; empty without such targets
    :param kept_epoch: The epoch whose weights were kept, from 0
    """

    train_losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    unexplained: list[float] = field(default_factory=list)
    kept_epoch: int = 0

    def last_epoch(self) -> dict[str, str]:
        """
        :return: The figures of the last epoch, by name, for a progress bar
        """
        series = {"train": self.train_losses, "held_out": self.held_out_losses, "unexplained": self.unexplained}
        return {name: f"{values[-1]:.4f}" for name, values in series.items() if values}


@dataclass
class SFTState:
    """
    All that changes from batch to batch.

    :param policy: What learns
    :param normalizer: Normalises its observations before, if anything does
    :param auxiliary: Learns with it, if there is anything to predict beside the action
    :param optimizer: Of both
    :param schedule: Of its learning rate
    :param generator: Source of order and augmentation
    """

    policy: VLAPolicy
    normalizer: VecNormalize | None
    auxiliary: AuxiliaryTarget | None
    optimizer: th.optim.Optimizer
    schedule: LRScheduler
    generator: th.Generator
    result: SFTResult = field(default_factory=SFTResult)
    #: ``(pairs,)`` int64: order of the training pairs in the last epoch that has begun
    order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    #: Scalars: losses of the batches that are done of the epoch under way
    losses: list[th.Tensor] = field(default_factory=list)
    #: With ``patience``, those of the best epoch so far
    kept_weights: dict[str, th.Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The one under way, from 0."""
        return len(self.result.train_losses)

    def weights(self) -> dict[str, th.Tensor]:
        """:return: ``state_dict()`` of the policy without what fine-tuning leaves alone: the critic, and what is frozen"""
        critic = {id(parameter) for parameter in self.policy.critic.parameters()}
        left_alone = {
            name
            for name, parameter in self.policy.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad or id(parameter) in critic
        }
        return {name: weight for name, weight in self.policy.state_dict().items() if name not in left_alone}

    def get_state(self) -> dict[str, Any]:
        """:return: The same in what a file of plain values can hold"""
        return {
            "weights": self.weights(),
            "observation_statistics": None if self.normalizer is None else get_observation_statistics(self.normalizer),
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "random": get_random_states(self.policy.device),
            "result": dict(vars(self.result)),
            "order": self.order,
            "losses": th.stack(self.losses) if self.losses else th.empty(0),
            "kept_weights": self.kept_weights,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """
        :param state: What :meth:`get_state` returned of a fine-tuning of the same policy
        """
        self.policy.load_state_dict(state["weights"], strict=False)  # what is left alone is not there
        if self.normalizer is not None:
            set_observation_statistics(self.normalizer, state["observation_statistics"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        set_random_states(state["random"], self.policy.device)
        self.result = SFTResult(**state["result"])
        self.order = state["order"]
        self.losses = list(state["losses"].to(self.policy.device).unbind())
        self.kept_weights = {name: weight.to(self.policy.device) for name, weight in state["kept_weights"].items()}

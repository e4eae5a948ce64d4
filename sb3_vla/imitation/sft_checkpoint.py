"""What supervised fine-tuning goes on from after it was stopped."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from torch.optim.lr_scheduler import LRScheduler

from sb3_vla_envs.durable_files import check_writable

from ..common.plain_file import load_plain, save_plain
from ..common.random_source import get_torch_states, set_torch_states
from ..policies.vla_policy import VLAPolicy
from .auxiliary_target import AuxiliaryTarget

_FORMAT = "sb3-vla SFT 1"


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


class WrongCheckpoint(ValueError):
    """The checkpoint of a fine-tuning is damaged, or of another one."""


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
        """:return: ``state_dict()`` of the policy without what is frozen"""
        named = self.policy.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        return {name: weight for name, weight in self.policy.state_dict().items() if name not in frozen}

    def get(self) -> dict[str, Any]:
        """:return: The same in what a file of plain values can hold"""
        statistics: Any = None if self.normalizer is None else self.normalizer.obs_rms
        return {
            "weights": self.weights(),
            "normalizer": {key: dict(vars(rms)) for key, rms in (statistics or {}).items()},
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "random": get_torch_states(self.policy.device),
            "result": dict(vars(self.result)),
            "order": self.order,
            "losses": th.stack(self.losses),
            "kept_weights": self.kept_weights,
        }

    def set(self, state: Mapping[str, Any]) -> None:
        """
        :param state: What :meth:`get` returned
        """
        self.policy.load_state_dict(state["weights"], strict=False)  # what is frozen is not there
        if self.normalizer is not None:
            statistics: Any = self.normalizer.obs_rms
            for key, numbers in state["normalizer"].items():
                vars(statistics[key]).update(numbers)
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        set_torch_states(state["random"], self.policy.device)
        self.result = SFTResult(**state["result"])
        self.order = state["order"]
        self.losses = list(state["losses"].to(self.policy.device).unbind())
        self.kept_weights = {name: weight.to(self.policy.device) for name, weight in state["kept_weights"].items()}


class SFTCheckpoint:
    """
    The file that a fine-tuning goes on from.

    :param path: The file, there or not
    :param every: Batches between two times that it is written
    :param call: What makes a fine-tuning another one, by name, plain values
    :raises WrongCheckpoint: If the file is damaged, or of another fine-tuning
    :raises OSError: If it can't be written there
    """

    def __init__(self, path: str | os.PathLike[str], every: int, call: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.every = every
        self.call = dict(call)
        self._found: Mapping[str, Any] | None = None
        if not self.path.exists():
            check_writable(self.path.parent)
            return
        try:
            content = load_plain(self.path)
        except ValueError as error:
            raise WrongCheckpoint(f"{error}: delete it to begin anew") from error
        if not (isinstance(content, dict) and content.get("format") == _FORMAT and isinstance(content.get("call"), dict)):
            raise WrongCheckpoint(f"'{path}' is no checkpoint of a fine-tuning: give another file")
        for name, value in self.call.items():
            if content["call"].get(name) != value:
                its_own = content["call"].get(name)
                raise WrongCheckpoint(
                    f"'{path}' is the checkpoint of another fine-tuning, whose {name} is {its_own!r:.200} and not "
                    f"{value!r:.200}: give another file, or delete it to begin anew"
                )
        self._found = content["state"]

    def restore(self, state: SFTState) -> None:
        """
        :param state: Of a fine-tuning that begins, which goes on from the file if it was there
        """
        if self._found is not None:
            state.set(self._found)

    def save_if_due(self, state: SFTState) -> None:
        """
        :param state: After a batch
        """
        if state.schedule.last_epoch % self.every == 0:
            save_plain(self.path, {"format": _FORMAT, "call": self.call, "state": state.get()})

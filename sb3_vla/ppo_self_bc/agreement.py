"""What ranks that train one model must have in common: where they begin, weights, statistics of ``VecNormalize``."""

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from ..common.ranks import Ranks, check_alike

if TYPE_CHECKING:
    from .chunked_ppo import ChunkedPPO

# Arguments that may differ
_OWN = ("self", "policy", "env", "seed", "device", "verbose", "stats_window_size", "tensorboard_log", "_init_setup_model")


def check_models_alike(ranks: Ranks, model: "ChunkedPPO") -> None:
    """
    :param ranks: The ranks
    :param model: That of this one
    :raises ValueError: If one of them has other arguments, environments, networks or as many demonstrations
    """
    if ranks.size == 1:
        return
    arguments = [name for name in inspect.signature(type(model).__init__).parameters if name not in _OWN]
    check_alike(ranks, "arguments of the algorithm", {name: getattr(model, name) for name in arguments})
    names = ("n_envs", "observation_space", "action_space", "normalized_keys")
    environments = {name: getattr(model, name) for name in names}
    check_alike(ranks, "environments", environments)
    check_alike(ranks, "networks", {name: tuple(weight.shape) for name, weight in model.policy.state_dict().items()})
    progress = {name: getattr(model, name) for name in ("num_timesteps", "lifetime_timesteps")}
    n_demonstrations = 0 if model.replay_buffer is None else len(model.replay_buffer)
    check_alike(ranks, "what they begin with", {**progress, "demonstrated pairs": n_demonstrations})


def share_weights(ranks: Ranks, policy: nn.Module) -> None:
    """
    :param ranks: The ranks
    :param policy: Gets the weights of the first one's
    """
    ranks.broadcast_(policy.state_dict().values())


def check_weights_identical(ranks: Ranks, policy: nn.Module) -> None:
    """
    :param ranks: The ranks
    :param policy: That of this one
    :raises RuntimeError: If a bit of a weight is not that of the first rank's
    """
    if ranks.size == 1:
        return
    names, weights = zip(*policy.named_parameters(), strict=True)
    # The bits as numbers, whose sum any change of one shows
    sums = th.stack([weight.detach().flatten().view(th.uint8).sum(dtype=th.int64) for weight in weights])
    everywhere = ranks.all_gather(sums.unsqueeze(0))
    for rank, theirs in enumerate(everywhere):
        if not th.equal(theirs, everywhere[0]):
            name = names[int(th.nonzero(theirs != everywhere[0])[0])]
            raise RuntimeError(
                f"the weights of rank {rank} are no longer those of rank 0 (in {name}): does something, such as a callback, "
                "change the policy on one rank alone? The run goes on from its last checkpoint with --resume"
            )


class SharedNormalization:
    """
    Lets the running statistics of ``VecNormalize`` be those of the observations and returns of all ranks.

    :param ranks: The ranks
    :param normalizer: The wrapper of this rank's environment, or ``None``
    """

    def __init__(self, ranks: Ranks, normalizer: VecNormalize | None) -> None:
        self.ranks = ranks
        self.normalizer = normalizer
        self._begin()

    def _begin(self) -> None:
        if self.ranks.size > 1:
            for statistics, sums in zip(self._statistics, self.ranks.broadcast_object(self._sums()), strict=True):
                _set(statistics, sums)
            self._agreed = self._sums()

    def agree(self) -> None:
        """Add up what all ranks have seen since the last time."""
        if self.ranks.size == 1:
            return
        everywhere = self.ranks.all_gather_object(self._sums())
        for i, statistics in enumerate(self._statistics):
            _set(statistics, self._agreed[i] + sum(sums[i] - self._agreed[i] for sums in everywhere))
        self._agreed = self._sums()

    @property
    def _statistics(self) -> list[RunningMeanStd]:
        if self.normalizer is None:
            return []
        observed: Any = self.normalizer.obs_rms if self.normalizer.norm_obs else []
        several = list(observed.values()) if isinstance(observed, dict) else [observed] if self.normalizer.norm_obs else []
        return [*several, self.normalizer.ret_rms]

    def _sums(self) -> list[np.ndarray]:
        return [_sums_of(statistics) for statistics in self._statistics]


def _sums_of(statistics: RunningMeanStd) -> np.ndarray:
    """:return: ``(3, ...)``: how many numbers there were, their sum and that of their squares"""
    mean, var, count = statistics.mean, statistics.var, statistics.count
    return np.stack([np.broadcast_to(count, np.shape(mean)), count * mean, count * (var + np.square(mean))])


def _set(statistics: RunningMeanStd, sums: np.ndarray) -> None:
    """
    :param statistics: Changed in place
    :param sums: What :func:`_sums_of` gives
    """
    count = sums[0]
    statistics.mean = sums[1] / count
    statistics.var = np.maximum(sums[2] / count - np.square(statistics.mean), 0.0)
    statistics.count = float(count.flat[0])

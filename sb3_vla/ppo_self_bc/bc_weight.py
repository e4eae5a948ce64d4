"""
How much behaviour cloning weighs against PPO.

Each rule is a pure function of training statistics. The paper adapts the weight online without giving the formula; these are
the candidates that this package compares.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from sb3_vla_envs.argument_checks import Limits


@dataclass(frozen=True)
class TrainingStatistics:
    """
    What a rule may look at, once an update.

    :param lifetime_timesteps: Chunks in the whole life of the model; SB3's ``num_timesteps`` begins anew with each ``learn()``
    :param success_rate: Success rate of the last episodes of each task, averaged over the tasks, so that quick tasks, of which
        more episodes end, don't hide slow ones, in [0, 1]; ``None`` before the first episode ended
    :param ppo_grad_norm: Norm of the gradient of the PPO loss with respect to what behaviour cloning trains too; ``None``
        unless the rule ``needs_gradient_norms``
    :param bc_grad_norm: Norm of the gradient of the unweighted BC loss
    """

    lifetime_timesteps: int
    success_rate: float | None = None
    ppo_grad_norm: float | None = None
    bc_grad_norm: float | None = None


@dataclass(frozen=True)
class LossWeights:
    """``loss = ppo * L_PPO + bc * L_BC``."""

    ppo: float
    bc: float


class BCWeight(ABC):
    """Base class of the rules: a call gives the weights of the two losses."""

    needs_gradient_norms: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, stats: TrainingStatistics) -> LossWeights:
        """
        :param stats: Training statistics
        :return: Weights of the PPO and the BC loss
        """

    @property
    def is_off(self) -> bool:
        """Whether the BC loss never counts."""
        return False


@dataclass(frozen=True)
class ConstantWeight(BCWeight):
    """
    A fixed weight.

    :param weight: Weight of the BC loss; 0 turns behaviour cloning off
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_not_negative(weight=self.weight)

    def __call__(self, stats: TrainingStatistics) -> LossWeights:
        return LossWeights(ppo=1.0, bc=self.weight)

    @property
    def is_off(self) -> bool:
        return self.weight == 0


@dataclass(frozen=True)
class TanhWarmup(BCWeight):
    """
    The PPO term fades in, ``beta = tanh(t / T)``, beside a fixed BC weight: imitation first, reinforcement later.

    :param weight: Weight of the BC loss
    :param warmup_timesteps: T, in chunks
    """

    weight: float = 1.0
    warmup_timesteps: int = 10_000

    def __post_init__(self) -> None:
        _check_not_negative(weight=self.weight)
        Limits(above=0).check("warmup_timesteps", self.warmup_timesteps)

    def __call__(self, stats: TrainingStatistics) -> LossWeights:
        return LossWeights(ppo=math.tanh(stats.lifetime_timesteps / self.warmup_timesteps), bc=self.weight)


@dataclass(frozen=True)
class SuccessDriven(BCWeight):
    """
    Imitate while the policy fails: ``minimum + (weight - minimum) * (1 - success rate)``.

    :param weight: Weight of the BC loss at no success
    :param minimum: Weight at full success
    """

    weight: float = 1.0
    minimum: float = 0.1

    def __post_init__(self) -> None:
        _check_not_negative(weight=self.weight, minimum=self.minimum)

    def __call__(self, stats: TrainingStatistics) -> LossWeights:
        failure_rate = 1.0 - (stats.success_rate or 0.0)
        return LossWeights(ppo=1.0, bc=self.minimum + (self.weight - self.minimum) * failure_rate)


@dataclass(frozen=True)
class GradientBalance(BCWeight):
    """
    Hold the two gradients at a fixed proportion: ``bc = ratio * |grad L_PPO| / |grad L_BC|``, within bounds.

    :param ratio: Norm of the weighted BC gradient over that of the PPO gradient
    :param maximum: Upper bound of the weight
    """

    needs_gradient_norms: ClassVar[bool] = True

    ratio: float = 0.5
    maximum: float = 10.0

    def __post_init__(self) -> None:
        _check_not_negative(ratio=self.ratio, maximum=self.maximum)

    def __call__(self, stats: TrainingStatistics) -> LossWeights:
        if not stats.ppo_grad_norm or not stats.bc_grad_norm:
            return LossWeights(ppo=1.0, bc=0.0)
        return LossWeights(ppo=1.0, bc=min(self.ratio * stats.ppo_grad_norm / stats.bc_grad_norm, self.maximum))


BC_WEIGHTS: dict[str, Callable[..., BCWeight]] = {
    "constant": ConstantWeight,
    "tanh": TanhWarmup,
    "success": SuccessDriven,
    "gradient_balance": GradientBalance,
}


def make_bc_weight(bc_weight: float | str | BCWeight, kwargs: dict[str, Any] | None = None) -> BCWeight:
    """
    :param bc_weight: A number (a constant weight), the name of a rule, or a rule
    :param kwargs: Arguments of a rule given by name
    :return: The rule
    :raises ValueError: If there is no rule of that name, or an argument is out of range
    :raises TypeError: If it is none of these, the rule has no such argument, or ``kwargs`` go with a number or a rule
    """
    if isinstance(bc_weight, str):
        if bc_weight not in BC_WEIGHTS:
            raise ValueError(f"there is no BC weight rule {bc_weight!r}: use a number or one of {sorted(BC_WEIGHTS)}")
        rule = BC_WEIGHTS[bc_weight]
        allowed = list(inspect.signature(rule).parameters)
        unknown = [name for name in kwargs or {} if name not in allowed]
        if unknown:
            raise TypeError(f"the BC weight rule {bc_weight!r} has no argument {unknown}; it takes {allowed}")
        return rule(**(kwargs or {}))
    if kwargs:
        raise TypeError(f"bc_weight_kwargs={kwargs} go with the name of a rule, but bc_weight is {bc_weight!r}")
    if isinstance(bc_weight, BCWeight):
        return bc_weight
    if isinstance(bc_weight, bool) or not isinstance(bc_weight, Real):
        raise TypeError(f"bc_weight must be a number, a BCWeight or one of {sorted(BC_WEIGHTS)}, got {bc_weight!r:.200}")
    return ConstantWeight(float(bc_weight))


def _check_not_negative(**arguments: float) -> None:
    for name, value in arguments.items():
        Limits(at_least=0).check(f"{name} of the BC loss", value)

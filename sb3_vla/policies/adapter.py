"""What PPOSelfBC asks of the policy that it trains: the one place that knows what kind of policy that is."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from ..common.chunk_mask import executed_mask, masked_mean, masked_mse
from ..common.random_source import drawing_from
from .encoded import NOT_ENCODED, EncodedObservations, PolicyInput

#: Where the likelihood of actions needs nothing beside them
NO_EXTRAS: Mapping[str, th.Tensor] = MappingProxyType({})


class RolloutStep(NamedTuple):
    """
    What a policy makes of the observations of a rollout's step.

    :param actions: ``(n_envs, *action shape)``, before clipping
    :param values: ``(n_envs, 1)``
    :param log_prob: ``(n_envs,)``, or ``(n_envs, h)`` from a policy that keeps the steps of a chunk apart
    :param encoded: What frozen parts made of the observations, so that they need not be stored
    :param extras: What else the likelihood of the actions needs, ``(n_envs, ...)`` by name
    """

    actions: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    encoded: EncodedObservations = NOT_ENCODED
    extras: Mapping[str, th.Tensor] = NO_EXTRAS


class ActionEvaluation(NamedTuple):
    """
    What a policy says of actions taken.

    :param values: ``(batch, 1)``
    :param log_prob: ``(batch,)``, or ``(batch, h)`` from a policy that keeps the steps of a chunk apart
    :param entropy: Of the same shape, ``None`` where it has no closed form
    """

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None


class PolicyAdapter:
    """
    Serves every policy of SB3. A policy that can do more, as :class:`~sb3_vla.VLAPolicy` can, names a subclass of this as its
    class attribute ``adapter_class``.

    :param policy: The policy
    :param bc_loss: ``"mse"`` on the mean (Box actions), ``"nll"``, or ``"auto"``: the former where there is a mean
    :param chunk_size: Primitive actions of a chunk, h, which an action consists of, one after the other; ``None`` without
        chunks
    :raises ValueError: If the policy has no such loss, or an action is not h primitive ones
    """

    #: Whether an environment must take chunks
    needs_chunks: bool = False
    #: Names of the optimizer's parameter groups that may have a learning rate of their own
    parts: tuple[str, ...] = ()
    #: Whether a chunk's likelihood is the product of its steps', as a ratio per chunk needs it
    steps_are_independent: bool = True
    #: Observations that the value function reads, ``None`` for all
    critic_keys: tuple[str, ...] | None = None
    #: Observations that the policy reads on the CPU, where it would have to wait for a GPU to give them back
    host_keys: tuple[str, ...] = ()

    def __init__(self, policy: ActorCriticPolicy, bc_loss: str = "auto", chunk_size: int | None = None) -> None:
        self.policy = policy
        self.bc_loss = bc_loss
        self.chunk_size = chunk_size
        self._check_bc_loss()
        self._uses_mean = isinstance(policy.action_space, spaces.Box) and bc_loss != "nll"

    def _check_bc_loss(self) -> None:
        shape = self.policy.action_space.shape or (1,)
        if self.chunk_size is not None and math.prod(shape) % self.chunk_size:
            raise ValueError(
                f"the environment's chunk_size={self.chunk_size} does not divide its actions of shape {shape}: a chunk is so "
                "many primitive actions, one after the other, as sb3_vla_envs.ChunkedActionWrapper makes them"
            )
        if self.chunk_size is not None and self.bc_loss == "nll" and self.policy.squash_output:
            raise ValueError("bc_loss='nll' does not know the steps of a chunk of squashed actions: use bc_loss='mse'")
        if self.bc_loss == "mse" and not isinstance(self.policy.action_space, spaces.Box):
            raise ValueError(f"bc_loss='mse' needs a Box action space, got {self.policy.action_space}: use bc_loss='nll'")

    def scale_noise(self, scale: float) -> None:
        """
        :param scale: Factor of the policy's exploration noise from now on, above 0
        :raises ValueError: If it is not 1, and the policy can't change its noise
        """
        if scale != 1:
            raise ValueError(f"noise_scale={scale} needs VLAPolicy: {type(self.policy).__name__} can't scale its noise")

    @staticmethod
    def byte_keys(observation_space: spaces.Space) -> tuple[str, ...]:
        """
        :param observation_space: Observation space of an environment
        :return: Pictures and prompts, which ``VecNormalize`` must leave alone
        """
        return ()

    @property
    def read_space(self) -> spaces.Space:
        """The observations that the policy reads."""
        return self.policy.observation_space

    @property
    def stored_space(self) -> spaces.Space:
        """Those of them that a buffer has to keep beside what :meth:`precompute` returns."""
        return self.read_space

    @property
    def imitates_steps(self) -> bool:
        """Whether :meth:`imitation_loss` is a mean over executed primitive steps, and not over chunks."""
        return self.chunk_size is not None

    def portable_kwargs(self) -> dict[str, Any]:
        """
        :return: ``policy_kwargs`` that take the place of the user's in a saved model, so that it loads anywhere
        """
        return {}

    def note_normalized(self, keys: tuple[str, ...]) -> None:
        """
        :param keys: Observations that ``VecNormalize`` standardises before the policy sees them
        """

    def act(self, obs: PyTorchObs, generator: th.Generator | None = None) -> RolloutStep:
        """
        :param obs: Observations of all environments
        :param generator: What actions are drawn with, by default torch's global one
        :return: A step of the rollout
        """
        with drawing_from(generator):
            actions, values, log_prob = self.policy(obs)
        return RolloutStep(actions, values, log_prob)

    def needed_features(self, extras: Mapping[str, th.Tensor]) -> th.Tensor | None:
        """
        :param extras: What :meth:`act` gave beside actions
        :return: ``(batch,)`` bool: of which of them :meth:`evaluate` needs the features, ``None`` for all: see
            :class:`PolicyInput`
        """
        return None

    def evaluate(
        self, batch: PolicyInput, actions: th.Tensor, extras: Mapping[str, th.Tensor] = NO_EXTRAS
    ) -> ActionEvaluation:
        """
        :param batch: Observations
        :param actions: As the rollout buffer keeps them
        :param extras: What :meth:`act` gave beside them
        :return: Values, log-probabilities, entropies
        """
        if isinstance(self.policy.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()
        return ActionEvaluation(*self.policy.evaluate_actions(batch.observations, actions))

    def imitation_loss(self, batch: PolicyInput, actions: th.Tensor, chunk_lengths: th.Tensor) -> th.Tensor:
        """
        :param batch: Observations
        :param actions: Demonstrated actions before clipping, ``(batch, *action shape)``
        :param chunk_lengths: ``(batch,)`` primitive steps that count, where there are chunks
        :return: Scalar loss
        """
        if self.policy.squash_output:  # whose actions are in [-1, 1] before the environment's bounds
            space = self.policy.action_space
            assert isinstance(space, spaces.Box)
            low, high = (th.as_tensor(bound).to(actions) for bound in (space.low, space.high))
            actions = 2 * (actions - low) / (high - low) - 1
        flat = actions.reshape(len(actions), -1)
        if self.chunk_size is None and not self._uses_mean:
            return -self.evaluate(batch, flat).log_prob.mean()
        distribution = self.policy.get_distribution(batch.observations)
        # A chunk from a policy that flattens its actions gets its steps back
        steps = (len(actions), self.chunk_size or 1, -1)
        mask = None if self.chunk_size is None else executed_mask(chunk_lengths, self.chunk_size)
        if self._uses_mean:
            return masked_mse(distribution.mode().reshape(steps), flat.reshape(steps), mask)
        return -masked_mean(_log_probs(distribution, flat).reshape(steps).sum(dim=2), mask)

    def critic_values(self, batch: PolicyInput) -> th.Tensor:
        """
        :param batch: Observations, of which :attr:`critic_keys` are enough
        :return: Values ``(batch, 1)``, whose gradient trains the value function alone where that is a part of its own
        """
        return self.policy.predict_values(batch.observations)

    @property
    def critic_reads_features(self) -> bool:
        """Whether what :meth:`critic_values` reads of observations stays the same while it alone learns."""
        return False

    def critic_features(self, batch: PolicyInput) -> EncodedObservations:
        """
        :param batch: Observations
        :return: What :meth:`critic_values` reads of them in their place, where it :attr:`critic_reads_features`
        """
        raise NotImplementedError(f"{type(self).__name__} has no features that its critic reads")

    def precompute(self, obs: PyTorchObs) -> EncodedObservations:
        """
        :param obs: Observations
        :return: What frozen parts make of them
        """
        return NOT_ENCODED

    def encoding_version(self) -> tuple[int, ...]:
        """
        :return: Something that differs once :meth:`precompute` would return something else
        """
        return ()

    def layers_to_shard(self) -> Sequence[nn.Module]:
        """
        :return: Modules whose weights ranks may part among themselves, each called as a whole and nothing of it by itself
        :raises ValueError: If there are none
        """
        raise ValueError(f"shard=True needs VLAPolicy, whose backbone has layers: {type(self.policy).__name__} has none")

    def encode_together(self, *batches: PolicyInput) -> tuple[PolicyInput, ...] | None:
        """
        :param batches: Batches of observations
        :return: The same, read in one pass with one graph for all, or ``None`` where that gains nothing
        """
        return None

    def metrics(self) -> dict[str, float]:
        """
        :return: What is logged of the policy after each update, by name
        """
        if not hasattr(self.policy, "log_std"):
            return {}
        return {"std": th.exp(self.policy.log_std).mean().item()}


def _log_probs(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    :param distribution: One of SB3's
    :param actions: ``(batch, n)``
    :return: Log-probability of each dimension, ``(batch, n)``
    """
    if isinstance(distribution, MultiCategoricalDistribution):
        columns = zip(distribution.distribution, actions.unbind(dim=1), strict=True)
        return th.stack([dimension.log_prob(column) for dimension, column in columns], dim=1)
    return distribution.distribution.log_prob(actions)  # type: ignore[union-attr]


def adapt(policy: ActorCriticPolicy, bc_loss: str = "auto", chunk_size: int | None = None) -> PolicyAdapter:
    """
    :param policy: Any policy
    :param bc_loss: See :class:`PolicyAdapter`
    :param chunk_size: See :class:`PolicyAdapter`
    :return: Its adapter
    """
    return adapter_class_of(type(policy))(policy, bc_loss, chunk_size)


def adapter_class_of(policy_class: type[BasePolicy]) -> type[PolicyAdapter]:
    """
    :param policy_class: Any policy's class
    :return: The class of its adapter
    """
    adapter_class: type[PolicyAdapter] = getattr(policy_class, "adapter_class", PolicyAdapter)
    return adapter_class

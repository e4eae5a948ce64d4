"""What VLAPolicy does for PPOSelfBC that other policies don't."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from ..common.random_source import drawing_from
from .adapter import NO_EXTRAS, ActionEvaluation, PolicyAdapter, RolloutStep
from .encoded import EncodedObservations, PolicyInput
from .heads import ChunkSample
from .observation_checks import holds_bytes

if TYPE_CHECKING:
    from .vla_policy import VLAPolicy


class VLAPolicyAdapter(PolicyAdapter):
    """
    Keeps the steps of a chunk apart, and what frozen parts compute.

    :param policy: The policy
    :param bc_loss: One of the losses of the policy's head, ``"auto"`` for its own choice
    :param chunk_size: Not used: its actions are always chunks
    :raises ValueError: If the head has no such loss
    """

    policy: "VLAPolicy"  # type: ignore[assignment]
    needs_chunks = True
    parts = ("backbone", "head", "critic")
    host_keys = ("instruction",)

    def _check_bc_loss(self) -> None:
        losses = self.policy.head.imitation_losses
        if self.bc_loss not in ("auto", *losses):
            head = type(self.policy.head).__name__
            raise ValueError(
                f"bc_loss={self.bc_loss!r}: {head} imitates by {' or '.join(map(repr, losses))}; 'auto' is {losses[0]!r}"
            )

    @property
    def steps_are_independent(self) -> bool:  # type: ignore[override]
        """Whether the head draws the steps of a chunk independently."""
        return self.policy.head.steps_are_independent

    def scale_noise(self, scale: float) -> None:
        head = self.policy.head
        if head.noise_scale is not None:
            head.noise_scale = scale
        elif scale != 1:
            raise ValueError(
                f"noise_scale={scale} needs a head that multiplies its noise by it: {type(head).__name__} has no noise_scale"
            )

    @staticmethod
    def byte_keys(observation_space: spaces.Space) -> tuple[str, ...]:
        return tuple(filter(holds_bytes, observation_space)) if isinstance(observation_space, spaces.Dict) else ()

    @property
    def critic_keys(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """Privileged observations, where there are any."""
        return ("privileged",) if self.policy.privileged else None

    @property
    def read_space(self) -> spaces.Dict:
        """The observations that actor and critic read."""
        return self._space(self.policy.read_keys)

    @property
    def stored_space(self) -> spaces.Dict:
        """Those of them that no frozen part has replaced."""
        return self._space(self.policy.stored_keys)

    def _space(self, keys: list[str]) -> spaces.Dict:
        return spaces.Dict({key: self.policy.observation_space[key] for key in keys})  # type: ignore[index]

    @property
    def imitates_steps(self) -> bool:
        """Always."""
        return True

    def portable_kwargs(self) -> dict[str, Any]:
        return self.policy.portable_kwargs()

    def note_normalized(self, keys: tuple[str, ...]) -> None:
        if "state" in keys and "state" in self.policy.backbone.normalization:
            raise ValueError(
                "VecNormalize normalises 'state', as the backbone's checkpoint does with statistics of its own: leave it out "
                "of norm_obs_keys, or pass backbone_kwargs=dict(use_statistics=False)"
            )
        self.policy.normalized_keys = keys

    def act(self, obs: PyTorchObs, generator: th.Generator | None = None) -> RolloutStep:
        encoded = self.precompute(obs)
        features = self.policy.encode(obs, encoded)
        distribution = self.policy.head(features)
        with drawing_from(generator):
            sample = distribution.draw()
        values = self.policy.values(obs, features)
        return RolloutStep(sample.actions, values, distribution.drawn_log_prob(sample), encoded, sample.extras)

    def needed_features(self, extras: Mapping[str, th.Tensor]) -> th.Tensor | None:
        return self.policy.head.has_likelihood(extras) if self.policy.privileged else None  # else the critic reads them, too

    def evaluate(
        self, batch: PolicyInput, actions: th.Tensor, extras: Mapping[str, th.Tensor] = NO_EXTRAS
    ) -> ActionEvaluation:
        features = self.policy.encode(*batch)
        distribution = self.policy.head(features)
        values = self.policy.values(batch.observations, features)
        return ActionEvaluation(values, *distribution.evaluate(ChunkSample(actions, extras)))

    def imitation_loss(self, batch: PolicyInput, actions: th.Tensor, chunk_lengths: th.Tensor) -> th.Tensor:
        return self.policy.imitation_loss(self.policy.encode(*batch), actions, chunk_lengths, self.bc_loss)

    def critic_values(self, batch: PolicyInput) -> th.Tensor:
        if self.policy.privileged:
            return self.policy.predict_values(batch.observations)
        return self.policy.critic(self.critic_features(batch).value)

    @property
    def critic_reads_features(self) -> bool:
        return not self.policy.privileged

    def critic_features(self, batch: PolicyInput) -> EncodedObservations:
        with th.no_grad():  # the actor reads the backbone too
            features = self.policy.encode(*batch)
        return EncodedObservations(action=features.action, value=features.value)

    def precompute(self, obs: PyTorchObs) -> EncodedObservations:
        return self.policy.precompute(obs)

    def encoding_version(self) -> tuple[int, ...]:
        return self.policy.frozen_version()

    def metrics(self) -> dict[str, float]:
        return self.policy.head.metrics()

    def layers_to_shard(self) -> Sequence[nn.Module]:
        if self.policy.compile_parts:
            raise ValueError("shard=True does not go with policy_kwargs=dict(compile=True): leave one of them out")
        layers = self.policy.learning_layers
        if not layers:
            raise ValueError(
                f"shard=True finds no layer of {type(self.policy.backbone).__name__} that learns: unfreeze some, or leave it "
                "out, or let your own backbone's property `layers` name them"
            )
        return layers

    def encode_together(self, *batches: PolicyInput) -> tuple[PolicyInput, ...]:
        return self.policy.encode_together(*batches)

"""Rollout buffers for chunks: one chunk is one timestep, discounting is per primitive step."""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from ..common.device_transfer import observations_to_device, to_device
from ..common.ranks import Ranks
from ..policies.encoded import NOT_ENCODED, EncodedObservations, PolicyInput


class ChunkRolloutBufferSamples(NamedTuple):
    """
    SB3's samples and what belongs to chunks.

    :param observations: See SB3, and so for those below
    :param actions: Before clipping
    :param old_values: ``(batch,)``
    :param old_log_prob: ``(batch,)``, or ``(batch, h)`` from a policy that keeps the steps of a chunk apart
    :param advantages: ``(batch,)``
    :param returns: ``(batch,)``
    :param chunk_lengths: ``(batch,)``, how many steps of each chunk were executed
    :param encoded: What stands for observations that are not kept
    :param extras: What else the likelihood of the actions needs, ``(batch, ...)`` by name
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    chunk_lengths: th.Tensor
    encoded: EncodedObservations
    extras: Mapping[str, th.Tensor]

    @property
    def policy_input(self) -> PolicyInput:
        """What a policy reads."""
        return PolicyInput(self.observations, self.encoded)


class TensorStore:
    """
    Tensors by name that come with each sample of a rollout; they stay on their device and in their precision.

    :param n_steps: Steps of the rollout
    """

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.tensors: dict[str, th.Tensor] = {}

    def put(self, step: int, tensors: Mapping[str, th.Tensor]) -> None:
        """
        :param step: Step of the rollout
        :param tensors: ``(n_envs, ...)`` by name
        :raises RuntimeError: If the names are not those of the rollout's first step
        """
        if step > 0 and tensors.keys() != self.tensors.keys():
            raise RuntimeError(
                f"step {step} of the rollout comes with {sorted(tensors)}, its first step with {sorted(self.tensors)}: freeze "
                "and unfreeze parts of a policy before the rollout"
            )
        for name, tensor in tensors.items():
            if step == 0:
                self.tensors[name] = tensor.new_empty((len(tensor), self.n_steps, *tensor.shape[1:]))
            self.tensors[name][:, step] = tensor

    def flatten(self) -> None:
        """Turn ``(n_envs, n_steps, ...)`` into ``(n_envs * n_steps, ...)``, the order of SB3's buffers; nothing is copied."""
        self.tensors = {name: tensor.flatten(0, 1) for name, tensor in self.tensors.items()}

    def at(self, indices: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param indices: Samples, on the device of the tensors
        :return: Their tensors
        """
        return {name: tensor[indices] for name, tensor in self.tensors.items()}


class ChunkRolloutBuffer(RolloutBuffer):
    """
    SB3's rollout buffer with the executed length k of each chunk, and its task.

    The semi-Markov form of GAE (Schulman et al. 2016, with Sutton, Precup & Singh 1999 for the discount) over chunks t:
    ``delta_t = r_t + gamma**k_t V_{t+1} - V_t`` and ``A_t = delta_t + gamma**k_t * lambda * A_{t+1}``. With every k = 1
    this is SB3's, to the bit.
    """

    chunk_lengths: np.ndarray
    tasks: np.ndarray
    #: Dictionary observations that stay on the CPU in samples, as :attr:`PolicyAdapter.host_keys` has it
    host_keys: Collection[str] = ()

    def reset(self) -> None:
        super().reset()
        self.steps_apart = False
        self._normalized_per_task = False
        self._keys: Sequence[str] | None = None
        self._in_place = NOT_ENCODED
        self._encoded = TensorStore(self.buffer_size)
        self._extras = TensorStore(self.buffer_size)
        self.chunk_lengths = np.ones((self.buffer_size, self.n_envs), dtype=np.int64)
        self.tasks = np.full((self.buffer_size, self.n_envs), "", dtype=object)

    def add(  # type: ignore[override]
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        chunk_lengths: np.ndarray | None = None,
        tasks: Sequence[str] | None = None,
        encoded: EncodedObservations = NOT_ENCODED,
        extras: Mapping[str, th.Tensor] | None = None,
    ) -> None:
        """
        :param obs: Observation, see SB3, and so for those below
        :param action: Action
        :param reward: ``(n_envs,)``
        :param episode_start: ``(n_envs,)``
        :param value: ``(n_envs, 1)``
        :param log_prob: ``(n_envs,)``, or ``(n_envs, h)`` from a policy that keeps the steps of a chunk apart
        :param chunk_lengths: ``(n_envs,)`` primitive steps executed, 1 by default
        :param tasks: Names of the tasks, one an environment
        :param encoded: What stands for observations that this buffer does not keep, ``(n_envs, ...)``
        :param extras: What else the likelihood of the action needs, ``(n_envs, ...)`` by name
        """
        if chunk_lengths is not None:
            self.chunk_lengths[self.pos] = chunk_lengths
        if tasks is not None:
            self.tasks[self.pos] = tasks
        self._encoded.put(self.pos, encoded.tensors)
        self._extras.put(self.pos, extras or {})
        if log_prob.dim() == 2 and not self.steps_apart:
            # The policy tells the steps of a chunk apart: one column each
            self.steps_apart = True
            self.log_probs = np.zeros((*self.log_probs.shape, log_prob.shape[1]), dtype=np.float32)
        super().add(obs, action, reward, episode_start, value, log_prob)  # type: ignore[arg-type]

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Compute the lambda-return and GAE, see the class.

        :param last_values: ``(n_envs, 1)`` values after the last chunk
        :param dones: ``(n_envs,)`` whether the last chunk ended the episode
        """
        next_values = last_values.clone().cpu().numpy().flatten()
        next_non_terminal = 1.0 - dones.astype(np.float32)
        # float64 powers rounded once, as SB3 rounds its scalars: bit-identical for k = 1
        discounts = self.gamma**self.chunk_lengths
        value_discounts = discounts.astype(np.float32)
        gae_discounts = (discounts * self.gae_lambda).astype(np.float32)
        last_gae_lam: np.ndarray | float = 0
        for step in reversed(range(self.buffer_size)):
            delta = self.rewards[step] + value_discounts[step] * next_values * next_non_terminal - self.values[step]
            last_gae_lam = delta + gae_discounts[step] * next_non_terminal * last_gae_lam
            self.advantages[step] = last_gae_lam
            next_values = self.values[step]
            next_non_terminal = 1.0 - self.episode_starts[step]
        self.returns = self.advantages + self.values
        self._normalized_per_task = False

    def normalize_advantages_per_task(self, ranks: Ranks | None = None) -> None:
        """
        Standardise the advantages over the rollout within each task, so that a task whose returns vary little weighs as
        much as one whose returns vary a lot. Once is enough: again it does nothing, until there are new ones.

        :param ranks: Whose rollouts count, by default this one alone
        """
        if self._normalized_per_task:
            return
        self._normalized_per_task = True
        everywhere = (ranks or Ranks()).all_gather_object((self.tasks.ravel(), self.advantages.ravel()))
        all_tasks, all_advantages = (np.concatenate(parts) for parts in zip(*everywhere, strict=True))
        for task in set(self.tasks.ravel()):
            of_task = self.tasks == task
            advantages = all_advantages[all_tasks == task]
            if len(advantages) > 1:
                self.advantages[of_task] = (self.advantages[of_task] - advantages.mean()) / (advantages.std() + 1e-8)

    def encode(self, featurize: Callable[[PolicyInput], EncodedObservations], batch_size: int) -> EncodedObservations:
        """
        :param featurize: Makes features of a batch of observations
        :param batch_size: How many observations at a time
        :return: The features of all of them, ``(n_envs * n_steps, ...)``, for :meth:`get` as ``in_place`` with ``keys=()``
        """
        if not self.generator_ready:
            next(self.get(1))  # puts the samples in order
        self._keys, self._in_place = None, NOT_ENCODED
        n = self.buffer_size * self.n_envs
        batches = (self._get_samples(np.arange(start, min(start + batch_size, n))) for start in range(0, n, batch_size))
        return EncodedObservations.join(featurize(batch.policy_input) for batch in batches)

    def get(  # type: ignore[override]
        self,
        batch_size: int | None = None,
        keys: Sequence[str] | None = None,
        in_place: EncodedObservations = NOT_ENCODED,
    ) -> Generator[ChunkRolloutBufferSamples, None, None]:
        """
        :param batch_size: Samples in a minibatch, by default all
        :param keys: Of dictionary observations only these, and nothing of what stands for others; by default all
        :param in_place: What stands for those that are left out, as :meth:`encode` has made it
        :return: Generator over the minibatches of one epoch
        """
        self._keys, self._in_place = keys, in_place
        if not self.generator_ready:
            self.chunk_lengths, self.tasks = map(self.swap_and_flatten, (self.chunk_lengths, self.tasks))
            self._encoded.flatten()
            self._extras.flatten()
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ChunkRolloutBufferSamples:
        # Indexing has copied already
        log_probs = self.log_probs[batch_inds]
        arrays = {
            "actions": self.actions[batch_inds].astype(np.float32, copy=False),
            "old_values": self.values[batch_inds].flatten(),
            "old_log_prob": log_probs if self.steps_apart else log_probs.flatten(),
            "advantages": self.advantages[batch_inds].flatten(),
            "returns": self.returns[batch_inds].flatten(),
            "chunk_lengths": self.chunk_lengths[batch_inds].flatten(),
        }
        encoded, extras = NOT_ENCODED, {}
        if self._keys is None and (self._encoded.tensors or self._extras.tensors):
            indices = to_device(batch_inds, self.device)  # once for all of them
            encoded, extras = EncodedObservations(**self._encoded.at(indices)), self._extras.at(indices)
        elif self._in_place.tensors:
            indices = to_device(batch_inds, self.device)
            encoded = self._in_place.map(lambda tensor: tensor[indices])
        return ChunkRolloutBufferSamples(
            observations=self._get_observations(batch_inds),
            **{name: to_device(array, self.device) for name, array in arrays.items()},
            encoded=encoded,
            extras=extras,
        )

    def _get_observations(self, batch_inds: np.ndarray) -> th.Tensor | TensorDict:
        return to_device(self.observations[batch_inds], self.device)


class ChunkDictRolloutBuffer(ChunkRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """
    :class:`ChunkRolloutBuffer` for dictionary observations. It keeps the keys of its own observation space, which may be fewer
    than the environment's.
    """

    def _get_observations(self, batch_inds: np.ndarray) -> TensorDict:
        keys = list(self.observations) if self._keys is None else self._keys
        arrays = {key: self.observations[key][batch_inds] for key in keys}
        return observations_to_device(arrays, self.device, self.host_keys)

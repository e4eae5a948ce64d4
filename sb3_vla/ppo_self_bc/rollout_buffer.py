"""Rollout buffers for chunks: one chunk is one timestep, discounting is per primitive step."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from ..common.device_transfer import observations_to_device, to_device


class ChunkRolloutBufferSamples(NamedTuple):
    """
    SB3's samples and how many steps of each chunk were executed.

    ``old_log_prob`` is ``(batch,)``, or ``(batch, h)`` from a policy that keeps the steps of a chunk apart.
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    chunk_lengths: th.Tensor


class ChunkRolloutBuffer(RolloutBuffer):
    """
    SB3's rollout buffer with the executed length k of each chunk, and its task.

    The semi-Markov form of GAE (Schulman et al. 2016, with Sutton, Precup & Singh 1999 for the discount) over chunks t:
    ``delta_t = r_t + gamma**k_t V_{t+1} - V_t`` and ``A_t = delta_t + gamma**k_t * lambda * A_{t+1}``. With every k = 1
    this is SB3's, to the bit.
    """

    chunk_lengths: np.ndarray
    tasks: np.ndarray

    def reset(self) -> None:
        super().reset()
        self.steps_apart = False
        self._keys: Sequence[str] | None = None
        self.chunk_lengths = np.ones((self.buffer_size, self.n_envs), dtype=np.int64)
        self.tasks = np.zeros((self.buffer_size, self.n_envs), dtype=object)

    def record_chunks(self, chunk_lengths: Sequence[int], rewards: np.ndarray, tasks: Sequence[str]) -> None:
        """
        Announce the chunks that the next call of :meth:`add` is about.

        SB3 hands ``infos`` to callbacks, but not to the buffer, and adds ``gamma * V(terminal observation)`` to the reward
        of a time-out between the two.

        :param chunk_lengths: Primitive steps executed, one an environment
        :param rewards: ``(n_envs,)`` rewards before SB3 adds the bootstrap value
        :param tasks: Names of the tasks, one an environment
        """
        self.chunk_lengths[self.pos] = chunk_lengths
        self.tasks[self.pos] = tasks
        self._raw_rewards = rewards.copy()

    def add(self, obs, action, reward, episode_start, value, log_prob) -> None:  # type: ignore[no-untyped-def, override]
        lengths = self.chunk_lengths[self.pos]
        if (lengths > 1).any():
            # SB3 bootstrapped a time-out with gamma * V: for a chunk of k steps it is gamma**k * V
            bootstrap = reward - self._raw_rewards
            reward = np.where(lengths > 1, self._raw_rewards + bootstrap * self.gamma ** (lengths - 1), reward)
        if log_prob.dim() == 2 and not self.steps_apart:
            # The policy tells the steps of a chunk apart: one column each
            self.steps_apart = True
            self.log_probs = np.zeros((*self.log_probs.shape, log_prob.shape[1]), dtype=np.float32)
        super().add(obs, action, reward, episode_start, value, log_prob)

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

    def normalize_advantages_per_task(self) -> None:
        """
        Standardise the advantages over the rollout within each task, so that a task whose returns vary little weighs as
        much as one whose returns vary a lot.
        """
        for task in set(self.tasks.ravel()):
            of_task = self.tasks == task
            advantages = self.advantages[of_task]
            if len(advantages) > 1:
                self.advantages[of_task] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None, keys: Sequence[str] | None = None
    ) -> Generator[ChunkRolloutBufferSamples, None, None]:
        """
        :param batch_size: Samples in a minibatch, by default all
        :param keys: Of dictionary observations only these, by default all
        :return: Generator over the minibatches of one epoch
        """
        self._keys = keys
        if not self.generator_ready:
            self.chunk_lengths = self.swap_and_flatten(self.chunk_lengths)
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
        return ChunkRolloutBufferSamples(
            observations=self._get_observations(batch_inds),
            **{name: to_device(array, self.device) for name, array in arrays.items()},
        )

    def _get_observations(self, batch_inds: np.ndarray) -> th.Tensor | TensorDict:
        return to_device(self.observations[batch_inds], self.device)


class ChunkDictRolloutBuffer(ChunkRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """
    :class:`ChunkRolloutBuffer` for dictionary observations.

    It holds the keys of its own observation space, which may be fewer than the environment's: those of the others that a
    policy has encoded once and for all come by :meth:`record_precomputed`.
    """

    def reset(self) -> None:
        super().reset()
        self.precomputed: dict[str, th.Tensor] = {}

    def record_precomputed(self, precomputed: dict[str, th.Tensor]) -> None:
        """
        Announce more of the observations that the next call of :meth:`add` is about.

        :param precomputed: Tensors ``(n_envs, ...)`` by key, which stay on their device and in their precision
        :raises RuntimeError: if a key comes up in the middle of a rollout
        """
        for key, value in precomputed.items():
            if key not in self.precomputed:
                if self.pos > 0:
                    raise RuntimeError(f"{key!r} is precomputed only since step {self.pos}: freeze parts before the rollout")
                self.precomputed[key] = value.new_empty((self.buffer_size, *value.shape))
            self.precomputed[key][self.pos] = value

    def get(  # type: ignore[override]
        self, batch_size: int | None = None, keys: Sequence[str] | None = None
    ) -> Generator[ChunkRolloutBufferSamples, None, None]:
        if not self.generator_ready:
            self.precomputed = {key: value.transpose(0, 1).flatten(0, 1) for key, value in self.precomputed.items()}
        yield from super().get(batch_size, keys)

    def _get_observations(self, batch_inds: np.ndarray) -> TensorDict:
        arrays = {key: array[batch_inds] for key, array in self.observations.items() if self._wants(key)}
        tensors = {key: tensor for key, tensor in self.precomputed.items() if self._wants(key)}
        return {
            **observations_to_device(arrays, self.device),
            **{key: tensor[th.as_tensor(batch_inds, device=tensor.device)] for key, tensor in tensors.items()},
        }

    def _wants(self, key: str) -> bool:
        return self._keys is None or key in self._keys

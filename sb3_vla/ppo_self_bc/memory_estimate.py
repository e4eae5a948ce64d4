"""How much memory post-training will take, known beforehand: for models that are not there, or don't fit into this machine."""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from sb3_vla_envs import encode_instruction

from ..common.tensor_memory import TensorMemory
from ..imitation.feature_cache import MAX_CACHED_BYTES
from ..policies.adapter import RolloutStep, adapt
from ..policies.encoded import EncodedObservations
from ..policies.vla_policy import VLAPolicy
from .micro_batch import plannable, split_batch
from .rollout_buffer import ChunkDictRolloutBuffer, ChunkRolloutBufferSamples
from .update_memory import add_gradient, add_joint_gradient, state_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes that post-training takes at most, beside those of the program itself: on the device where the model is, and in the
    memory of the machine, which are the same on a CPU.

    :param parameters: Weights, on the device, and so are those that follow
    :param gradients: Of what is trained
    :param optimizer: Its state
    :param update: What an update needs beside them at its peak: minibatch, activations, whatever is computed for a while
    :param acting: What a step of a rollout needs beside the parameters
    :param encoded: What frozen parts make of a rollout's observations, and what the likelihoods of its chunks need
    :param cache: The same of the demonstrations
    :param rollout: Rollout buffer, in the machine's memory, and so are those that follow
    :param demonstrations: Demonstration buffer
    :param making: Weights while the model is made, in float32 whatever an adapters' base is in afterwards
    """

    parameters: int
    gradients: int
    optimizer: int
    update: int
    acting: int
    encoded: int
    cache: int
    rollout: int
    demonstrations: int
    making: int

    @property
    def device(self) -> int:
        """All that is on the device, at the peak."""
        # Between an update and the next one the gradients stay
        return self.parameters + self.gradients + self.optimizer + self.encoded + self.cache + max(self.update, self.acting)

    @property
    def host(self) -> int:
        """All that is in the machine's memory, at the peak."""
        return max(self.making, self.rollout + self.demonstrations)

    @property
    def without_gpu(self) -> int:
        """All of it at the peak, where the device is the machine's own processor."""
        return max(self.making, self.device + self.rollout + self.demonstrations)

    def to_dict(self) -> dict[str, int]:
        """:return: Bytes by name, the sums too"""
        names = [*(each.name for each in fields(self)), "device", "host", "without_gpu"]
        return {name: getattr(self, name) for name in names}


class MemoryEstimator:
    """
    Runs a policy with tensors that have shapes but no content, and counts what they take, whatever its backbone, head,
    adapters and precision are. What operations need by themselves and what allocators can't use comes on top.

    :param observation_space: Observation space
    :param action_space: Action space, chunks
    :param instruction: What the robot is told
    :param policy_kwargs: Arguments of :class:`~sb3_vla.VLAPolicy`; a backbone that is a checkpoint would be loaded: see
        :func:`~sb3_vla.policies.backbones.without_weights`
    :param n_envs: Number of environments
    :param n_steps: Chunks of a rollout in each of them
    :param batch_size: Minibatch size
    :param bc_batch_size: Demonstrated pairs beside each minibatch, 0 for no behaviour cloning
    :param n_demonstrations: Pairs that the demonstration buffer holds
    :param ratio_per_step: Whether likelihood ratios are per primitive step
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        instruction: str,
        policy_kwargs: Mapping[str, Any],
        n_envs: int,
        n_steps: int,
        batch_size: int,
        bc_batch_size: int = 0,
        n_demonstrations: int = 0,
        ratio_per_step: bool = True,
    ) -> None:
        self.batch_size, self.bc_batch_size, self.ratio_per_step = batch_size, bc_batch_size, ratio_per_step
        self._peaks: dict[int | None, int] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.policy = self._make_policy(observation_space, action_space, policy_kwargs)
        self.adapter = adapt(self.policy)
        encoded_instruction = encode_instruction(instruction, self.policy.instruction_bytes)
        self._instruction = th.from_numpy(np.tile(encoded_instruction, self.policy.n_frames))
        step, acting = self._act(n_envs)
        self._step = step
        self._optimizer = self._make_optimizer()
        per_sample = {
            "encoded": sum(tensor.nbytes for tensor in step.encoded.tensors.values()) // n_envs,
            "extras": sum(tensor.nbytes for tensor in step.extras.values()) // n_envs,
        }
        self._fixed = MemoryEstimate(
            parameters=sum(tensor.nbytes for tensor in (*self.policy.parameters(), *self.policy.buffers())),
            gradients=sum(parameter.nbytes for parameter in self.policy.parameters() if parameter.requires_grad),
            optimizer=state_bytes(self._optimizer),
            update=0,
            acting=acting,
            encoded=sum(per_sample.values()) * n_envs * n_steps,
            cache=min(per_sample["encoded"] * n_demonstrations, MAX_CACHED_BYTES),
            rollout=self._rollout_bytes(n_envs, step.log_prob.shape[-1]) * n_steps,
            demonstrations=self._pair_bytes() * n_demonstrations,
            making=sum(4 * parameter.numel() for parameter in self.policy.parameters()),
        )

    @property
    def n_samples(self) -> int:
        """Samples of a minibatch, with the demonstrated ones."""
        return self.batch_size + self.bc_batch_size

    def estimate(self, micro_batch_size: int | None = None) -> MemoryEstimate:
        """
        :param micro_batch_size: Samples in a piece, ``None`` for a minibatch and its demonstrations together
        :return: What post-training takes
        """
        if micro_batch_size not in self._peaks:  # seconds, and asked again for each device
            self._peaks[micro_batch_size] = self._update_peak(micro_batch_size)
        beside = self._fixed.parameters + self._fixed.gradients + self._fixed.optimizer
        return replace(self._fixed, update=max(0, self._peaks[micro_batch_size] - beside))

    def largest_micro_batch(self, n_bytes: int) -> int:
        """
        :param n_bytes: Memory of the device
        :return: Samples of the largest piece that fits, with a tenth to spare; 0 if none does
        """
        room = plannable(n_bytes)
        if self.estimate().device <= room:  # as it mostly is, and each estimate takes seconds
            return self.n_samples
        return bisect.bisect_right(range(1, self.n_samples), room, key=lambda size: self.estimate(size).device)

    def _make_policy(
        self, observation_space: spaces.Dict, action_space: spaces.Box, policy_kwargs: Mapping[str, Any]
    ) -> VLAPolicy:
        lora = policy_kwargs.get("lora")
        if lora is not None:  # there are no weights to know again
            policy_kwargs = {**policy_kwargs, "lora": {**lora, "save_base": True}}
        with th.device("meta"), no_init_weights():
            policy = VLAPolicy(observation_space, action_space, lambda _: 0.0, **policy_kwargs)
        # From "meta" to a device whose operations, such as attention, are those that will run
        fakes: dict[int, th.Tensor] = {}
        for module in policy.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:  # parts may share one
                        tensors[name] = fakes.setdefault(id(tensor), self._like(tensor))  # type: ignore[assignment]
        return policy

    def _like(self, tensor: th.Tensor) -> th.Tensor:
        fake = self._zeros(tuple(tensor.shape), tensor.dtype)
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def _zeros(self, shape: tuple[int, ...], dtype: th.dtype = th.float32) -> th.Tensor:
        with self._fake:
            return th.zeros(shape, dtype=dtype)

    def _observations(self, space: spaces.Dict, n_samples: int) -> dict[str, th.Tensor]:
        shapes = {key: (n_samples, *(box.shape or ())) for key, box in space.items() if key != "instruction"}
        seen = {key: self._zeros(shape, th.from_numpy(np.zeros(0, space[key].dtype)).dtype) for key, shape in shapes.items()}
        # Its content decides how many tokens are read
        return {**seen, "instruction": self._instruction.expand(n_samples, -1)} if "instruction" in space.spaces else seen

    def _act(self, n_envs: int) -> tuple[RolloutStep, int]:
        """
        :param n_envs: Number of environments
        :return: A step of a rollout, and what it takes at most
        """
        observations = self._observations(self.adapter.read_space, n_envs)  # type: ignore[arg-type]
        with TensorMemory() as memory, th.no_grad():
            step = self.adapter.act(observations)
        return step, memory.peak

    def _samples(self, n_samples: int) -> ChunkRolloutBufferSamples:
        def rows(tensor: th.Tensor) -> th.Tensor:
            return self._zeros((n_samples, *tensor.shape[1:]), tensor.dtype)

        numbers = self._zeros((n_samples,))
        return ChunkRolloutBufferSamples(
            observations=self._observations(self.adapter.stored_space, n_samples),  # type: ignore[arg-type]
            actions=rows(self._step.actions),
            old_values=numbers,
            old_log_prob=rows(self._step.log_prob),
            advantages=numbers,
            returns=numbers,
            chunk_lengths=self._zeros((n_samples,), th.int64),
            encoded=EncodedObservations(**{name: rows(each) for name, each in self._step.encoded.tensors.items()}),
            extras={name: rows(each) for name, each in self._step.extras.items()},
        )

    def _make_optimizer(self) -> th.optim.Optimizer:
        """:return: The optimizer after its first step, with the state of what gets gradients"""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = self.policy.optimizer_class(trained, lr=0.0, **self.policy.optimizer_kwargs)  # type: ignore[call-arg]
        with TensorMemory():  # which knows how many a mask of a fake chooses
            add_gradient(self.adapter, self._samples(1), self.bc_batch_size > 0, self.ratio_per_step)
        optimizer.step()
        self._learning = [parameter for parameter in trained if parameter.grad is not None]
        return optimizer

    def _update_peak(self, size: int | None) -> int:
        """
        :param size: Samples in a piece
        :return: What an update takes in all at its peak
        """
        is_whole = size is None or size >= self.n_samples
        for parameter in self._learning:  # a piece's gradients are added to those of the piece before
            parameter.grad = None if is_whole else self._zeros(tuple(parameter.shape), parameter.dtype)
        before = 0 if is_whole else sum(parameter.nbytes for parameter in self._learning)
        with TensorMemory() as memory:
            if is_whole:
                self._add_whole_gradient()
            else:
                piece = next(split_batch(self._samples(self.n_samples), size))
                add_gradient(self.adapter, piece, self.bc_batch_size > 0, self.ratio_per_step)
            self._optimizer.step()
        return memory.peak + before + self._fixed.parameters + self._fixed.optimizer

    def _add_whole_gradient(self) -> None:
        if self.bc_batch_size:
            both = self._samples(self.batch_size), self._samples(self.bc_batch_size)
            add_joint_gradient(self.adapter, *both, self.ratio_per_step)
        else:
            add_gradient(self.adapter, self._samples(self.batch_size), False, self.ratio_per_step)

    def _rollout_bytes(self, n_envs: int, h: int) -> int:
        """
        :param n_envs: Number of environments
        :param h: Steps of a chunk
        :return: What the rollout buffer takes of a step of all environments
        """
        buffer = ChunkDictRolloutBuffer(1, self.adapter.stored_space, self.policy.action_space, "cpu", n_envs=n_envs)  # type: ignore[arg-type]
        arrays = [each for each in vars(buffer).values() if isinstance(each, np.ndarray)]
        steps_apart = 4 * n_envs * (h - 1)  # of log-probabilities
        return sum(array.nbytes for array in (*arrays, *buffer.observations.values())) + steps_apart

    def _pair_bytes(self) -> int:
        space = spaces.Dict({**self.adapter.read_space.spaces, "action": self.policy.action_space})  # type: ignore[attr-defined]
        return sum(math.prod(box.shape or ()) * np.dtype(box.dtype).itemsize for box in space.values())

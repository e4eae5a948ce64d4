"""What takes memory in an update: the gradients of a piece of its batch, and the optimizer's state."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from ..policies.adapter import PolicyAdapter
from .losses import ppo_loss
from .rollout_buffer import ChunkRolloutBufferSamples


def add_gradient(
    adapter: PolicyAdapter, piece: ChunkRolloutBufferSamples, imitates: bool = True, ratio_per_step: bool = True
) -> None:
    """
    Add to the gradients what a piece of an update takes most memory for: those of the PPO loss, then of the imitation loss.

    :param adapter: Of the policy
    :param piece: Samples; for the imitation loss they stand for as many demonstrated ones
    :param imitates: Whether there is an imitation loss
    :param ratio_per_step: See :func:`~sb3_vla.ppo_self_bc.losses.ppo_loss`
    """
    evaluation = adapter.evaluate(piece.policy_input, piece.actions, piece.extras)
    loss = ppo_loss(evaluation, piece, clip_range=0.2, ratio_per_step=ratio_per_step)
    (loss.policy + loss.value + loss.entropy).backward()
    del evaluation, loss
    if imitates:
        adapter.imitation_loss(piece.policy_input, _unflattened(adapter, piece.actions), piece.chunk_lengths).backward()


def add_joint_gradient(
    adapter: PolicyAdapter,
    rollouts: ChunkRolloutBufferSamples,
    demonstrated: ChunkRolloutBufferSamples,
    ratio_per_step: bool = True,
) -> None:
    """
    The same of a minibatch and demonstrations that are read together, with one graph.

    :param adapter: Of the policy
    :param rollouts: A minibatch
    :param demonstrated: Samples that stand for demonstrated ones
    :param ratio_per_step: See :func:`~sb3_vla.ppo_self_bc.losses.ppo_loss`
    """
    together = adapter.encode_together(rollouts.policy_input, demonstrated.policy_input)
    inputs = (rollouts.policy_input, demonstrated.policy_input) if together is None else together
    loss = ppo_loss(adapter.evaluate(inputs[0], rollouts.actions, rollouts.extras), rollouts, 0.2, None, ratio_per_step)
    imitation = adapter.imitation_loss(inputs[1], _unflattened(adapter, demonstrated.actions), demonstrated.chunk_lengths)
    (loss.policy + loss.value + loss.entropy + imitation).backward()


def missing_optimizer_state(policy: ActorCriticPolicy) -> int:
    """
    :param policy: A policy
    :return: Bytes that its optimizer's state will take beyond what it does, once each parameter was changed
    """
    probe = nn.Parameter(th.zeros(1024))
    probe.grad = th.zeros_like(probe)
    twin = policy.optimizer_class([probe], lr=0.0, **policy.optimizer_kwargs)  # type: ignore[call-arg]
    twin.step()
    parameters = [parameter for group in policy.optimizer.param_groups for parameter in group["params"]]
    whole = state_bytes(twin) / probe.nbytes * sum(parameter.nbytes for parameter in parameters)
    return max(0, int(whole) - state_bytes(policy.optimizer))


def state_bytes(optimizer: th.optim.Optimizer) -> int:
    """
    :param optimizer: An optimizer
    :return: Bytes of its state
    """
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, th.Tensor))
    return sum(tensor.nbytes for tensor in tensors)


def _unflattened(adapter: PolicyAdapter, actions: th.Tensor) -> th.Tensor:
    """:return: Actions as demonstrations have them; rollout buffers flatten them"""
    return actions.reshape(-1, *(adapter.policy.action_space.shape or ()))

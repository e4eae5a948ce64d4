"""Weights whose gradients and optimizer's state each rank has a part of."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch as th
from torch import distributed as dist
from torch import nn

from ..common.ranks import Ranks, noticing_losses


class Sharding:
    """Each rank has all of it."""

    def backward(self, loss: th.Tensor) -> None:
        """
        :param loss: Whose gradients are added to those of the policy's weights
        """
        loss.backward()

    def add_up_gradients(self, ranks: Ranks, policy: nn.Module, terms: Sequence[th.Tensor]) -> None:
        """
        :param ranks: The ranks
        :param policy: Whose gradients become their sums over the ranks
        :param terms: What else does
        """
        gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
        ranks.all_reduce_([*gradients, *terms])

    def clip_gradients(self, weights: Iterable[th.Tensor], max_norm: float) -> th.Tensor:
        """
        :param weights: A group of the optimizer, whose gradients are made smaller if their norm is greater than
        :param max_norm: this
        :return: The norm that it was
        """
        return th.nn.utils.clip_grad_norm_(weights, max_norm)

    def hand_out(self) -> None:
        """Give all ranks the weights that the optimizer has changed."""

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """
        :param state: ``state_dict()`` of policy and optimizer
        :return: The same, with all of what is sharded, on the first rank alone; all ranks have to ask for it
        """
        return state


class LayerSharding(Sharding):
    """
    Layers sharded by PyTorch's FSDP (``fully_shard``). To act, a rank needs all weights at each step, so they stay where they
    are also in the update; gradients are added up and parted as soon as a layer has them, the optimizer changes a rank's part
    of the weights, and these are handed out.

    :param policy: The policy; its layers, and its optimizer, are changed in place
    :param layers: Modules of it
    :param ranks: Who has the parts
    """

    def __init__(self, policy: Any, layers: Sequence[nn.Module], ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        self.ranks = ranks
        self._device = policy.device
        self._sharded_type: Any = DTensor
        before = dict(policy.named_parameters())
        mesh = init_device_mesh(policy.device.type, (ranks.size,))
        self._layers = [fully_shard(layer, mesh=mesh, reshard_after_forward=False) for layer in layers]
        for layer in self._layers:
            layer.set_reshard_after_backward(False)
            # Losses are shares of that of all ranks already; gloo knows sums alone
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)
        after = dict(policy.named_parameters())
        #: By name, the parts
        self._parts = {name: weight for name, weight in after.items() if isinstance(weight, DTensor)}
        self._hand_over(policy.optimizer, {id(before[name]): weight for name, weight in after.items()})
        self._gather()

    def backward(self, loss: th.Tensor) -> None:
        try:
            loss.backward()
        except RuntimeError as error:
            if "gloo" not in str(error) and not isinstance(error, dist.DistBackendError):
                raise
            with noticing_losses():
                raise

    def add_up_gradients(self, ranks: Ranks, policy: nn.Module, terms: Sequence[th.Tensor]) -> None:
        if self._device.type == "cuda":  # layers whose outputs alone are not what was used don't wait for it
            th.cuda.synchronize(self._device)
        gradients = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
        ranks.all_reduce_([*gradients.values(), *terms])
        # What came after a layer had added up its gradients, as of keys and values that were kept from another call of it
        late = {name: gradient for name, gradient in gradients.items() if name in self._parts}
        weights = dict(policy.named_parameters())
        for name, gradient in late.items():
            part: Any = self._parts[name]
            own = self._parted(part, gradient)
            part.grad = own if part.grad is None else part.grad + own
            weights[name].grad = None

    def clip_gradients(self, weights: Iterable[th.Tensor], max_norm: float) -> th.Tensor:
        gradients: list[Any] = [weight.grad for weight in weights if weight.grad is not None]
        parts = [gradient.to_local() for gradient in gradients if self._is_part(gradient)]
        others = [gradient for gradient in gradients if not self._is_part(gradient)]
        squares = self.ranks.all_reduce(_squares(parts, self._device)) + _squares(others, self._device)
        norm = squares.sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*parts, *others):
            gradient.mul_(factor)
        return norm

    def hand_out(self) -> None:
        if any(part.grad is not None for part in self._parts.values()):  # the critic may have learned alone
            for layer in self._layers:
                layer.reshard()
            self._gather()

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        with noticing_losses():
            gathered = self._whole(state)
        self._gather()  # as state_dict() has let go of it
        return gathered

    def _gather(self) -> None:
        with noticing_losses():
            for layer in self._layers:
                layer.unshard()

    def _hand_over(self, optimizer: th.optim.Optimizer, new: dict[int, nn.Parameter]) -> None:
        """
        :param optimizer: Of the weights that were
        :param new: Those that take their place, by the old ones' ids
        """
        for group in optimizer.param_groups:
            group["params"] = [new[id(weight)] for weight in group["params"]]
        for old, kept in list(optimizer.state.items()):
            weight = new[id(old)]
            del optimizer.state[old]
            optimizer.state[weight] = {name: self._parted(weight, value) for name, value in kept.items()}

    def _parted(self, weight: Any, value: Any) -> Any:
        """
        :param weight: A weight
        :param value: What belongs to it, whole
        :return: This rank's part of it, if it has the shape of a weight that is sharded
        """
        from torch.distributed.tensor import distribute_tensor

        if not self._is_part(weight) or not isinstance(value, th.Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)

    def _is_part(self, tensor: Any) -> bool:
        return isinstance(tensor, self._sharded_type)

    def _whole(self, state: Any) -> Any:
        if isinstance(state, dict):
            return type(state)((name, self._whole(value)) for name, value in state.items())
        if isinstance(state, list):
            return [self._whole(value) for value in state]
        if not self._is_part(state):
            return state
        full = state.full_tensor().detach()
        return full.cpu() if self.ranks.is_first else full.to("meta")


def _squares(tensors: Sequence[th.Tensor], device: th.device) -> th.Tensor:
    """:return: Sum of all squares, a scalar"""
    return sum((tensor.square().sum() for tensor in tensors), th.zeros((), device=device))

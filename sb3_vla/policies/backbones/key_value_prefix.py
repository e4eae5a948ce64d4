"""What an action expert that attends to a text model's layers reads of an observation, as one tensor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch.nn import functional as F


class KeyValuePrefix(NamedTuple):
    """
    Keys and values of a text model, and numbers that the expert reads by itself.

    :param layers: Keys and values of each layer of the text model, ``(batch, heads, tokens, head_dim)`` each
    :param mask: 0 on padding and 1 elsewhere, ``(batch, tokens)``
    :param numbers: ``(batch, n)``, such as the robot's state, normalised; n may be 0
    """

    layers: Sequence[tuple[th.Tensor, th.Tensor]]
    mask: th.Tensor
    numbers: th.Tensor

    def pack(self) -> th.Tensor:
        """:return: All of it as one tensor, ``(batch, tokens + 1, width)``, as backbones hand over a prefix"""
        # (batch, tokens, 2 * layers * heads * head_dim + 1)
        tensors = [tensor.transpose(1, 2).flatten(2) for layer in self.layers for tensor in layer]
        # In float32, as bfloat16 would round the numbers
        rows = th.cat([*tensors, self.mask.unsqueeze(2).to(tensors[0].dtype)], dim=2).float()
        numbers = F.pad(self.numbers.float(), (0, rows.shape[2] - self.numbers.shape[1]))
        return th.cat([rows, numbers.unsqueeze(1)], dim=1)

    @staticmethod
    def unpack(packed: th.Tensor, n_layers: int, n_heads: int, n_numbers: int) -> "KeyValuePrefix":
        """
        :param packed: What :meth:`pack` returned
        :param n_layers: Layers of the text model
        :param n_heads: Heads of its keys and values
        :param n_numbers: How many numbers there are beside
        :return: The parts
        """
        rows, numbers = packed[:, :-1], packed[:, -1, :n_numbers]
        tensors = rows[:, :, :-1].unflatten(2, (n_layers, 2, n_heads, -1)).permute(2, 3, 0, 4, 1, 5)
        return KeyValuePrefix([(layer[0], layer[1]) for layer in tensors], rows[:, :, -1].long(), numbers)

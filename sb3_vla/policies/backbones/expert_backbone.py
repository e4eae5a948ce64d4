"""What checkpoints that come with an action expert have in common."""

from collections.abc import Mapping
from typing import Any

import torch as th

from .base import ActionExpert, BackboneFeatures, Normalization
from .key_value_prefix import KeyValuePrefix
from .pretrained import PretrainedBackbone


class ExpertBackbone(PretrainedBackbone):
    """
    The vision-language half of a checkpoint whose other half is an action expert, which the flow head takes over. The expert
    reads keys and values of the text model; other heads, and the value function, see the mean of the last hidden states.

    A subclass implements :meth:`forward` and calls :meth:`_keep_expert` in its constructor.

    :param state_dim: Length of the state vector
    :param config: Of the vision-language model, as a plain dictionary
    :param normalization: Arguments of :class:`~sb3_vla.policies.backbones.base.Normalization`, by ``"state"`` and ``"action"``
    :param gradient_checkpointing: Not supported: layers that are computed again keep no keys and values
    :param kwargs: See :class:`~sb3_vla.PretrainedBackbone`
    :raises ValueError: If gradient checkpointing is asked for, or the state is not as long as its statistics
    """

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any],
        *,
        normalization: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        if gradient_checkpointing:
            raise ValueError(
                f"{type(self).__name__} has no gradient_checkpointing: its expert reads keys and values, which layers that "
                "are computed again don't keep; take a smaller micro_batch_size, or lora=dict(...)"
            )
        super().__init__(state_dim, config, **kwargs)
        self.normalization = {name: Normalization(**each) for name, each in (normalization or {}).items()}
        if "state" in self.normalization:
            self.normalization["state"].check_length("state", state_dim)

    def constructor_kwargs(self) -> dict[str, Any]:
        normalization = {name: each._asdict() for name, each in self.normalization.items()}
        return {**super().constructor_kwargs(), "normalization": normalization}

    def _make_new_tokens(self, state_dim: int) -> None:
        """There are none: the checkpoint has a place for the state."""

    def _keep_expert(self, expert: ActionExpert) -> None:
        # In a list, as it is not a part of this module
        self._experts = [expert]

    def take_action_expert(self) -> ActionExpert:
        return self._experts.pop()

    @staticmethod
    def _read_out(outputs: Any, mask: th.Tensor, numbers: th.Tensor) -> BackboneFeatures:
        """
        :param outputs: Of the text model, with its cache
        :param mask: 0 on padding and 1 elsewhere, ``(batch, tokens)``
        :param numbers: What the expert reads beside, ``(batch, n)``
        :return: The mean of the last hidden states, and keys and values as the prefix
        """
        layers = [(layer.keys, layer.values) for layer in outputs.cache.layers]
        weight = mask.unsqueeze(2).to(outputs.last_hidden_state.dtype)
        mean = (outputs.last_hidden_state * weight).sum(dim=1) / weight.sum(dim=1)
        return BackboneFeatures(action=mean, value=mean, prefix=KeyValuePrefix(layers, mask, numbers).pack())

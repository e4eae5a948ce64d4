"""pi0 (Black et al. 2024, arXiv 2410.24164), as ``transformers`` has it: a PaliGemma, and an expert that draws the actions."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.nn import functional as F
from transformers import DynamicCache, PI0ForConditionalGeneration

from .base import ActionExpert, BackboneFeatures
from .expert_backbone import ExpertBackbone
from .key_value_prefix import KeyValuePrefix
from .stored_config import restore_config

# Tokens of an instruction; shorter ones are padded, as pi0's are, so that all observations are of one size
_MAX_TEXT_TOKENS = 48


class PI0Expert(ActionExpert):
    """
    pi0's action expert: a small transformer beside the text model, which reads this one's keys and values.

    :param model: A pi0, of which it takes all but the vision-language model
    """

    reads_prefix = True

    def __init__(self, model: PI0ForConditionalGeneration) -> None:
        config: Any = model.config
        super().__init__((config.chunk_size, config.max_action_dim))
        text_config = config.vlm_config.text_config
        self._shape = (text_config.num_hidden_layers, text_config.num_key_value_heads, config.max_state_dim)
        model.model.vlm = None
        self.model = model

    def forward(self, features: BackboneFeatures, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        assert features.prefix is not None
        prefix = KeyValuePrefix.unpack(features.prefix, *self._shape)
        cache = DynamicCache([(keys, values) for keys, values in prefix.layers])  # which the expert makes longer
        return self.model(
            state=prefix.numbers, noise=x, timestep=t, attention_mask=prefix.mask, cache=cache, use_cache=True
        ).logits


class PI0Backbone(ExpertBackbone):
    """
    The vision-language half of a pi0 in the format of ``transformers`` (``model_type`` ``pi0``). Its other half is
    :class:`PI0Expert`, which the flow head takes over: ``policy_kwargs=dict(backbone="FOLDER", head="flow")``.

    :param state_dim: Length of the state vector, at most the model's
    :param config: pi0's configuration as a plain dictionary
    :param kwargs: See :class:`~sb3_vla.PretrainedBackbone`
    :raises ValueError: If the state is longer than pi0's
    """

    _auto_class = PI0ForConditionalGeneration

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any],
        *,
        model: PI0ForConditionalGeneration | None = None,
        **kwargs: Any,
    ) -> None:
        pi0_config = restore_config(config)
        if state_dim > pi0_config.max_state_dim:
            raise ValueError(f"pi0's state has at most {pi0_config.max_state_dim} numbers, the environment's has {state_dim}")
        whole = PI0ForConditionalGeneration(pi0_config) if model is None else model
        vlm = whole.model.vlm
        super().__init__(state_dim, vlm.config.to_dict(), model=vlm, **kwargs)
        self.pi0_config = pi0_config
        self._keep_expert(PI0Expert(whole))

    @classmethod
    def _check_model_type(cls, model_type: str, whose: str) -> None:
        if model_type != "pi0":
            raise ValueError(f"{whose} is of model_type {model_type!r}, PI0Backbone needs 'pi0'")

    def constructor_kwargs(self) -> dict[str, Any]:
        return {**super().constructor_kwargs(), "config": self.pi0_config.to_dict()}

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        """
        :raises ValueError: If an instruction is too long
        """
        n_text = image_tokens.shape[1] + _MAX_TEXT_TOKENS
        sequence = self._sequence(prompts, image_tokens.shape[1], 0, state.device, n_text)
        embeddings = self.model.get_input_embeddings()(sequence.ids)
        outputs = self.model(
            inputs_embeds=embeddings.masked_scatter(sequence.is_image.unsqueeze(-1), image_tokens.to(embeddings.dtype)),
            attention_mask=sequence.mask,
            position_ids=sequence.mask.cumsum(dim=-1) - 1,
            token_type_ids=th.zeros_like(sequence.ids),
            use_cache=True,
        )
        padded = F.pad(state, (0, self.pi0_config.max_state_dim - state.shape[1]))
        return self._read_out(outputs, sequence.mask, padded)

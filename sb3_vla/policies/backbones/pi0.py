"""pi0 (Black et al. 2024, arXiv 2410.24164), as ``transformers`` has it: a PaliGemma, and an expert that draws the actions."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.nn import functional as F
from transformers import DynamicCache, PI0ForConditionalGeneration

from .base import ActionExpert, BackboneFeatures, Normalization
from .expert_backbone import ExpertBackbone
from .key_value_prefix import KeyValuePrefix
from .pretrained import filter_of, read_image_processor, read_processor
from .stored_config import restore_config

# What PI0ImageProcessor does where its file says nothing else
_IMAGES = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 3, "do_pad": True}
# Tokens of an instruction; shorter ones are padded, as pi0's are, so that all observations are of one size
_MAX_TEXT_TOKENS = 48


class PI0Expert(ActionExpert):
    """
    pi0's action expert: a small transformer beside the text model, which reads this one's keys and values.

    :param model: A pi0, of which it takes all but the vision-language model
    :param normalization: Of its actions
    """

    reads_prefix = True

    def __init__(self, model: PI0ForConditionalGeneration, normalization: Normalization | None) -> None:
        config: Any = model.config
        super().__init__((config.chunk_size, config.max_action_dim), normalization)
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
    :param pads: Whether images keep their proportions, as ``PI0ImageProcessor`` has it: what is missing to a square, on the
        right or at the bottom, is the mean colour. Otherwise they are stretched
    :param kwargs: See :class:`ExpertBackbone`
    :raises ValueError: If the state is longer than pi0's, or not as long as its statistics
    """

    _auto_class = PI0ForConditionalGeneration

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any],
        *,
        pads: bool = False,
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
        self.pads = pads
        self._keep_expert(PI0Expert(whole, self.normalization.get("action")))

    @classmethod
    def describe(  # type: ignore[override]  # an image is normalised in one way only
        cls,
        name_or_path: str,
        use_statistics: bool = True,
        image_size: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> dict[str, Any]:
        """
        :param name_or_path: Name on the Hugging Face Hub or local folder of a checkpoint, whose weights need not be there
        :param use_statistics: Whether states and actions are normalised by the statistics of the checkpoint's processor, if it
            has some. Otherwise states are by those of the demonstrations, and actions by the bounds of the action space
        :param image_size: Height and width in pixels to which images are resized: the checkpoint's
        :param gradient_checkpointing: Not supported
        :return: Arguments of the constructor that make its architecture
        :raises ValueError: If there is no such checkpoint, or a file is missing or broken
        """
        normalization = _statistics(name_or_path) if use_statistics else {}
        given = {"image_size": image_size, "gradient_checkpointing": gradient_checkpointing}
        return super().describe(name_or_path, normalization=normalization, **given)

    @classmethod
    def _describe_images(cls, name_or_path: str) -> dict[str, Any]:
        says = {**_IMAGES, **read_image_processor(name_or_path)}  # whose own class would need torchvision
        return {
            "image_mean": says["image_mean"],
            "image_std": says["image_std"],
            "resample": filter_of(says["resample"], name_or_path),
            "pads": bool(says["do_pad"]),
        }

    @classmethod
    def _check_model_type(cls, model_type: str, whose: str) -> None:
        if model_type != "pi0":
            raise ValueError(f"{whose} is of model_type {model_type!r}, PI0Backbone needs 'pi0'")

    def constructor_kwargs(self) -> dict[str, Any]:
        return {**super().constructor_kwargs(), "config": self.pi0_config.to_dict(), "pads": self.pads}

    def _pixels(self, image: th.Tensor) -> th.Tensor:
        height, width = image.shape[-2:]
        if not self.pads or height == width:
            return super()._pixels(image)
        scale = min(self.image_size / height, self.image_size / width)
        height, width = int(height * scale), int(width * scale)
        pixels = self._normalize(self._stretch(image.to(self.pixel_mean.dtype), height, width))
        return F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height))

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


def _statistics(name_or_path: str) -> dict[str, dict[str, Any]]:
    """
    :param name_or_path: Name or folder of a checkpoint
    :return: Arguments of the normalisations of ``PI0Processor``, as far as it has statistics
    """
    says = read_processor(name_or_path)
    found = {}
    for name, theirs in (("state", "state"), ("action", "actions")):
        mean, std = says.get(f"{theirs}_mean"), says.get(f"{theirs}_std")
        if mean is not None and std is not None:
            scale = [each + 1e-8 for each in std]
            found[name] = Normalization(mean, scale, f"processor_config.json of {name_or_path!r}")._asdict()
    return found

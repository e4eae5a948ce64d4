"""What the families of vision-language models in ``transformers`` differ in: pictures, prompt, order of tokens, attention."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch as th


class TokenSequence(NamedTuple):
    """
    What a text model is about to read. Padding stands on the left; the last ``n_suffix`` tokens are no text.

    :param ids: Token ids, ``(batch, length)``, 0 where there is an image and in the suffix
    :param mask: 0 on padding and 1 elsewhere, ``(batch, length)``
    :param is_image: Which tokens stand for an image, ``(batch, length)`` bool
    :param tokens_per_image: Number of tokens of each image
    :param n_suffix: Number of tokens after the text
    """

    ids: th.Tensor
    mask: th.Tensor
    is_image: th.Tensor
    tokens_per_image: int
    n_suffix: int


class Family(ABC):
    """
    How a family of models takes pictures and text. This one stands a picture of fixed size, ``(batch, 3, size, size)``, in the
    place of its tokens, and attends to what stands before.
    """

    #: Paths of a model's parts that can be frozen
    parts: ClassVar[Mapping[str, str]] = {
        "vision": "vision_tower",
        "connector": "multi_modal_projector",
        "text": "language_model",
    }
    #: What stands around an image's tokens, in text
    image_start: ClassVar[str] = ""
    image_end: ClassVar[str] = ""
    #: What stands for an image in a prompt, by default the token of which it is made
    image_marker: ClassVar[str | None] = None

    def image_size(self, config: Any) -> int:
        """
        :param config: Of a model
        :return: Height and width in pixels that it learned from
        """
        size = config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    def image_multiple(self, config: Any) -> int | None:
        """
        :param config: Of a model
        :return: An image's size can be any multiple of this; ``None`` if it can't be changed
        """
        return None

    def encode(self, model: Any, pixels: th.Tensor) -> th.Tensor:
        """
        :param model: A model
        :param pixels: ``(batch, 3, size, size)``, normalised
        :return: An image's tokens, ``(batch, tokens, width)``
        """
        features = model.get_image_features(pixels, return_dict=True).pooler_output
        return th.stack(list(features))

    @abstractmethod
    def n_image_tokens(self, config: Any, image_size: int) -> int:
        """
        :param config: Of a model
        :param image_size: Height and width of an image in pixels
        :return: Tokens of an image
        """

    def text(self, tokenizer: Any, image_token: str, instruction: str, n_images: int, n_tokens: int) -> str:
        """
        :param tokenizer: Of the model
        :param image_token: The token that stands for a part of an image
        :param instruction: What the robot is told
        :param n_images: Number of images
        :param n_tokens: Tokens of an image
        :return: The prompt, in which each image has its tokens
        :raises ValueError: If the chat template has no place for images
        """
        marker = self.image_marker or image_token
        if tokenizer.chat_template is None:
            prompt = marker * n_images + instruction
        else:
            content = [{"type": "image"}] * n_images + [{"type": "text", "text": instruction}]
            messages = [{"role": "user", "content": content}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if prompt.count(marker) != n_images:
            raise ValueError(
                f"the checkpoint's chat template must mark {n_images} images by {marker!r}, it makes {prompt!r} of them"
            )
        return prompt.replace(marker, self.image_start + image_token * n_tokens + self.image_end)

    def token_ids(self, tokenizer: Any, text: str) -> list[int]:
        """
        :param tokenizer: Of the model
        :param text: A prompt
        :return: Its tokens, with one that says where the text begins, if that is the tokenizer's habit
        """
        has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return list(tokenizer(text, add_special_tokens=not has_start)["input_ids"])

    def read(self, model: Any, embeddings: th.Tensor, image_tokens: th.Tensor, sequence: TokenSequence) -> th.Tensor:
        """
        :param model: A model
        :param embeddings: Of a sequence, images left out, ``(batch, length, width)``
        :param image_tokens: What stands in their place, ``(batch, tokens of all images, width)``
        :param sequence: Which token is what
        :return: Last hidden states, ``(batch, length, width)``
        """
        embeddings = embeddings.masked_scatter(sequence.is_image.unsqueeze(-1), image_tokens.to(embeddings.dtype))
        return model(
            inputs_embeds=embeddings,
            attention_mask=sequence.mask,
            position_ids=self.positions(sequence),
            use_cache=False,
            **self.attention(sequence),
        ).last_hidden_state

    def positions(self, sequence: TokenSequence) -> th.Tensor:
        """
        :param sequence: What is read
        :return: Position of each token, ``(batch, length)``
        """
        return (sequence.mask.cumsum(dim=-1) - 1).clamp(min=0)

    def attention(self, sequence: TokenSequence) -> dict[str, th.Tensor]:
        """
        :param sequence: What is read
        :return: Arguments of the model that say who attends to whom, beside the order
        """
        return {}


class LlavaFamily(Family):
    """LLaVA (Liu et al. 2023, arXiv 2304.08485): CLIP's patches through a projector."""

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        has_class_token = config.vision_feature_select_strategy != "default"
        return (image_size // config.vision_config.patch_size) ** 2 + has_class_token


class Idefics3Family(Family):
    """
    Idefics3 (Laurençon et al. 2024, arXiv 2408.12637) and SmolVLM, which cut an image of any size into patches. An image is
    read as one, not in tiles and once more as a whole: ``do_image_splitting=False`` of its processor.
    """

    parts = {"vision": "vision_model", "connector": "connector", "text": "text_model"}  # noqa: RUF012
    image_start, image_end = "<fake_token_around_image><global-img>", "<fake_token_around_image>"

    def image_multiple(self, config: Any) -> int:
        return config.vision_config.patch_size * config.scale_factor

    def encode(self, model: Any, pixels: th.Tensor) -> th.Tensor:
        # get_image_features takes an image of one colour for padding
        return model.connector(model.vision_model(pixels).last_hidden_state)

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        return (image_size // self.image_multiple(config)) ** 2


class PaliGemmaFamily(Family):
    """PaliGemma 1 and 2 (Beyer et al. 2024, arXiv 2407.07726): images and prompt attend to each other, both ways."""

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        return (image_size // config.vision_config.patch_size) ** 2

    def text(self, tokenizer: Any, image_token: str, instruction: str, n_images: int, n_tokens: int) -> str:
        return f"{image_token * n_tokens * n_images}{tokenizer.bos_token}{instruction}\n"

    def token_ids(self, tokenizer: Any, text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def positions(self, sequence: TokenSequence) -> th.Tensor:
        return super().positions(sequence) + 1

    def attention(self, sequence: TokenSequence) -> dict[str, th.Tensor]:
        is_suffix = th.zeros_like(sequence.mask)
        is_suffix[:, -sequence.n_suffix :] = 1
        return {"token_type_ids": is_suffix}


class Gemma3Family(Family):
    """Gemma 3 (Gemma team 2025, arXiv 2503.19786): an image's tokens attend to each other, both ways."""

    image_start, image_end = "\n\n<start_of_image>", "<end_of_image>\n\n"
    image_marker = "<start_of_image>"

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        return config.mm_tokens_per_image

    def attention(self, sequence: TokenSequence) -> dict[str, th.Tensor]:
        return {"token_type_ids": sequence.is_image.long()}


class InternVLFamily(Family):
    """InternVL 3 (Zhu et al. 2025, arXiv 2504.10479). An image is one tile: ``crop_to_patches=False`` of its processor."""

    image_start, image_end = "<img>", "</img>"

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        patch_size = config.vision_config.patch_size
        side = image_size // (patch_size if isinstance(patch_size, int) else patch_size[0])
        return int(side * config.downsample_ratio) ** 2


class QwenVLFamily(Family):
    """
    Qwen2-VL and Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): patches of an image of any size, in the order of the squares
    that are merged, and positions in two dimensions.
    """

    parts = {"vision": "visual", "connector": "visual.merger", "text": "language_model"}  # noqa: RUF012

    def image_size(self, config: Any) -> int:
        # No size of its own: eight times eight tokens
        return 8 * self.image_multiple(config)

    def image_multiple(self, config: Any) -> int:
        return config.vision_config.patch_size * config.vision_config.spatial_merge_size

    def n_image_tokens(self, config: Any, image_size: int) -> int:
        return (image_size // self.image_multiple(config)) ** 2

    def encode(self, model: Any, pixels: th.Tensor) -> th.Tensor:
        outputs = model.get_image_features(*self._patches(model.config.vision_config, pixels), return_dict=True)
        return th.stack(list(outputs.pooler_output))

    def read(self, model: Any, embeddings: th.Tensor, image_tokens: th.Tensor, sequence: TokenSequence) -> th.Tensor:
        embeddings = embeddings.masked_scatter(sequence.is_image.unsqueeze(-1), image_tokens.to(embeddings.dtype))
        return self._read_text(model, embeddings, sequence)

    def _read_text(self, model: Any, embeddings: th.Tensor, sequence: TokenSequence, **kwargs: Any) -> th.Tensor:
        side = round(sequence.tokens_per_image**0.5) * model.config.vision_config.spatial_merge_size
        n_images = int(sequence.is_image.sum()) // sequence.tokens_per_image
        grid = th.tensor([[1, side, side]], device=embeddings.device).expand(n_images, -1)
        positions, _ = model.get_rope_index(
            sequence.ids, mm_token_type_ids=sequence.is_image.int(), image_grid_thw=grid, attention_mask=sequence.mask
        )
        return model.language_model(
            inputs_embeds=embeddings,
            attention_mask=sequence.mask,
            position_ids=positions,
            use_cache=False,
            **kwargs,
        ).last_hidden_state

    @staticmethod
    def _patches(config: Any, pixels: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param config: Of the vision encoder
        :param pixels: ``(batch, 3, size, size)``
        :return: ``(batch * patches, 3 * frames * height * width)`` and the grid of each image in patches, ``(batch, 3)``
        """
        batch, channels, size, _ = pixels.shape
        patch, merge = config.patch_size, config.spatial_merge_size
        side = size // patch
        patches = pixels.view(batch, channels, side // merge, merge, patch, side // merge, merge, patch)
        # (batch, row of squares, column of squares, row, column, channels, height, width)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)
        # A picture is a film of two equal frames
        patches = patches.unsqueeze(6).expand(*[-1] * 6, config.temporal_patch_size, -1, -1)
        grid = th.tensor([[1, side, side]], device=pixels.device).expand(batch, -1)
        return patches.reshape(batch * side * side, -1), grid


class Qwen3VLFamily(QwenVLFamily):
    """Qwen3-VL (arXiv 2511.21631): what the vision encoder's middle layers see enters the text model's first layers."""

    def encode(self, model: Any, pixels: th.Tensor) -> th.Tensor:
        outputs = model.get_image_features(*self._patches(model.config.vision_config, pixels), return_dict=True)
        levels = [outputs.pooler_output, *outputs.deepstack_features]
        # One after the other along the last dimension, so that an image's tokens are one tensor
        return th.cat([th.stack(list(level)) for level in levels], dim=-1)

    def read(self, model: Any, embeddings: th.Tensor, image_tokens: th.Tensor, sequence: TokenSequence) -> th.Tensor:
        tokens, *deep = image_tokens.to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)
        embeddings = embeddings.masked_scatter(sequence.is_image.unsqueeze(-1), tokens)
        return self._read_text(
            model,
            embeddings,
            sequence,
            visual_pos_masks=sequence.is_image,
            deepstack_visual_embeds=[level.flatten(0, 1) for level in deep],
        )


#: By ``model_type`` of a checkpoint's configuration
FAMILIES: dict[str, Family] = {
    "gemma3": Gemma3Family(),
    "idefics3": Idefics3Family(),
    "internvl": InternVLFamily(),
    "llava": LlavaFamily(),
    "paligemma": PaliGemmaFamily(),
    "qwen2_5_vl": QwenVLFamily(),
    "qwen2_vl": QwenVLFamily(),
    "qwen3_vl": Qwen3VLFamily(),
    "smolvlm": Idefics3Family(),
}

"""A small SmolVLM (Marafioti et al. 2025, arXiv 2504.05299), trained from scratch, out of ``transformers``' own classes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, PreTrainedModel

from .base import BackboneFeatures
from .stored_config import restore_config
from .transformers_backbone import TransformersBackbone, rows_of_distinct

# Small enough to be trained from scratch on two CPU cores. 384 tokens are the bytes and the special tokens of ByT5.
TINY_CONFIG: dict[str, Any] = {
    "model_type": "smolvlm",
    "scale_factor": 2,
    "image_token_id": 383,
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 384,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    },
}


# Beyond, the memory of the attention weights counts
_MAX_EAGER_TOKENS = 256


class SmolVLMBackbone(TransformersBackbone):
    """
    SmolVLM's vision encoder and connector feed its text model, together with the tokenised prompt and the robot's state.

    The text model reads the prompt, the images, the state (one token), then two learned readout tokens; its last hidden
    states at these two are the features for the action and for the value. Its attention is causal, so the readouts see
    everything, and the action readout, which stands first, does not depend on the value's. The prompt stands before the
    images, so that the images are read in its light and it is read once for a whole batch. A checkpoint learned another order:
    see :class:`~sb3_vla.policies.backbones.pretrained.PretrainedBackbone`.

    :param state_dim: Length of the state vector
    :param config: SmolVLM's configuration as a plain dictionary, by default that of a model with about 1 million
        parameters
    :param tokenizer_files: Content of a tokenizer's files by name, as ``save_pretrained`` writes them; by default bytes
        are tokens (ByT5's tokenizer, which needs no files)
    :param image_mean: Mean of each colour channel, of values in [0, 1]
    :param image_std: Standard deviation of each colour channel
    :param image_size: Images are resized to this height and width in pixels; ``None`` leaves them as they are
    :param conv_stem: Whether convolutions take the place of the vision encoder's patch embedding, see :class:`ConvStem`
    :raises ValueError: If the patch size is no power of two and there is to be a convolutional stem, or an image can't be cut
        into whole patches (in :meth:`forward`)
    """

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any] | None = None,
        tokenizer_files: dict[str, str] | None = None,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        image_size: int | None = None,
        conv_stem: bool = False,
    ) -> None:
        model_config = restore_config(copy.deepcopy(TINY_CONFIG if config is None else config))
        model = AutoModel.from_config(model_config, trust_remote_code=False)
        vision = model_config.vision_config
        if conv_stem:
            stem = ConvStem(vision.num_channels, vision.hidden_size, vision.patch_size)
            model.vision_model.embeddings.patch_embedding = stem
        super().__init__(state_dim, model, tokenizer_files, image_mean, image_std, image_size)
        self.conv_stem = conv_stem
        self.patch_size = vision.patch_size * model_config.scale_factor

    def constructor_kwargs(self) -> dict[str, Any]:
        return {**super().constructor_kwargs(), "conv_stem": self.conv_stem}

    @property
    def part_paths(self) -> Mapping[str, str]:
        return {"vision": "vision_model", "connector": "connector", "text": "text_model"}

    def encode_images(self, images: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param images: One entry a camera: ``(batch, 3, height, width)``, uint8
        :return: ``(batch, tokens of all cameras, features_dim)``
        :raises ValueError: If an image can't be cut into whole patches
        """
        return th.cat([self._encode_image(name, image) for name, image in images.items()], dim=1)

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        distinct, row = rows_of_distinct(prompts, state.device)
        # Attention is causal: what the text model makes of a prompt depends on nothing that follows, and is computed once
        # for all samples that share it
        token_ids, mask = self._pad_prompts(distinct, state.device)
        _use_fast_attention(self.model.text_model, token_ids.shape[1] + image_tokens.shape[1] + 3)
        read = DynamicCache()
        self.model.text_model(input_ids=token_ids, attention_mask=mask, cache=read, use_cache=True)
        cached = DynamicCache([(layer.keys[row], layer.values[row]) for layer in read.layers])  # type: ignore[index, union-attr]
        lengths = th.tensor([len(self._tokenize(prompt)) for prompt in distinct], device=state.device)

        # (batch, image tokens + 1 + 2, features_dim)
        tokens = th.cat([image_tokens, self._suffix(state)], dim=1)
        n_tokens = tokens.shape[1]
        positions = lengths[row].unsqueeze(1) + th.arange(n_tokens, device=state.device)
        mask = None if mask is None else F.pad(mask[row], (0, n_tokens), value=1)
        outputs = self.model.text_model(
            inputs_embeds=tokens, attention_mask=mask, position_ids=positions, cache=cached, use_cache=False
        )
        hidden = outputs.last_hidden_state
        # The prefix has read the prompt
        return BackboneFeatures(action=hidden[:, -2], value=hidden[:, -1], prefix=hidden[:, :-2])

    def _encode_image(self, name: str, image: th.Tensor) -> th.Tensor:
        """
        :param name: Key of the observation, for the error message
        :param image: ``(batch, 3, height, width)`` uint8
        :return: ``(batch, tokens, features_dim)``
        """
        pixels = image.to(self.readout_tokens.dtype, copy=True)  # normalised in place
        if self.image_size is not None and image.shape[-2:] != (self.image_size, self.image_size):
            pixels = F.interpolate(pixels, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        height, width = pixels.shape[-2:]
        # The connector's pixel shuffle folds a square grid of patches
        if height != width or height % self.patch_size:
            raise ValueError(
                f"observation {name!r} has {height} x {width} pixels; SmolVLM needs square images whose size is a multiple "
                f"of {self.patch_size}: change the camera's size, or pass backbone_kwargs=dict(image_size=...) to resize"
            )
        pixels = self._normalize(pixels)
        _use_fast_attention(self.model.vision_model, (height // self.model.config.vision_config.patch_size) ** 2)
        return self.model.connector(self.model.vision_model(pixels).last_hidden_state)

    def _pad_prompts(self, prompts: Sequence[str], device: th.device) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param prompts: ``batch`` instructions
        :param device: Where the tensors go
        :return: Token ids ``(batch, longest prompt)`` and a mask of the same shape that is 0 on padding, or ``None`` where
            all prompts are equally long (attention without a mask is faster)
        """
        tokens = [self._tokenize(prompt) for prompt in prompts]
        lengths = {len(ids) for ids in tokens}
        longest = max(lengths)
        token_ids = th.tensor([ids + (0,) * (longest - len(ids)) for ids in tokens], device=device)
        if len(lengths) == 1:
            return token_ids, None
        mask = th.tensor([(1,) * len(ids) + (0,) * (longest - len(ids)) for ids in tokens], device=device)
        return token_ids, mask

    def _tokenize_uncached(self, prompt: str, *layout: int) -> tuple[int, ...]:
        # Of some tokenizers an empty prompt has no token, and there must be one to attend to
        return tuple(self.tokenizer(prompt)["input_ids"]) or (self.model.config.get_text_config().pad_token_id or 0,)


class ConvStem(nn.Sequential):
    """
    Convolutions of stride two down to one vector a patch, in place of the one large convolution that cuts an image into
    patches (Xiao et al. 2021, "Early convolutions help transformers see better", arXiv 2106.14881).

    :param channels: Of the image
    :param hidden_size: Length of a patch's vector
    :param patch_size: Height and width of a patch, a power of two
    :raises ValueError: If the patch size is none
    """

    def __init__(self, channels: int, hidden_size: int, patch_size: int) -> None:
        n_layers = patch_size.bit_length() - 1
        if n_layers < 1 or patch_size != 2**n_layers:
            raise ValueError(f"conv_stem needs a patch_size that is a power of two, got {patch_size}")
        layers: list[nn.Module] = []
        for number in range(n_layers):
            width = max(hidden_size >> (n_layers - 1 - number), 8)
            layers += [nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1), nn.GroupNorm(1, width), nn.GELU()]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, hidden_size, kernel_size=1))


def _use_fast_attention(model: PreTrainedModel, n_tokens: int) -> None:
    """
    On a CPU the gradient of torch's fused attention is slow in bfloat16: over few tokens the plain products are faster.

    :param model: Part of a model
    :param n_tokens: Length of the sequence that it is about to read
    """
    in_bfloat16 = model.device.type == "cpu" and th.is_autocast_enabled("cpu")
    wanted = "eager" if in_bfloat16 and n_tokens <= _MAX_EAGER_TOKENS else "sdpa"
    if model.config._attn_implementation in ({"eager", "sdpa"} - {wanted}):  # others are the user's own choice
        model.set_attn_implementation(wanted)

"""SmolVLM (Marafioti et al. 2025, arXiv 2504.05299) as a backbone, out of ``transformers``' own classes."""

import copy
import functools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, ByT5Tokenizer, DynamicCache, PreTrainedModel

from .base import BackboneFeatures, VLABackbone

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


_ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Beyond, the memory of the attention weights counts
_MAX_EAGER_TOKENS = 256


class SmolVLMBackbone(VLABackbone):
    """
    SmolVLM's vision encoder and connector feed its text model, together with the tokenised prompt and the robot's state.

    The text model reads the prompt, the images, the state (one token), then two learned readout tokens; its last hidden
    states at these two are the features for the action and for the value. Its attention is causal, so the readouts see
    everything, and the action readout, which stands first, does not depend on the value's. The prompt stands before the
    images, so that the images are read in its light and it is read once for a whole batch.

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

    pixel_mean: th.Tensor
    pixel_std: th.Tensor

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
        config = copy.deepcopy(TINY_CONFIG if config is None else config)
        model_type = config.pop("model_type")
        # float32 as the master copy whatever the checkpoint says: bfloat16 weights would swallow PPO's small steps
        config.pop("dtype", None)
        _check_attention(config)
        model_config = AutoConfig.for_model(model_type, **config)
        text_config = model_config.get_text_config()
        super().__init__(features_dim=text_config.hidden_size)
        self.model = AutoModel.from_config(model_config, trust_remote_code=False)
        self.tokenizer_files = tokenizer_files
        self.tokenizer = _load_tokenizer(tokenizer_files)
        self.image_size = image_size
        self.conv_stem = conv_stem
        if conv_stem:
            vision = model_config.vision_config
            self.model.vision_model.embeddings.patch_embedding = ConvStem(
                vision.num_channels, vision.hidden_size, vision.patch_size
            )
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        # Not part of the weights, as constructor_kwargs has them
        self.register_buffer("pixel_mean", 255 * th.tensor(self.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * th.tensor(self.image_std).view(3, 1, 1), persistent=False)
        scale = text_config.initializer_range
        self.state_token = nn.Linear(state_dim, self.features_dim)
        self.readout_tokens = nn.Parameter(scale * th.randn(2, self.features_dim))
        self.patch_size = model_config.vision_config.patch_size * model_config.scale_factor
        self._tokenize = functools.lru_cache(maxsize=4096)(self._tokenize_uncached)

    @classmethod
    def from_pretrained(cls, name_or_path: str, state_dim: int, **kwargs: Any) -> "SmolVLMBackbone":
        """
        Load a checkpoint with its tokenizer and image normalisation.

        :param name_or_path: Name on the Hugging Face Hub or local folder
        :param state_dim: Length of the state vector
        :param kwargs: Replace what the checkpoint says, e.g. ``image_size``
        :return: The backbone with the checkpoint's weights, in float32
        :raises ValueError: If there is no such checkpoint, if it is not a SmolVLM, or if it is to have a convolutional stem
        """
        if kwargs.get("conv_stem"):
            raise ValueError(
                f"conv_stem=True takes the place of the patch embedding, which checkpoint {name_or_path!r} has learned: leave "
                "it out, or train a new backbone ('tiny')"
            )
        config = _load_pretrained(AutoConfig, name_or_path)
        if config.model_type != "smolvlm":
            raise ValueError(
                f"checkpoint {name_or_path!r} is a {config.model_type!r} model, SmolVLMBackbone needs 'smolvlm'; "
                "write a subclass of VLABackbone for it"
            )
        model = _load_pretrained(AutoModel, name_or_path, dtype=th.float32)
        tokenizer = _load_pretrained(AutoTokenizer, name_or_path)
        processor = _load_pretrained(AutoImageProcessor, name_or_path)
        settings: dict[str, Any] = {
            "config": config.to_dict(),
            "tokenizer_files": _save_tokenizer(tokenizer),
            "image_mean": processor.image_mean,
            "image_std": processor.image_std,
            "image_size": config.vision_config.image_size,
        }
        backbone = cls(state_dim, **{**settings, **kwargs})
        backbone.model.load_state_dict(model.state_dict())
        return backbone

    def constructor_kwargs(self) -> dict[str, Any]:
        return {
            "config": self.model.config.to_dict(),
            "tokenizer_files": self.tokenizer_files,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "image_size": self.image_size,
            "conv_stem": self.conv_stem,
        }

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {
            "all": self,
            "vision": self.model.vision_model,
            "connector": self.model.connector,
            "text": self.model.text_model,
        }

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        return (self.model.vision_model, self.model.connector)

    def encode_images(self, images: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param images: One entry a camera: ``(batch, 3, height, width)``, uint8
        :return: ``(batch, tokens of all cameras, features_dim)``
        :raises ValueError: If an image can't be cut into whole patches
        """
        return th.cat([self._encode_image(name, image) for name, image in images.items()], dim=1)

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        distinct = list(dict.fromkeys(prompts))
        row = th.tensor([distinct.index(prompt) for prompt in prompts], device=state.device)
        # Attention is causal: what the text model makes of a prompt depends on nothing that follows, and is computed once
        # for all samples that share it
        token_ids, mask = self._pad_prompts(distinct, state.device)
        _use_fast_attention(self.model.text_model, token_ids.shape[1] + image_tokens.shape[1] + 3)
        read = DynamicCache()
        self.model.text_model(input_ids=token_ids, attention_mask=mask, cache=read, use_cache=True)
        cached = DynamicCache([(layer.keys[row], layer.values[row]) for layer in read.layers])  # type: ignore[index, union-attr]
        lengths = th.tensor([len(self._tokenize(prompt)) for prompt in distinct], device=state.device)

        state_token = self.state_token(state).unsqueeze(1)
        readouts = self.readout_tokens.expand(len(state), -1, -1)
        # (batch, image tokens + 1 + 2, features_dim)
        tokens = th.cat([image_tokens, state_token, readouts], dim=1)
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
        pixels = pixels.sub_(self.pixel_mean).div_(self.pixel_std)
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

    def _tokenize_uncached(self, prompt: str) -> tuple[int, ...]:
        # Of some tokenizers an empty prompt has no token, and there must be one to attend to
        return tuple(self.tokenizer(prompt)["input_ids"]) or (self.model.config.get_text_config().pad_token_id or 0,)

    def __getstate__(self) -> dict[str, Any]:
        # The cache is a C object that neither pickles nor copies (copy.deepcopy of a policy)
        return {name: value for name, value in self.__dict__.items() if name != "_tokenize"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tokenize = functools.lru_cache(maxsize=4096)(self._tokenize_uncached)


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


def _load_pretrained(auto_class: Any, name_or_path: str, **kwargs: Any) -> Any:
    """
    :param auto_class: One of ``transformers``' auto classes
    :param name_or_path: Name or folder of a checkpoint
    :param kwargs: Arguments of its ``from_pretrained``
    :return: What it loads
    :raises ValueError: If there is no such checkpoint, or this part of it is missing
    """
    try:
        return auto_class.from_pretrained(name_or_path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"there is no backbone {name_or_path!r}: give 'tiny', the name of a SmolVLM checkpoint on the Hugging Face Hub "
            f"(needs the network, or the checkpoint in the local cache), or the folder of one, complete with weights, "
            f"tokenizer and image processor ({auto_class.__name__}: {error})"
        ) from error


def _check_attention(config: dict[str, Any]) -> None:
    """
    :param config: A model's configuration, which may come from a stranger's file
    :raises ValueError: If it names an attention that transformers would download and run
    """
    for name, value in config.items():
        if isinstance(value, dict):
            _check_attention(value)
        elif "attn_implementation" in str(name) and value not in _ATTENTIONS:
            raise ValueError(f"{name} must be one of {_ATTENTIONS}, got {value!r:.200}")


def _save_tokenizer(tokenizer: Any) -> dict[str, str]:
    """
    :param tokenizer: A tokenizer of ``transformers``
    :return: The text of each of its files, by name
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}


def _load_tokenizer(files: dict[str, str] | None) -> Any:
    """
    :param files: What :func:`_save_tokenizer` returned, or ``None`` for bytes as tokens
    :return: The tokenizer
    :raises ValueError: If the name of a file is a path: it may come from a stranger's model
    """
    if files is None:
        return ByT5Tokenizer()
    if wrong := [name for name in files if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise ValueError(f"the files of a tokenizer have bare names, got {wrong}")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

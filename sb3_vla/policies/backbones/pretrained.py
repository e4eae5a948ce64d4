"""Vision-language models of ``transformers`` as backbones: a checkpoint by name or path."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from sb3_vla_envs.argument_checks import FLAG, Limits, check_choice, check_count

from .base import BackboneFeatures
from .families import FAMILIES, Family, TokenSequence
from .stored_config import restore_config
from .tokenizer_files import save_tokenizer
from .transformers_backbone import TransformersBackbone, rows_of_distinct

# The robot's state, and where the action and the value are read out
_N_SUFFIX = 3
# What all families' text models call their linear layers
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Numbers of PIL's filters, which image processors have; bicubic is the nearest that torch has to Lanczos (1)
_FILTERS = {1: "bicubic", 2: "bilinear", 3: "bicubic"}


class PretrainedBackbone(TransformersBackbone):
    """
    A vision-language model of one of :data:`~sb3_vla.policies.backbones.families.FAMILIES`. It reads images and instruction as
    its checkpoint did when it learned: in its own order, in its chat template if it has one, normalised as its image
    processor does. After them it reads the robot's state (one token), then two learned readout tokens; its last hidden states
    at these two are the features for the action and for the value.

    Images are stretched to squares of ``image_size`` by torch's filters, which differ from PIL's by 1/255 at most; Idefics3's
    and SmolVLM's is Lanczos', which torch does not have: up to 5/255.

    :param state_dim: Length of the state vector
    :param config: The model's configuration as a plain dictionary
    :param tokenizer_files: Content of its tokenizer's files by name, as ``save_pretrained`` writes them
    :param image_mean: Mean of each colour channel, of values in [0, 1]
    :param image_std: Standard deviation of each colour channel
    :param image_size: Height and width in pixels to which images are resized, by default that which the model learned from
    :param resample: By what filter: ``"bilinear"`` or ``"bicubic"``
    :param gradient_checkpointing: Whether what is inside a layer is computed again for its gradient instead of being kept:
        less memory, a third more time
    :param model: The model of this configuration, by default one with random weights
    :raises ValueError: If the configuration is of no known family, or the model can't read images of this size
    """

    image_size: int
    adjustable: ClassVar[tuple[str, ...]] = ("gradient_checkpointing",)
    _auto_class: ClassVar[Any] = AutoModel

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any],
        tokenizer_files: dict[str, str],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        image_size: int | None = None,
        resample: str = "bilinear",
        gradient_checkpointing: bool = False,
        model: PreTrainedModel | None = None,
    ) -> None:
        check_choice("resample", resample, tuple(sorted(set(_FILTERS.values()))))
        FLAG.check("gradient_checkpointing", gradient_checkpointing)
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            _check_channels(name, values)
        family = family_of(config["model_type"], "the configuration")
        model_config = restore_config(config)
        image_size = _check_image_size(family, model_config, image_size)
        if model is None:
            model = AutoModel.from_config(model_config, trust_remote_code=False)
        super().__init__(state_dim, model, tokenizer_files, image_mean, image_std, image_size)
        self.family = family
        self.resample = resample
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable()

    @classmethod
    def from_pretrained(cls, name_or_path: str, state_dim: int, **kwargs: Any) -> "PretrainedBackbone":
        """
        Load a checkpoint with its tokenizer and image normalisation.

        :param name_or_path: Name on the Hugging Face Hub or local folder
        :param state_dim: Length of the state vector
        :param kwargs: Replace what the checkpoint says, e.g. ``image_size``
        :return: The backbone with the checkpoint's weights, in float32
        :raises ValueError: If there is no such checkpoint, or it is of no known family
        """
        settings = cls.describe(name_or_path, **kwargs)
        model, report = load_pretrained(
            cls._auto_class, name_or_path, dtype=th.float32, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):  # transformers would leave them random
            raise ValueError(
                f"the weights of {name_or_path!r} lack {len(missing)} tensors that its config.json describes, such as "
                f"{missing[0]}: fetch the checkpoint again, or save all of it"
            )
        return cls(state_dim, **settings, model=model)

    @classmethod
    def describe(cls, name_or_path: str, **kwargs: Any) -> dict[str, Any]:
        """
        :param name_or_path: Name on the Hugging Face Hub or local folder of a checkpoint, whose weights need not be there
        :param kwargs: Replace what the checkpoint says
        :return: Arguments of the constructor that make its architecture
        :raises ValueError: If there is no such checkpoint, or it is of no known family
        """
        config = load_pretrained(AutoConfig, name_or_path)
        cls._check_model_type(config.model_type, f"checkpoint {name_or_path!r}")
        tokenizer = load_pretrained(AutoTokenizer, name_or_path)
        images = cls._describe_images(name_or_path)
        return {"config": config.to_dict(), "tokenizer_files": save_tokenizer(tokenizer), **images, **kwargs}

    @classmethod
    def _describe_images(cls, name_or_path: str) -> dict[str, Any]:
        """
        :param name_or_path: See :meth:`describe`
        :return: Those arguments of the constructor that the image processor tells
        """
        processor = load_pretrained(AutoImageProcessor, name_or_path)
        resample = filter_of(processor.resample, name_or_path)
        return {"image_mean": processor.image_mean, "image_std": processor.image_std, "resample": resample}

    @classmethod
    def _check_model_type(cls, model_type: str, whose: str) -> None:
        family_of(model_type, whose)

    def constructor_kwargs(self) -> dict[str, Any]:
        own = {"resample": self.resample, "gradient_checkpointing": self.gradient_checkpointing}
        return {**super().constructor_kwargs(), **own}

    def train(self, mode: bool = True) -> "PretrainedBackbone":
        super().train(mode)
        if self.gradient_checkpointing:
            # transformers checkpoints layers that are in training mode; those inside, with their dropout, are as told
            for module in self.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True
        return self

    @property
    def pretrained(self) -> nn.Module:
        return self.model

    @property
    def lora_targets(self) -> str:  # type: ignore[override]
        """The linear layers of the text model."""
        return rf"{self.family.parts['text']}\..*\.({'|'.join(_TEXT_LAYERS)})"

    @property
    def part_paths(self) -> Mapping[str, str]:
        return self.family.parts

    def encode_images(self, images: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param images: One entry a camera: ``(batch, 3, height, width)``, uint8
        :return: ``(batch, tokens of all cameras, width)``
        """
        pixels = [self._pixels(image).to(self.model.dtype) for image in images.values()]
        return th.cat([self.family.encode(self.model, each) for each in pixels], dim=1)

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        hidden = self.hidden_states(image_tokens, prompts, state)
        # No prefix: it would be as long as the longest prompt of the batch, and in part padding
        return BackboneFeatures(action=hidden[:, -2], value=hidden[:, -1])

    def hidden_states(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> th.Tensor:
        """
        :param image_tokens: See :meth:`forward`
        :param prompts: See :meth:`forward`
        :param state: See :meth:`forward`
        :return: The last hidden states of padding (on the left, up to the longest prompt), images and prompt, the state's
            token and the two that are read out, ``(batch, tokens, features_dim)``
        """
        sequence = self._sequence(prompts, image_tokens.shape[1], _N_SUFFIX, state.device)
        embeddings = self.model.get_input_embeddings()(sequence.ids)
        embeddings = th.cat([embeddings[:, :-_N_SUFFIX], self._suffix(state).to(embeddings.dtype)], dim=1)
        return self.family.read(self.model, embeddings, image_tokens, sequence)

    def _pixels(self, image: th.Tensor) -> th.Tensor:
        """
        :param image: ``(batch, 3, height, width)`` uint8
        :return: ``(batch, 3, image_size, image_size)``, normalised
        """
        pixels = image.to(self.pixel_mean.dtype, copy=True)  # normalised in place
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = self._resize(pixels)
        return self._normalize(pixels)

    def _resize(self, pixels: th.Tensor) -> th.Tensor:
        """
        :param pixels: ``(batch, 3, height, width)`` in [0, 255]
        :return: ``(batch, 3, image_size, image_size)``
        """
        return self._stretch(pixels, self.image_size, self.image_size)

    def _stretch(self, pixels: th.Tensor, height: int, width: int) -> th.Tensor:
        return F.interpolate(pixels, size=(height, width), mode=self.resample, antialias=True).clamp_(0, 255)

    def _sequence(
        self, prompts: Sequence[str], n_image_tokens: int, n_suffix: int, device: th.device, n_text: int | None = None
    ) -> TokenSequence:
        """
        :param prompts: ``batch`` instructions
        :param n_image_tokens: Tokens of all images that belong to each
        :param n_suffix: Tokens that follow, which are no text
        :param device: Where the tensors go
        :param n_text: Tokens of images and text together, by default as many as the longest has
        :return: What is read, padded on the left
        :raises ValueError: If there are more than ``n_text``
        """
        per_image = self.family.n_image_tokens(self.model.config, self.image_size)
        distinct, row = rows_of_distinct(prompts, device)
        tokens = [self._tokenize(prompt, n_image_tokens // per_image, per_image) for prompt in distinct]
        longest = max(tokens, key=len)
        if n_text is not None and len(longest) > n_text:
            raise ValueError(
                f"the instruction {distinct[tokens.index(longest)]!r} has {len(longest) - n_image_tokens} tokens, this model "
                f"reads at most {n_text - n_image_tokens}: make it shorter"
            )
        length = len(longest) if n_text is None else n_text
        padded = [(0,) * (length - len(text)) + text + (0,) * n_suffix for text in tokens]
        known = [(0,) * (length - len(text)) + (1,) * (len(text) + n_suffix) for text in tokens]
        ids, mask = th.tensor(padded, device=device)[row], th.tensor(known, device=device)[row]
        is_image = (ids == self.model.config.image_token_id) & (mask == 1)
        # Some models have no embedding of that token
        return TokenSequence(ids.masked_fill(is_image, 0), mask, is_image, per_image, n_suffix)

    def _tokenize_uncached(self, prompt: str, *layout: int) -> tuple[int, ...]:
        n_images, tokens_per_image = layout
        image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        text = self.family.text(self.tokenizer, image_token, prompt, n_images, tokens_per_image)
        return tuple(self.family.token_ids(self.tokenizer, text))


def family_of(model_type: str, whose: str) -> Family:
    """
    :param model_type: Of a configuration of ``transformers``
    :param whose: Whose it is, for the error message
    :return: The family
    :raises ValueError: If it is none of those known
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"{whose} is of model_type {model_type!r}; known are {', '.join(sorted(FAMILIES))}. For another, write a subclass "
            "of VLABackbone (examples/own_backbone.py) and pass it as policy_kwargs=dict(backbone=...)"
        )
    return FAMILIES[model_type]


def _check_channels(name: str, values: Any) -> None:
    if np.shape(values) != (3,):
        raise ValueError(f"{name} must be three numbers, one for each colour, got {values!r}")
    for value in values:
        Limits().check(name, value)


def _check_image_size(family: Family, config: Any, image_size: int | None) -> int:
    own, multiple = family.image_size(config), family.image_multiple(config)
    if image_size is None:
        return own
    check_count("image_size", image_size)
    if image_size == own:
        return own
    whose = f"image_size of this {config.model_type!r} model"
    if multiple is None:
        raise ValueError(f"{whose} must be {own}, what it learned from, got {image_size}")
    if image_size % multiple:
        raise ValueError(f"{whose} must be a multiple of {multiple}, got {image_size}")
    return image_size


def load_pretrained(auto_class: Any, name_or_path: str, **kwargs: Any) -> Any:
    """
    :param auto_class: One of ``transformers``' auto classes
    :param name_or_path: Name or folder of a checkpoint
    :param kwargs: Arguments of its ``from_pretrained``
    :return: What it loads
    :raises ValueError: If there is no such checkpoint, or this part of it is missing
    """
    return _load(auto_class.from_pretrained, auto_class.__name__, name_or_path, trust_remote_code=False, **kwargs)


def read_config(name_or_path: str) -> dict[str, Any]:
    """
    :param name_or_path: Name or folder of a checkpoint, of ``transformers`` or not
    :return: What its ``config.json`` says
    :raises ValueError: If there is no such checkpoint, or only adapters to one
    """
    folder = Path(name_or_path)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ValueError(
            f"{name_or_path!r} holds peft's adapters and not the model that they stand beside: add them to it "
            "(merge_and_unload of peft), save that with its tokenizer and image processor, and give its folder"
        )
    config: dict[str, Any] = _load(PreTrainedConfig.get_config_dict, "config.json", name_or_path)[0]
    return config


def read_processor(name_or_path: str) -> dict[str, Any]:
    """
    :param name_or_path: Name or folder of a checkpoint of ``transformers``
    :return: What its ``processor_config.json`` says, nothing if there is none
    :raises ValueError: If there is no such checkpoint, or the file is broken
    """
    processor, _ = _load(ProcessorMixin.get_processor_dict, "processor_config.json", name_or_path)
    return dict(processor)


def read_image_processor(name_or_path: str) -> dict[str, Any]:
    """
    :param name_or_path: Name or folder of a checkpoint of ``transformers``
    :return: What its ``preprocessor_config.json`` says, or that part of ``processor_config.json``
    :raises ValueError: If there is no such checkpoint or file, or it is broken
    """
    processor, _ = _load(ImageProcessingMixin.get_image_processor_dict, "preprocessor_config.json", name_or_path)
    return dict(processor)


def filter_of(number: int, name_or_path: str) -> str:
    """
    :param number: By which an image processor names the filter with which it resizes
    :param name_or_path: Of its checkpoint
    :return: torch's name of it
    :raises ValueError: If torch has none like it
    """
    if int(number) not in _FILTERS:
        raise ValueError(
            f"the image processor of {name_or_path!r} resizes by PIL's filter {int(number)}, known are {sorted(_FILTERS)}: "
            "write '\"resample\": 2' (bilinear) or 3 (bicubic) into its preprocessor_config.json"
        )
    return _FILTERS[int(number)]


def _load(load: Callable[..., Any], what: str, name_or_path: str, **kwargs: Any) -> Any:
    try:
        return load(name_or_path, **kwargs)
    except SafetensorError as error:
        raise ValueError(
            f"{_broken_file(name_or_path)} is broken ({error}): fetch the checkpoint {name_or_path!r} again"
        ) from error
    except RuntimeError as error:  # of another shape
        raise ValueError(
            f"the weights of {name_or_path!r} are not those that its config.json describes: fetch the checkpoint again "
            f"({' '.join(str(error).split())})"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"there is no backbone {name_or_path!r}: give 'tiny', the name of a vision-language model on the Hugging Face Hub "
            f"(needs the network, or the checkpoint in the local cache), or the folder of one, complete with weights, "
            f"tokenizer and image processor ({what}: {error})"
        ) from error


def _broken_file(name_or_path: str) -> str:
    """
    :param name_or_path: Of a checkpoint with a file of weights that can't be read
    :return: That file
    """
    for path in sorted(Path(name_or_path).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return str(path)
    return f"a file of weights of {name_or_path!r}"  # in the Hub's cache

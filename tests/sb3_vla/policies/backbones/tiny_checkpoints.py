"""Checkpoints with random weights of each family, as the Hugging Face Hub holds them, and the processors that go with them."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch as th
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

# Without torchvision, transformers has the image processors of PIL alone
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

# Made and saved by LeRobot 0.6.1, with what it draws: scripts/lerobot/check_smolvla.py --keep
MADE_BY_LEROBOT = Path(__file__).with_name("smolvla")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MEAN_AND_STD = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@dataclass(frozen=True)
class TinyFamily:
    """
    :param tokens: Tokens of the family beside text, by what its processor calls them; the first stands for an image
    :param config: Configuration of the model, given the number of a token
    :param image_processor: What normalises images
    :param processor: Makes the processor out of image processor and tokenizer
    :param image_size: In pixels
    :param marker: An image in a chat; ``None`` if there is no chat template
    :param call: Arguments of the processor beside images and text
    """

    tokens: dict[str, str]
    config: Callable[[Callable[[str], int]], dict[str, Any]]
    image_processor: Any
    processor: Callable[[Any, Any], Any]
    image_size: int
    marker: str | None
    call: dict[str, Any] = field(default_factory=dict)

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """:return: Bytes as tokens, and those of the family"""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=270, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(["open the drawer", "push the puck to the goal"], trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={f"{name}_token": token for name, token in self.tokens.items()},
        )
        if self.marker is not None:
            fast.chat_template = CHAT_TEMPLATE.replace("IMAGE", self.marker)
        return fast

    def save(self, folder: Path, dtype: th.dtype = th.float32) -> Any:
        """
        :param folder: Where to write a checkpoint
        :param dtype: Of its weights
        :return: Its model, in float32
        """
        tokenizer = self.make_tokenizer()
        th.manual_seed(7)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**self.config(tokenizer.convert_tokens_to_ids)))
        with th.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * th.randn_like(parameter))  # Gemma's projector and norms begin at zero
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        return model.float().eval()

    def text(self, tokenizer: Any, instruction: str, n_images: int) -> str:
        """
        :param tokenizer: The family's
        :param instruction: What to do
        :param n_images: How many images there are
        :return: What a user of the processor writes
        """
        if self.marker is None:
            return next(iter(self.tokens.values())) * n_images + instruction
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": instruction}]
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )


def _image_half(cls: type, image_processor: Any, tokenizer: Any, **attributes: Any) -> Any:
    """
    A processor whose constructor asks for one of videos, too, which transformers has with torchvision alone.

    :param cls: Its class
    :param image_processor: Its image processor
    :param tokenizer: Its tokenizer
    :param attributes: What else its constructor sets
    :return: The processor
    """
    processor = cls.__new__(cls)
    common = {"image_processor": image_processor, "tokenizer": tokenizer, "video_processor": None, "chat_template": None}
    for name, value in {**common, **attributes}.items():
        setattr(processor, name, value)
    return processor


def _qwen_processor(cls: type) -> Callable[[Any, Any], Any]:
    def make(image_processor: Any, tokenizer: Any) -> Any:
        tokens = {name: getattr(tokenizer, name) for name in (f"{short}_token" for short in QWEN_TOKENS)}
        numbers = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
        return _image_half(cls, image_processor, tokenizer, **tokens, **numbers)

    return make


def _internvl_processor(image_processor: Any, tokenizer: Any) -> Any:
    number = tokenizer.convert_tokens_to_ids
    return _image_half(
        transformers.InternVLProcessor,
        image_processor,
        tokenizer,
        image_seq_length=4,
        image_token="<IMG_CONTEXT>",
        image_token_id=number("<IMG_CONTEXT>"),
        video_token="<video>",
        start_image_token="<img>",
        start_image_token_id=number("<img>"),
        end_image_token="</img>",
        end_image_token_id=number("</img>"),
        multimodal_pattern=re.compile("(?P<image><IMG_CONTEXT>)|(?P<video><video>)"),
    )


def _paligemma_processor(image_processor: Any, tokenizer: Any) -> Any:
    image_processor.image_seq_length = 4
    return transformers.PaliGemmaProcessor(image_processor, tokenizer)


def _idefics3(model_type: str, image_processor_class: type) -> TinyFamily:
    size = {"longest_edge": 32}
    return TinyFamily(
        tokens={"image": "<image>", "fake_image": "<fake_token_around_image>", "global_image": "<global-img>"},
        config=lambda number: {
            "model_type": model_type,
            "scale_factor": 2,
            "image_token_id": number("<image>"),
            "vision_config": {**VISION, "image_size": 32, "patch_size": 8},
            "text_config": {**TEXT, "model_type": "llama"},
        },
        image_processor=image_processor_class(size=size, max_image_size=size, do_image_splitting=False, **MEAN_AND_STD),
        # SmolVLM's own needs torchvision and num2words; it treats images and text as its parent does
        processor=lambda image_processor, tokenizer: transformers.Idefics3Processor(
            image_processor, tokenizer, image_seq_len=4
        ),
        image_size=32,
        marker="<image>",
    )


QWEN_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def _qwen(model_type: str, processor_class: type, vision: dict[str, Any]) -> TinyFamily:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    common = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    text = TEXT if model_type == "qwen3_vl" else {name: value for name, value in TEXT.items() if name != "head_dim"}
    sizes = {"shortest_edge": 64, "longest_edge": 10**6}
    return TinyFamily(
        tokens=QWEN_TOKENS,
        config=lambda number: {
            "model_type": model_type,
            **{f"{name}_token_id": number(token) for name, token in QWEN_TOKENS.items()},
            "vision_config": {**common, **vision},
            "text_config": {**text, "model_type": f"{model_type}_text", "rope_parameters": rope},
        },
        image_processor=Qwen2VLImageProcessorPil(patch_size=4, size=sizes, **MEAN_AND_STD),
        processor=_qwen_processor(processor_class),
        image_size=64,
        marker="<|vision_start|><|image_pad|><|vision_end|>",
        call={"return_mm_token_type_ids": True},
    )


TINY_FAMILIES: dict[str, TinyFamily] = {
    "smolvlm": _idefics3("smolvlm", SmolVLMImageProcessorPil),
    "idefics3": _idefics3("idefics3", Idefics3ImageProcessorPil),
    "llava": TinyFamily(
        tokens={"image": "<image>"},
        config=lambda number: {
            "model_type": "llava",
            "image_token_id": number("<image>"),
            "vision_config": {**VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
            "text_config": {**TEXT, "model_type": "llama"},
        },
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **MEAN_AND_STD
        ),
        processor=functools.partial(
            transformers.LlavaProcessor,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
        image_size=28,
        marker="<image>",
    ),
    "paligemma": TinyFamily(
        tokens={"image": "<image>"},
        config=lambda number: {
            "model_type": "paligemma",
            "image_token_id": number("<image>"),
            "projection_dim": 32,
            "hidden_size": 32,
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
            # PaliGemma 2's; every other layer of its sees only so far back
            "text_config": {
                **TEXT,
                "model_type": "gemma2",
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        },
        image_processor=SiglipImageProcessorPil(size={"height": 28, "width": 28}, **MEAN_AND_STD),
        processor=_paligemma_processor,
        image_size=28,
        marker=None,
    ),
    "gemma3": TinyFamily(
        tokens={"image": "<image_soft_token>", "boi": "<start_of_image>", "eoi": "<end_of_image>"},
        config=lambda number: {
            "model_type": "gemma3",
            "image_token_id": number("<image_soft_token>"),
            "boi_token_index": number("<start_of_image>"),
            "eoi_token_index": number("<end_of_image>"),
            "mm_tokens_per_image": 4,
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
            "text_config": {
                **TEXT,
                "model_type": "gemma3_text",
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        },
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, **MEAN_AND_STD),
        processor=functools.partial(transformers.Gemma3Processor, image_seq_length=4),
        image_size=32,
        marker="<start_of_image>",
    ),
    "qwen2_vl": _qwen("qwen2_vl", transformers.Qwen2VLProcessor, {"embed_dim": 16, "mlp_ratio": 2}),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl",
        transformers.Qwen2_5_VLProcessor,
        {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        transformers.Qwen3VLProcessor,
        {"intermediate_size": 48, "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    ),
    "internvl": TinyFamily(
        tokens={"context_image": "<IMG_CONTEXT>", "start_image": "<img>", "end_image": "</img>", "video": "<video>"},
        config=lambda number: {
            "model_type": "internvl",
            "image_token_id": number("<IMG_CONTEXT>"),
            "downsample_ratio": 0.5,
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {**TEXT, "model_type": "qwen2"},
        },
        image_processor=GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False, **MEAN_AND_STD),
        processor=_internvl_processor,
        image_size=32,
        marker="<IMG_CONTEXT>",
        call={"crop_to_patches": False},
    ),
}

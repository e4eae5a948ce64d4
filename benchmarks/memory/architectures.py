"""Vision-language models of true size with random weights: what their configurations on the Hugging Face Hub say of sizes."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sb3_vla import PretrainedBackbone
from sb3_vla.policies.backbones.tokenizer_files import save_tokenizer

_SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
# What the models' tokenizers have beside text; the first stands for an image
_TOKENS = {
    "idefics3": ("<image>", "<fake_token_around_image>", "<global-img>"),
    "paligemma": ("<image>",),
    "qwen2_5_vl": ("<|image_pad|>",),
}


def _smolvlm(vision: dict[str, int], scale_factor: int, **text: int) -> dict[str, Any]:
    text_config = {"model_type": "llama", "vocab_size": 49280, "head_dim": 64, "max_position_embeddings": 8192, **text}
    return {"model_type": "idefics3", "scale_factor": scale_factor, "vision_config": vision, "text_config": text_config}


def _qwen(**text: int) -> dict[str, Any]:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
    }
    return {
        "model_type": "qwen2_5_vl",
        "vision_config": vision,
        "text_config": {"model_type": "qwen2_5_vl_text", "vocab_size": 151936, **text},
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "SmolVLM-256M": _smolvlm(
        {**_SIGLIP_BASE, "image_size": 512, "patch_size": 16},
        scale_factor=4,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "SmolVLM-500M": _smolvlm(
        {**_SIGLIP_BASE, "image_size": 512, "patch_size": 16},
        scale_factor=4,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
    ),
    "SmolVLM2-2.2B": _smolvlm(
        {**_SIGLIP_SO400M, "image_size": 384, "patch_size": 14},
        scale_factor=3,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "PaliGemma-3B": {
        "model_type": "paligemma",
        "projection_dim": 2048,
        "vision_config": {
            **_SIGLIP_SO400M,
            "model_type": "siglip_vision_model",
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 2048,
        },
        "text_config": {
            "model_type": "gemma",
            "vocab_size": 257216,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
        },
    },
    "Qwen2.5-VL-3B": _qwen(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2
    ),
    "Qwen2.5-VL-7B": _qwen(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ),
}


def backbone_of(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    :param name: Of an architecture
    :param kwargs: Further arguments of the backbone, such as ``image_size``
    :return: ``policy_kwargs`` that make it; its tokens are bytes, which makes an instruction a few tokens longer
    """
    tokens = _TOKENS[CONFIGS[name]["model_type"]]
    vocabulary = ["<pad>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *tokens]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", additional_special_tokens=list(tokens)
    )
    settings = {
        "config": {**CONFIGS[name], "image_token_id": fast.convert_tokens_to_ids(tokens[0])},
        "tokenizer_files": save_tokenizer(fast),
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    }
    return {"backbone": PretrainedBackbone, "backbone_kwargs": {**settings, **kwargs}}

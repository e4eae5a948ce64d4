import json
import shutil

import pytest
import torch as th
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from .tiny_checkpoints import MADE_BY_LEROBOT, TEXT, TINY_FAMILIES, VISION

PALIGEMMA = TINY_FAMILIES["paligemma"]


class PI0ImageProcessorPil(PilBackend):
    """``PI0ImageProcessor``, which needs torchvision, for pictures of 28 pixels: they keep their proportions."""

    resample, do_resize, do_rescale, do_normalize, do_pad = PILImageResampling.BICUBIC, True, True, True, True
    image_mean, image_std = [0.5, 0.41, 0.5], [0.5, 0.5, 0.4]
    size, pad_size = {"max_height": 28, "max_width": 28}, {"height": 28, "width": 28}
    default_to_square = False
    image_seq_length = 4


STATISTICS = {
    "state_mean": [1.0, 2.0, 3.0],
    "state_std": [0.5, 1.0, 2.0],
    "actions_mean": [0.25, -0.5],
    "actions_std": [2.0, 0.1],
}


@pytest.fixture
def pi0_checkpoint(tmp_path):
    """A pi0 of random weights: chunks of at most 6 actions of at most 8 numbers."""
    tokenizer = PALIGEMMA.make_tokenizer()
    text = {**{key: value for key, value in TEXT.items() if key != "sliding_window"}, "model_type": "gemma"}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
            "projection_dim": 32,
            "hidden_size": 32,
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        },
        dit_config={**text, "hidden_size": 24},
        chunk_size=6,
        max_state_dim=8,
        max_action_dim=8,
    )
    th.manual_seed(7)
    model = PI0ForConditionalGeneration(config)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * th.randn_like(parameter))
    folder = tmp_path / "pi0"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    PI0ImageProcessorPil().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PI0Processor", **STATISTICS}))
    return folder


@pytest.fixture
def smolvla_checkpoint(tmp_path):
    """A SmolVLA: chunks of at most 6 actions of 2 numbers, states of 3."""
    return shutil.copytree(MADE_BY_LEROBOT, tmp_path / "smolvla")


@pytest.fixture
def make_expert_model(make_model, request):
    """A model around a checkpoint that has an action expert, ``"pi0"`` or ``"smolvla"``."""

    def make(kind, head="flow", head_kwargs=None, policy_kwargs=None, backbone_kwargs=None, **kwargs):
        checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
        backbone_kwargs = {**({"vlm": checkpoint / "vlm"} if kind == "smolvla" else {}), **(backbone_kwargs or {})}
        spec = {"backbone": checkpoint, "backbone_kwargs": backbone_kwargs, "head": head, "head_kwargs": head_kwargs or {}}
        return make_model(policy_kwargs={**spec, **(policy_kwargs or {})}, **kwargs)

    return make

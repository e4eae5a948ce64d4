"""
LeRobot's part of ``check_smolvla.py``, which runs it with the Python that has LeRobot: makes a small SmolVLA.

    python lerobot_smolvla.py FOLDER MODE   # MODE: how states and actions are normalised, such as MEAN_STD

The folder then holds the checkpoint as LeRobot saves it, ``vlm``, the vision-language model that it names, and
``expected.npz``: observations, noise, and the chunks that LeRobot makes of them.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

PROMPTS = ("open the drawer", "push")
CAMERAS = {"image": (20, 28), "image_wrist": (48, 40)}
STATE_DIM, ACTION_DIM = 3, 2
SIZE = {"longest_edge": 32}
# The smallest that has all that a large one has: more layers than SmolVLA takes, another base of the rotary embedding than
# LeRobot's, heads that share keys
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
TEXT = {
    "model_type": "llama",
    "vocab_size": 280,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main(mode: str) -> None:
    """
    :param mode: How states and actions are normalised
    """
    make_vlm()
    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in CAMERAS.items()}
    config = SmolVLAConfig(
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        normalization_mapping={
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode[mode],
            "ACTION": NormalizationMode[mode],
        },
        vlm_model_name="vlm",
        chunk_size=6,
        n_action_steps=6,
        max_state_dim=8,
        max_action_dim=8,
        resize_imgs_with_padding=(32, 32),
        num_vlm_layers=2,
        expert_width_multiplier=0.5,
        tokenizer_max_length=24,
        num_steps=5,
        device="cpu",
    )
    policy = SmolVLAPolicy(config).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    preprocess, postprocess = make_smolvla_pre_post_processors(
        config, {"observation.state": statistics(rng, STATE_DIM), "action": statistics(rng, ACTION_DIM)}
    )
    for saved in (policy, preprocess, postprocess):
        saved.save_pretrained(".")

    images = {name: rng.integers(0, 256, (len(PROMPTS), *size, 3), dtype=np.uint8) for name, size in CAMERAS.items()}
    state = rng.normal(size=(len(PROMPTS), STATE_DIM)).astype(np.float32)
    noise = rng.normal(size=(len(PROMPTS), config.chunk_size, config.max_action_dim)).astype(np.float32)
    batch = preprocess(
        {
            **{
                f"observation.images.{name}": torch.as_tensor(each).permute(0, 3, 1, 2).float() / 255
                for name, each in images.items()
            },
            "observation.state": torch.as_tensor(state),
            "task": list(PROMPTS),
        }
    )
    chunk = postprocess(policy.predict_action_chunk(batch, noise=torch.as_tensor(noise)))
    np.savez_compressed(
        "expected.npz", prompts=PROMPTS, state=state, noise=noise, chunk=chunk.numpy(), n_steps=config.num_steps, **images
    )


def make_vlm() -> None:
    """Write the vision-language model's configuration, tokenizer and processor, which LeRobot reads; weights it does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        PROMPTS, trainers.BpeTrainer(vocab_size=270, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=SIZE, max_image_size=SIZE),
        tokenizer=fast,
        video_processor=SmolVLMVideoProcessor(size=SIZE, max_image_size=SIZE),
    ).save_pretrained("vlm")
    SmolVLMConfig(
        vision_config={**VISION, "patch_size": 8},
        text_config=TEXT,
        scale_factor=2,
        image_token_id=fast.convert_tokens_to_ids("<image>"),
    ).save_pretrained("vlm")


def statistics(rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """
    :param rng: Makes them
    :param length: Of the vectors
    :return: As a dataset has them
    """
    mean, std = rng.normal(size=length), rng.uniform(0.1, 0.5, size=length)
    low, high = mean - 2 * std, mean + 3 * std
    return {"mean": mean, "std": std, "min": low, "max": high, "q01": 0.9 * low, "q99": 0.9 * high, "count": np.array([9])}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # so that the checkpoint names "vlm", wherever it is moved to
    main(sys.argv[2])

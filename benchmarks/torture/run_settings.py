"""The configuration of the runs that are tortured: the tiny policy on the point."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # or else it asks for what does not exist, again and again

import yaml

from sb3_vla import PPOSelfBC
from sb3_vla.runs.config import load_config
from sb3_vla.vec_env.make import make_vla_vec_env

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = "point:point"
TRAIN = [sys.executable, "-c", "import sys; from sb3_vla.runs.cli import main; sys.exit(main())", "train", "--suite", SUITE]
# Where point.py is found, by worker processes, too
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}
_BACKBONE = {
    "model_type": "smolvlm",
    "scale_factor": 2,
    "image_token_id": 383,
    "vision_config": {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    },
    "text_config": {
        **{"model_type": "llama", "vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128},
        **{"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1},
    },
}


def settings(total_timesteps: int) -> dict[str, Any]:
    """
    :param total_timesteps: Chunks to train for
    :return: Settings of a run
    """
    rollouts = {"n_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "critic_warmup_steps": 0, "bc_batch_size": 4}
    return {
        "suite": SUITE,
        "tasks": ["point"],
        "device": "cpu",
        "wrapping": {"chunk_size": 3},
        "policy": {"backbone_kwargs": {"config": _BACKBONE}, "head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
        "train": {**rollouts, "total_timesteps": total_timesteps, "checkpoint_every": 1, "validate_every": None},
    }


def make_model(**arguments: Any) -> PPOSelfBC:
    """
    :param arguments: Of the model, in place of those of the settings
    :return: A new model, with an environment in this process
    """
    config = load_config(None, **settings(100))
    venv = make_vla_vec_env(config.tasks, 1, suite=config.suite, **config.training_env_settings())
    own = {**config.train.model_arguments(), "policy_kwargs": dict(vars(config.policy)), "device": "cpu"}
    return PPOSelfBC("VLAPolicy", venv, **{**own, "gamma": config.wrapping.gamma, **arguments})


def write_settings(path: Path, total_timesteps: int) -> Path:
    """
    :param path: File to write
    :param total_timesteps: Chunks to train for
    :return: The file
    """
    path.write_text(yaml.safe_dump(settings(total_timesteps)), encoding="utf-8")
    return path

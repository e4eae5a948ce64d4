"""A configuration of runs of a few seconds, for tests of the command line."""

from pathlib import Path
from typing import Any

import yaml

# The scripted experts need about 40 steps
TASKS = ["handle-press-v3", "coffee-button-v3"]
SETTINGS: dict[str, Any] = {
    "tasks": TASKS,
    "device": "cpu",
    "simulation": {"horizon": 60},
    "wrapping": {"chunk_size": 5, "cameras": [{"name": "corner4", "height": 32, "width": 32}]},
    "policy": {"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
    "demos": {"n_per_task": 2, "n_workers": 1},
    "sft": {"n_epochs": 2},
    "train": {
        "total_timesteps": 32,
        "n_envs": 2,
        "n_steps": 8,
        "batch_size": 8,
        "n_epochs": 1,
        "critic_warmup_steps": 0,
        "bc_batch_size": 8,
        "checkpoint_every": 16,
    },
    "eval": {"n_goals": 2, "n_envs": 2},
}


def write_settings(path: Path, **sections: dict[str, Any]) -> str:
    """:return: The file, in which sections are changed"""
    settings = {
        key: {**value, **sections.pop(key, {})} if isinstance(value, dict) else value for key, value in SETTINGS.items()
    }
    path.write_text(yaml.safe_dump({**settings, **sections}), encoding="utf-8")
    return str(path)


#: Commands that work
ALL = ["demos", "sft", "train", "eval", "probe", "play", "record", "quickstart"]
TRAINING = ["sft", "train", "quickstart"]

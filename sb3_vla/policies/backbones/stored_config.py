"""Configurations of ``transformers`` out of plain dictionaries, which may come from a stranger's file."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

# Others would be downloaded and run
_ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def restore_config(config: Mapping[str, Any]) -> Any:
    """
    :param config: What ``to_dict()`` of a configuration gave
    :return: The configuration, without a ``dtype``: the master copy of weights is float32 whatever the checkpoint says, as
        bfloat16 would swallow PPO's small steps
    :raises ValueError: If it names an attention that transformers would download
    """
    _check_attention(config)
    return AutoConfig.for_model(**{name: value for name, value in config.items() if name != "dtype"})


def _check_attention(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_attention(value)
        elif "attn_implementation" in str(name) and value not in _ATTENTIONS:
            raise ValueError(f"{name} must be one of {_ATTENTIONS}, got {value!r:.200}")

"""An episode that ended because what simulated it is gone: neither success nor failure, and nothing to learn from."""

from collections.abc import Mapping
from typing import Any

_KEY = "episode_lost"


def lost_info(last_observation: Any) -> dict[str, Any]:
    """
    What an environment's ``info`` says of such a step. It says that the episode was truncated after a chunk of no steps where
    it had been before: by a bootstrap of ``gamma ** 0`` with the value of that same observation the chunk has no advantage,
    and what came before it is worth what it was expected to be.

    :param last_observation: The last one that was seen
    :return: The info
    """
    return {_KEY: True, "TimeLimit.truncated": True, "terminal_observation": last_observation, "chunk_length": 0}


def is_lost(info: Mapping[str, Any]) -> bool:
    """
    :param info: Of a step
    :return: Whether it says so
    """
    return bool(info.get(_KEY, False))

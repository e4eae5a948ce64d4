"""Whether a launcher has started this process with others, and that one of them is gone. Imports nothing large."""

import os


class LostRank(RuntimeError):
    """Another of the processes has ended, or can't be reached."""


def launched_as() -> tuple[int, int]:
    """
    :return: Number of this process among those that ``torchrun`` or ``accelerate launch`` has started together, from 0, and
        how many they are: 0 and 1 for one that was started alone
    """
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))


def launched_on_machine() -> int:
    """:return: How many of the processes of :func:`launched_as` run on this machine"""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def launched_to_shard() -> bool:
    """:return: Whether ``accelerate launch`` has been told to use FSDP, by its configuration or ``--use_fsdp``"""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")

"""The command line on several processes that ``torchrun`` or ``accelerate launch`` has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ..common.launch import launched_as

# What several processes can do together
_COMMANDS = ("train", "eval")


def check_command(name: str) -> None:
    """
    :param name: Of a command
    :raises ValueError: If it is for one process, and there are several
    """
    if launched_as()[1] > 1 and name not in _COMMANDS:
        raise ValueError(
            f"{name} runs in one process, but the launcher has started {launched_as()[1]}: start it without one; for several "
            f"processes there are {' and '.join(_COMMANDS)}"
        )


@contextmanager
def first_rank_speaks() -> Iterator[None]:
    """Within it, what other ranks than the first one print goes nowhere; errors still show."""
    if launched_as()[0] == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def where() -> str:
    """:return: Which of several processes this is, for an error"""
    rank, size = launched_as()
    return f" (rank {rank})" if size > 1 else ""

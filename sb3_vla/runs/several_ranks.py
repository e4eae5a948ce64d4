"""The command line on several processes that ``torchrun`` or ``accelerate launch`` has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from stable_baselines3.common.utils import get_device

from ..common.ranks import Ranks, check_alike, join_ranks, launched_as
from .config import Config

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


def meet(config: Config) -> Ranks:
    """
    :param config: Configuration
    :return: The ranks, all of which have it
    :raises ValueError: If another one has another
    :raises ImportError: If there are several, but Accelerate is not installed
    """
    ranks = join_ranks(get_device(config.device))
    settings = config.to_dict()
    sections = {name: value for name, value in settings.items() if isinstance(value, dict)}
    flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    check_alike(ranks, "configuration", {**{name: settings[name] for name in settings.keys() - sections.keys()}, **flat})
    return ranks

"""Commands that go on with a run, when they were told to, and say how to when they are stopped."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ...common.launch import LostRank
from ...common.run_folder import RunFolder
from ..interruption import Interrupted


def is_resumed(arguments: Namespace, given_again: Collection[str] = ()) -> bool:
    """
    :param arguments: Of a command that can go on
    :param given_again: Names of those that going on needs, too
    :return: Whether a run is to go on
    :raises ValueError: If neither or both of ``--out`` and ``--resume`` are given, or more with the latter
    """
    if (arguments.out is None) == (arguments.resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to continue one")
    own = ("config", "tasks", "seed", "init", "demos", "epochs", "timesteps")
    given = [name for name in own if name not in given_again and getattr(arguments, name, None) is not None]
    if arguments.resume is not None and given:
        raise ValueError(
            f"--resume continues a run with its own configuration: leave out --{' --'.join(given)}. What a run may change on "
            "its way, such as train.total_timesteps, is changed in its config.yaml"
        )
    return arguments.resume is not None


@contextmanager
def going_on(arguments: Namespace, folder: RunFolder, given_again: Collection[str] = ()) -> Iterator[None]:
    """
    Within it, who stops a run is told how to go on with it.

    :param arguments: Of a command that can go on
    :param folder: The run's folder
    :param given_again: Names of those that going on needs, too
    """
    try:
        yield
    except (Interrupted, LostRank):
        named = {name: getattr(arguments, name) for name in (*given_again, "suite")}
        again = [part for name, value in named.items() if value is not None for part in (f"--{name}", value)]
        trusted = [part for name in getattr(arguments, "trust", ()) if name != "pickle" for part in ("--trust", name)]
        command = ["sb3-vla", arguments.command, "--resume", str(folder.path), *again, *trusted]
        print(f"To go on: {shlex.join(command)}", file=sys.stderr)
        raise

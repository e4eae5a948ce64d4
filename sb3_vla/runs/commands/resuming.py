"""Commands that go on with a run, when they were told to, and say how to when they are stopped."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from ...common.launch import LostRank
from ...common.run_folder import RunFolder
from ..interruption import Interrupted


def is_resumed(arguments: Namespace) -> bool:
    """
    :param arguments: Of ``train`` or ``quickstart``
    :return: Whether a run is to go on
    :raises ValueError: If neither or both of ``--out`` and ``--resume`` are given, or more with the latter
    """
    if (arguments.out is None) == (arguments.resume is None):
        raise ValueError("give either --out FOLDER for a new run or --resume FOLDER to continue one")
    own = ("config", "tasks", "seed", "init", "demos", "timesteps")
    given = [name for name in own if getattr(arguments, name, None) is not None]
    if arguments.resume is not None and given:
        raise ValueError(
            f"--resume continues a run with its own configuration: leave out --{' --'.join(given)}. What a run may change on "
            "its way, such as train.total_timesteps, is changed in its config.yaml"
        )
    return arguments.resume is not None


@contextmanager
def going_on(arguments: Namespace, folder: RunFolder) -> Iterator[None]:
    """
    Within it, who stops a run is told how to go on with it.

    :param arguments: Of ``train`` or ``quickstart``
    :param folder: The run's folder
    """
    try:
        yield
    except (Interrupted, LostRank):
        suite = () if arguments.suite is None else ("--suite", arguments.suite)
        trusted = [part for name in getattr(arguments, "trust", ()) if name != "pickle" for part in ("--trust", name)]
        command = ["sb3-vla", arguments.command, "--resume", str(folder.path), *suite, *trusted]
        print(f"To go on: {shlex.join(command)}", file=sys.stderr)
        raise

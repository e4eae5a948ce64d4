"""The command line, ``sb3-vla COMMAND ...``."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module

from ..common.launch import LostRank
from .commands import Failure
from .interruption import Interrupted, stopping_at_once
from .parser import build_parser
from .several_ranks import check_command, first_rank_speaks, where


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command. Mistakes in what the user gave end in one line on standard error; an error in the work itself, which has
    passed all checks, shows where it arose.

    :param argv: Arguments, by default those of the process
    :return: Exit status: 0 or what the command gives, 1 if the work can't be done or another rank is lost, 2 after a mistake,
        128 and the number of a signal after an interruption
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    arguments.command_line = shlex.join(["sb3-vla", *argv])
    try:
        with stopping_at_once(), ExitStack() as arguments.held:
            try:
                check_command(arguments.command)
                with first_rank_speaks():
                    # On use only: torch, SB3 and transformers take seconds to import
                    work = import_module(f".commands.{arguments.command}", __package__).prepare(arguments)
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                print(f"sb3-vla {arguments.command}{where()}: {' '.join(str(error).split())}", file=sys.stderr)
                return 2
            with first_rank_speaks():
                status: int | None = work()
    except Interrupted as error:
        print(f"sb3-vla {arguments.command}{where()}: {error}", file=sys.stderr)
        return error.exit_status
    except (Failure, LostRank) as error:
        print(f"sb3-vla {arguments.command}{where()}: {error}", file=sys.stderr)
        return 1
    return status or 0

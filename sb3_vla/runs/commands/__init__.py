"""What each command does: ``prepare`` checks what the user gave and returns the work to do."""

from collections.abc import Callable

#: What a command has to do after its checks; it may give an exit status
Work = Callable[[], int | None]


class Failure(Exception):
    """The work can't be done, for a reason that the user can mend and that a line tells."""

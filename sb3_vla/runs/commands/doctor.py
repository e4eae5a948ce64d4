"""``sb3-vla doctor``: what this machine and its software are, and what of it will hurt."""

from argparse import Namespace

from ..doctor import report
from . import Work


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    return lambda: 0 if report() else 1

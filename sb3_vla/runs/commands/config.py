"""``sb3-vla config``: print every setting."""

from argparse import Namespace

import yaml

from . import Work
from .given import load


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    text = yaml.safe_dump(load(arguments).to_dict(), sort_keys=False, allow_unicode=True)
    return lambda: print(text, end="")

"""Which goals are for training and which for testing: a property of the goal itself, whatever list it stands in."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .task_env import SPLITS, GoalSplit

# Positions are rounded to a micrometre: it makes lists of goals the same on every machine, whatever its floating-point unit
# does with the last bit of ``low + (high - low) * u``, and gives each goal an integer identity to split by.
_DECIMALS = 6


def round_goal(goal: NDArray[Any]) -> NDArray[np.float64]:
    """
    :param goal: Positions in metres
    :return: The same to the micrometre
    """
    return np.asarray(goal, dtype=np.float64).round(_DECIMALS)


def split_of(goal: NDArray[Any]) -> GoalSplit:
    """
    :param goal: Positions in metres
    :return: The split that owns this goal for good, by a checksum over its micrometres
    """
    micrometres = np.rint(goal * 10**_DECIMALS).astype("<i8")
    return SPLITS[zlib.crc32(micrometres.tobytes()) % 2]

"""Schedules as text, as the zoo writes them."""

import re
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

_NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?)"
_SCHEDULE = re.compile(rf"lin_{_NUMBER}(?:_{_NUMBER})?", re.IGNORECASE)


def with_schedule(value: Any) -> Any:
    """
    :param value: Of a setting
    :return: A schedule for a text such as ``lin_7e-5``, the zoo's notation for what falls linearly from that number to 0
        while it trains, or ``lin_1_0.3``, which falls from the first number to the second; else the value
    """
    match = _SCHEDULE.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else LinearSchedule(float(match[1]), float(match[2] or 0), 1.0)

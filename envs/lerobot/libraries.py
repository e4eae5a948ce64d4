"""The two libraries that LeRobot's files need, imported on first use: environments alone do without them."""

from __future__ import annotations

import importlib
from typing import Any


def import_library(name: str) -> Any:
    """
    :param name: ``"pyarrow.parquet"``, say, or ``"av"``
    :return: The module
    :raises ImportError: If it is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"LeRobot datasets need {name.split('.')[0]}: pip install 'sb3-vla[lerobot]'") from error

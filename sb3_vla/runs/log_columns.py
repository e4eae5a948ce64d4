"""What was logged in the course of a run, as columns of numbers."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_columns(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """
    :param path: A CSV file that SB3's logger or a validation writes or has written
    :return: Its columns that hold any number, each float64 of shape ``(rows,)``, NaN where nothing was logged; a last line
        that is not whole yet is left out
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is damaged so that no columns can be made out
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        try:
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(
                f"'{path}' is damaged: {error}. Mend its lines, or move it elsewhere: models do not need it."
            ) from error
    columns = {key: np.array([_number(row[key]) for row in rows]) for key in reader.fieldnames or ()}
    return {key: values for key, values in columns.items() if np.isfinite(values).any()}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:  # a column of text
        return float("nan")

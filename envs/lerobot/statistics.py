"""
Statistics of the features of a LeRobot dataset, by which LeRobot's policies normalise.

Each is a dictionary of ``min``, ``max``, ``mean``, ``std``, quantiles ``q01`` to ``q99`` and ``count``; those of pictures are
of their channels in [0, 1], shape ``(3, 1, 1)``. As in LeRobot, the quantiles of a dataset are the means of its episodes'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Statistics = dict[str, NDArray[np.float64]]

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# Pictures are many numbers: of so many frames of an episode, and so many of the pixels along each side of them
_MAX_FRAMES = 100
_MAX_PIXELS = 150


def statistics(values: NDArray[np.generic]) -> Statistics:
    """
    :param values: Of a feature, ``(frames, ..., d)``, numbers or truth values
    :return: The statistics, each of shape ``(d,)``: over the frames, and over the steps of chunks
    """
    numbers = values.reshape(-1, values.shape[-1]).astype(np.float64)
    quantiles = np.quantile(numbers, list(_QUANTILES.values()), axis=0)
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }


def picture_statistics(frames: NDArray[np.uint8]) -> Statistics:
    """
    :param frames: ``(frames, height, width, 3)``
    :return: The statistics of the channels, over some of the frames and pixels where there are many
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).round().astype(int)
    stride = max(1, max(frames.shape[1:3]) // _MAX_PIXELS)
    pixels = frames[chosen, ::stride, ::stride].reshape(-1, 3) / 255
    of_channels = {name: value.reshape(-1, 1, 1) for name, value in statistics(pixels).items()}
    return {**of_channels, "count": np.array([len(chosen)])}


def merged(parts: Sequence[Statistics]) -> Statistics:
    """
    :param parts: Statistics of one feature, by episode
    :return: Those of all episodes together
    """
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    counts = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    weights = counts / counts.sum()
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    return {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": stacked["count"].sum(axis=0),
        **{name: (weights * stacked[name]).sum(axis=0) for name in _QUANTILES},
    }

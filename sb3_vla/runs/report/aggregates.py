"""
What several runs of an experiment say together, as Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice", recommend: the interquartile mean over runs and tasks, with an interval of a stratified bootstrap.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def interquartile_mean(scores: ArrayLike) -> float:
    """
    :param scores: At least one number, in any shape
    :return: The mean of the middle half: without a quarter of the scores, rounded down, at either end
    """
    ordered = np.sort(np.asarray(scores, np.float64), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_interval(
    scores: ArrayLike, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """
    The percentile interval of the interquartile mean, where each task's runs are drawn anew by themselves (strata).

    :param scores: Of each run and task, shape ``(n_runs, n_tasks)``
    :param confidence: Coverage, in (0, 1)
    :param n_resamples: How often they are drawn anew
    :param seed: Of the draws
    :return: Lower and upper end; ``None`` for a single run, which says nothing of others
    """
    known = np.asarray(scores, np.float64)
    n_runs, n_tasks = known.shape
    if n_runs < 2:
        return None
    chosen = np.random.default_rng(seed).integers(n_runs, size=(n_resamples, n_runs, n_tasks))
    drawn = known[chosen, np.arange(n_tasks)]  # (n_resamples, n_runs, n_tasks)
    means = _interquartile_means(drawn.reshape(n_resamples, -1))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _interquartile_means(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    cut = scores.shape[1] // 4
    middle: NDArray[np.float64] = np.sort(scores, axis=1)[:, cut : scores.shape[1] - cut].mean(axis=1)
    return middle

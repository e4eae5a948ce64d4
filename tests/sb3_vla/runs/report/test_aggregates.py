"""Interquartile means and their intervals, against SciPy and against all resamples there are."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import trim_mean

from sb3_vla.runs.report.aggregates import bootstrap_interval, interquartile_mean


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 30])
def test_interquartile_mean_is_scipys_trimmed_mean(n):
    scores = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25))


def test_interquartile_mean_by_hand():
    assert interquartile_mean([[8, 1, 3, 4], [5, 6, 7, 2]]) == 4.5
    assert interquartile_mean([0.0, 1.0, 1.0, 1.0]) == 1.0


def test_interval_is_that_of_all_resamples_of_each_task():
    scores = np.array([[0.0, 0.5], [0.4, 0.9], [1.0, 0.7]])
    choices = list(product(range(3), repeat=3))
    means = [interquartile_mean([[scores[i, 0] for i in a], [scores[i, 1] for i in b]]) for a in choices for b in choices]
    low, high = bootstrap_interval(scores, n_resamples=20_000)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_tasks_are_strata():
    """Runs that agree on each task leave no doubt, however far the tasks are apart."""
    assert bootstrap_interval([[0.1, 0.9], [0.1, 0.9]]) == (0.5, 0.5)


def test_a_single_run_has_no_interval():
    assert bootstrap_interval([[0.1, 0.9]]) is None

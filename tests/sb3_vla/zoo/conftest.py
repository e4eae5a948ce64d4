"""rl_zoo3 puts a TimeLimit of its own in the place of Gymnasium's, for the whole process, when it is imported."""

from contextlib import contextmanager

import gymnasium
import pytest

OWNERS = (gymnasium.wrappers, gymnasium.wrappers.common)


@contextmanager
def _time_limits_restored():
    before = [owner.TimeLimit for owner in OWNERS]
    try:
        yield
    finally:
        for owner, time_limit in zip(OWNERS, before, strict=True):
            owner.TimeLimit = time_limit


with _time_limits_restored():
    from rl_zoo3.gym_patches import PatchedTimeLimit


@pytest.fixture(scope="package", autouse=True)
def zoos_time_limit():
    """These tests run with it, the others without."""
    with _time_limits_restored():
        for owner in OWNERS:
            owner.TimeLimit = PatchedTimeLimit
        yield

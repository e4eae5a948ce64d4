"""In processes of their own: the policy counts only before torch is imported."""

import functools
import os
import subprocess
import sys

import pytest


@functools.cache
def _spins(module: str, **environment: str) -> int:
    """How often a thread looks before it sleeps, as torch's OpenMP library says when it is loaded after a module."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    process = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch"],
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in process.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    return int(line.split("'")[1])


@pytest.mark.parametrize("module", ["sb3_vla", "sb3_vla.runs.cli", "sb3_vla.zoo.launcher"])
def test_threads_of_torch_spin_briefly(module):
    assert _spins("os") > 10_000, "not so by itself"
    assert _spins(module) == 4000


@pytest.mark.parametrize(("variable", "value", "spins"), [("OMP_WAIT_POLICY", "passive", 0), ("GOMP_SPINCOUNT", "77", 77)])
def test_the_users_own_setting_counts(variable, value, spins):
    assert _spins("sb3_vla", **{variable: value}) == spins
    assert _spins("sb3_vla", OMP_WAIT_POLICY="active") > 10**6

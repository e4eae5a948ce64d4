"""
In processes of their own: the setting counts only before torch is imported. Whatever of sb3_vla is imported, the package
itself comes first.
"""

import os
import subprocess
import sys

import pytest


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )


def _spins(module: str) -> int:
    """How often a thread looks before it sleeps, as torch's OpenMP library says when it is loaded after a module."""
    process = _run(f"import {module}, torch", OMP_DISPLAY_ENV="verbose")
    (line,) = [line for line in process.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    return int(line.split("'")[1])


def test_threads_of_torch_spin_briefly():
    assert _spins("os") > 10_000, "not so by itself"
    assert _spins("sb3_vla") == 4000


@pytest.mark.parametrize(
    ("variable", "value", "left"), [("OMP_WAIT_POLICY", "passive", "None"), ("GOMP_SPINCOUNT", "77", "77"), ("X", "", "4000")]
)
def test_the_users_own_setting_counts(variable, value, left):
    code = "import os, sys, sb3_vla; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert _run(code, **{variable: value}).stdout.strip() == left

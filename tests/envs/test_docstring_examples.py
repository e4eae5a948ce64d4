import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "module", ["wrappers.chunked_action", "mujoco.camera_observation", "wrappers.instruction_observation"]
)
def test_example_runs_and_shows_what_it_says(module):
    results = doctest.testmod(import_module(f"sb3_vla_envs.{module}"))
    assert results.attempted > 0 and results.failed == 0

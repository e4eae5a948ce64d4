import importlib
import sys
from functools import partial
from pathlib import Path

import pytest

from sb3_vla import evaluate_on_tasks

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example(monkeypatch):
    """A function that imports an example, as Python does for what is next to a script."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def small_run(tmp_path, monkeypatch, in_this_process):
    """Arguments of ``main`` for the whole way in seconds."""
    monkeypatch.setattr("sb3_vla.api.evaluate_on_tasks", partial(evaluate_on_tasks, horizon=40))
    size = {"n_demos": 2, "n_epochs": 1, "timesteps": 32, "n_goals": 1, "n_steps": 4, "batch_size": 32}
    return {"out": str(tmp_path / "model.zip"), **size}

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example(monkeypatch):
    """A function that imports an example, as Python does for what is next to a script."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def small_run(tmp_path):
    """Arguments of ``main`` for the whole way in seconds."""
    size = {"n_demos": 2, "n_epochs": 1, "timesteps": 32, "n_goals": 1, "n_steps": 4, "batch_size": 32}
    return {"out": str(tmp_path / "model.zip"), **size}

"""The configurations that benchmarks are run with."""

from pathlib import Path

import pytest

from sb3_vla import make_vla_vec_env
from sb3_vla.runs.checks import check_training
from sb3_vla.runs.config import load_config
from sb3_vla.runs.models import new_model

TASK = "window-open-v3"  # those of others are no different
ABLATIONS = Path(__file__).parents[1] / "benchmarks" / "quickstart_ablations"


@pytest.fixture(scope="module")
def quickstart_model(tmp_path_factory):
    config = load_config(tasks=TASK)
    path = tmp_path_factory.mktemp("quickstart") / "model.zip"
    venv = make_vla_vec_env(TASK, 1, **config.env_settings())
    try:
        new_model(config, config.train.model_arguments(), venv, None, False).save(path)
    finally:
        venv.close()
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in ABLATIONS.glob("*.yml")))
def test_the_quickstarts_model_can_be_trained_with_a_change(name, quickstart_model):
    check_training(load_config(ABLATIONS / f"{name}.yml", tasks=TASK), quickstart_model)

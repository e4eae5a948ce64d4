from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla.evaluation.model_fit import check_model_fits, model_settings


def dict_space(**extra: spaces.Space[Any]) -> spaces.Dict:
    return spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 3), np.uint8), "state": spaces.Box(-1, 1, (4,)), **extra})


class Spaces:
    """Stands for a model or an environment, of which only the spaces are looked at."""

    def __init__(self, observation_space: spaces.Space[Any], chunk_size: int = 8, gamma: float = 0.9) -> None:
        self.observation_space = observation_space
        self.action_space: spaces.Space[Any] = spaces.Box(-1, 1, (chunk_size, 4))
        self.gamma = gamma


def test_model_must_fit_the_environment() -> None:
    privileged = spaces.Box(-1, 1, (9,))
    model: Any = Spaces(dict_space(privileged=privileged))
    for env in (Spaces(dict_space()), Spaces(dict_space(privileged=privileged))):
        check_model_fits(model, env)  # type: ignore[arg-type]
    misfits = {
        "action": Spaces(dict_space(), chunk_size=4),
        "observation 'state'": Spaces(dict_space(state=spaces.Box(-1, 1, (5,)))),
        "observation 'image_gripperPOV'": Spaces(dict_space(image_gripperPOV=spaces.Box(0, 255, (36, 36, 3), np.uint8))),
    }
    for name, env in misfits.items():
        with pytest.raises(ValueError, match=f"{name}: the model has"):
            check_model_fits(model, env)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="observation 'privileged': the model has none"):  # but VLAPolicy, which reads it not
        check_model_fits(Spaces(dict_space()), Spaces(dict_space(privileged=privileged)))  # type: ignore[arg-type]


def test_sb3_turning_images_to_channels_first_is_no_misfit() -> None:
    turned = dict_space(image=spaces.Box(0, 255, (3, 36, 36), np.uint8))
    model: Any = Spaces(turned)
    check_model_fits(model, Spaces(dict_space()))  # type: ignore[arg-type]


def test_chunk_size_and_discount_come_from_the_model() -> None:
    model: Any = Spaces(dict_space())
    assert model_settings(model, horizon=100) == {"horizon": 100, "chunk_size": 8, "gamma": 0.9, "privileged": False}
    with pytest.raises(ValueError, match="n_action_steps"):
        model_settings(model, chunk_size=4)
    model.action_space = spaces.Discrete(3)
    with pytest.raises(ValueError, match="take chunks"):
        model_settings(model)

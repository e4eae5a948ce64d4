"""What a MuJoCo simulation goes on from, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mujoco

# Where things are: of the moment before MuJoCo's last step, so that they don't follow from its state. Cameras see them, and
# Gymnasium-Robotics begins its steps with them
_PLACES = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)


def get_physics(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, NDArray[np.float64]]:
    """
    :param model: The model
    :param data: Its state
    :return: Everything that the next step depends on, except for the model, and where everything is
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    return {"integration": integration, **{name: getattr(data, name).copy() for name in _PLACES}}


def set_physics(model: mujoco.MjModel, data: mujoco.MjData, state: dict[str, NDArray[np.float64]]) -> None:
    """
    :param model: The model
    :param data: Gets the state
    :param state: What :func:`get_physics` returned
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, state["integration"], kind)
    mujoco.mj_forward(model, data)  # for what is computed on the way, such as contacts
    mujoco.mj_setState(model, data, state["integration"], kind)  # its warm start has changed
    for name in _PLACES:
        getattr(data, name)[:] = state[name]


def get_plain_attributes(simulator: Any) -> dict[str, Any]:
    """
    :param simulator: An object that keeps numbers of an episode beside MuJoCo's
    :return: Its attributes that are numbers, texts, ``None`` or arrays of its own, and not views of MuJoCo's
    """
    return {name: _copied(value) for name, value in vars(simulator).items() if _is_plain(value)}


def set_plain_attributes(simulator: Any, attributes: dict[str, Any]) -> None:
    """
    :param simulator: Gets the attributes
    :param attributes: What :func:`get_plain_attributes` returned
    """
    vars(simulator).update({name: _copied(value) for name, value in attributes.items()})


def _is_plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        return value.base is None and value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value

"""Which geoms a camera cannot see: leaving them out saves most of the time of a picture in software OpenGL."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

# Renamed in MuJoCo 3.5
_PROJECTION = "cam_orthographic" if hasattr(mujoco.MjModel, "cam_orthographic") else "cam_projection"


def outside_view(model: mujoco.MjModel, data: mujoco.MjData, camera_id: int, aspect: float) -> NDArray[np.bool_]:
    """
    Find the geoms whose bounding sphere lies entirely outside a camera's field of view. Of an orthographic camera, or one with
    a sensor of its own (``sensorsize``), which may be off centre, nothing counts as outside.

    :param model: The MuJoCo model; the camera's ``cam_fovy`` is the field of view
    :param data: The state of the simulation
    :param camera_id: Which camera
    :param aspect: Width of the picture divided by its height
    :return: True where a geom is out of view, shape ``(ngeom,)``; never for planes, which have no bounding sphere
    """
    if getattr(model, _PROJECTION)[camera_id] or model.cam_sensorsize[camera_id].any():
        return np.zeros(model.ngeom, dtype=np.bool_)
    half_height = math.radians(model.cam_fovy[camera_id]) / 2
    half_width = math.atan(math.tan(half_height) * aspect)
    axes = data.cam_xmat[camera_id].reshape(3, 3)  # columns: right, up, backwards
    right, up, backwards = ((data.geom_xpos - data.cam_xpos[camera_id]) @ axes).T  # each of shape (ngeom,)
    radius = model.geom_rbound
    beside = np.abs(right) * math.cos(half_width) + backwards * math.sin(half_width) > radius
    above = np.abs(up) * math.cos(half_height) + backwards * math.sin(half_height) > radius
    behind = backwards > radius
    is_plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    outside: NDArray[np.bool_] = (beside | above | behind) & ~is_plane
    return outside

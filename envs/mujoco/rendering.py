"""Pictures of a MuJoCo scene: quick enough for training in software OpenGL, upright, safe with many environments."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from ..argument_checks import check_choice
from .camera import QUALITIES, Camera, Quality
from .frustum import outside_view
from .gl_context import shared_gl_context

# MuJoCo has six groups of geoms, of which models use the first few; those out of view are moved to the last for a picture.
_HIDDEN_GROUP = 5
_EXPENSIVE_FLAGS = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)


class SceneRenderer:
    """
    Draws a model through some of its cameras.

    :param model: The MuJoCo model
    :param cameras: The views
    :param quality: ``"full"``: all that the model asks for, the pixels of Gymnasium's own renderer; ``"plain"``: without
        shadows, reflections, multisampling, sky and haze; ``"fast"``: that with fewer triangles, hardly seen in small pictures
    :raises ValueError: If a camera or the quality is unknown
    :raises ImportError: If the quality is ``"fast"`` and fast-simplification is not installed
    :raises RuntimeError: If no OpenGL library is installed
    """

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[Camera], quality: Quality = "fast") -> None:
        check_choice("quality", quality, QUALITIES)
        self.model = model
        self.cameras = tuple(cameras)
        self.quality = quality
        self._camera_ids = [_camera_id(model, camera.name) for camera in self.cameras]
        self._option = mujoco.MjvOption()
        self._option.geomgroup[_HIDDEN_GROUP] = 0
        self._context = shared_gl_context().render_context(model, quality)

    def render(self, data: mujoco.MjData, index: int = 0) -> NDArray[np.uint8]:
        """
        Draw one view.

        :param data: The state of the simulation, with positions computed (``mj_forward``)
        :param index: Which of the cameras
        :return: The picture, upright RGB, shape ``(height, width, 3)``, uint8
        """
        camera, camera_id = self.cameras[index], self._camera_ids[index]
        self._context.make_current(camera.height, camera.width)
        self._update_scene(data, camera, camera_id)
        viewport = mujoco.MjrRect(0, 0, camera.width, camera.height)
        pixels = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        mujoco.mjr_render(viewport, self._context.scene, self._context.mjr)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context.mjr)
        # OpenGL's rows go from bottom to top. Some scenes mount cameras upside down: turn their pictures by 180 degrees,
        # which leaves the rows and mirrors the columns.
        upright = pixels[:, ::-1] if _is_upside_down(self.model, camera_id) else pixels[::-1]
        return np.ascontiguousarray(upright)

    def _update_scene(self, data: mujoco.MjData, camera: Camera, camera_id: int) -> None:
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = camera_id
        scene = self._context.scene
        # Field of view and groups are fields of the model, which belongs to the simulation: changed for the moment only.
        fovy, groups = self.model.cam_fovy[camera_id], self.model.geom_group.copy()
        sensor_size = self.model.cam_sensorsize[camera_id].copy()
        try:
            if camera.fovy is not None:
                self.model.cam_fovy[camera_id] = camera.fovy
                self.model.cam_sensorsize[camera_id] = 0  # which would have the last word
            if self.quality != "full":  # in full quality what is out of view may still throw a shadow into it
                hidden = outside_view(self.model, data, camera_id, camera.width / camera.height)
                self.model.geom_group[hidden] = _HIDDEN_GROUP
            mujoco.mjv_updateScene(self.model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
        finally:
            self.model.cam_fovy[camera_id] = fovy
            self.model.cam_sensorsize[camera_id] = sensor_size
            self.model.geom_group[:] = groups
        for flag in _EXPENSIVE_FLAGS:
            scene.flags[flag] = self.quality == "full"


def _camera_id(model: mujoco.MjModel, name: str) -> int:
    camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if camera_id < 0:
        known = ", ".join(repr(model.camera(i).name) for i in range(model.ncam))
        raise ValueError(f"Unknown camera {name!r}, this scene has {known or 'none'}")
    return int(camera_id)


def _is_upside_down(model: mujoco.MjModel, camera_id: int) -> bool:
    """Whether a camera's up axis points down in the model's initial pose: not the current one, lest a moving view flip."""
    up = model.cam_mat0[camera_id].reshape(3, 3)[:, 1]
    return bool(up[2] < 0)

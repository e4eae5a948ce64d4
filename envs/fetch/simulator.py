"""Building one Fetch simulator: the only place that knows how Gymnasium-Robotics wants to be set up."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cameras import MARKER_RADIUS, SLIDE_VIEWS, VIEWS, View
from .tasks import TASKS

if TYPE_CHECKING:
    import mujoco

# The mixin needs no Gymnasium-Robotics before it is mixed in.
_Simulator: Any = object


class FetchSimulator(_Simulator):
    """Mixed into a class of Gymnasium-Robotics: our cameras, and a beginning that is given instead of drawn."""

    views = VIEWS
    initial_qpos: Any  # joint positions by name, then all of them as an array

    def _initialize_simulation(self) -> None:
        """``MujocoRobotEnv``'s, with another model of the same numbers."""
        import mujoco

        self.model = _seen_from(self.fullpath, self.views)
        self.data = mujoco.MjData(self.model)
        self._model_names = self._utils.MujocoModelNames(self.model)
        self._env_setup(initial_qpos=self.initial_qpos)
        self.initial_time = self.data.time
        self.initial_qpos = np.copy(self.data.qpos)
        self.initial_qvel = np.copy(self.data.qvel)

    def begin(self, goal: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """
        What ``reset()`` does, for a goal of ours.

        :param goal: See :func:`sample_fetch_goals`
        :return: Gymnasium-Robotics' observation, with its keys
        """
        import mujoco

        mujoco.mj_resetData(self.model, self.data)
        self.data.time = self.initial_time
        self.data.qpos[:] = self.initial_qpos
        self.data.qvel[:] = self.initial_qvel
        gripper = self.initial_gripper_xpos
        self.goal = gripper + goal[2:]
        if self.has_object:
            address = self.model.joint("object0:joint").qposadr[0]
            self.data.qpos[address : address + 2] = gripper[:2] + goal[:2]
            self.goal[2] = self.height_offset + goal[4]
        # Its render() moves the marker to the goal at every picture; ours draws what it finds.
        marker = self.model.site("target0")
        marker.pos = self.goal - self.model.body_pos[marker.bodyid[0]]
        mujoco.mj_forward(self.model, self.data)
        observation: dict[str, NDArray[np.float64]] = self._get_obs()
        return observation


class _SlideSimulator(FetchSimulator):
    views = SLIDE_VIEWS


def build_simulator(task: str) -> FetchSimulator:
    """
    Create the state-only simulator of a task.

    :param task: Name of a Fetch task
    :return: Gymnasium-Robotics' environment, to be used by ``begin()`` and ``step()``; its reward is minus the distance
    :raises ImportError: If Gymnasium-Robotics is not installed
    """
    module, name = TASKS[task].simulator
    mixin = _SlideSimulator if module == "slide" else FetchSimulator
    simulator: FetchSimulator = type(name, (mixin, _import(module, name)), {})(reward_type="dense")
    return simulator


def _import(module: str, name: str) -> Any:
    try:
        # Its first import prints news of its other environments.
        with redirect_stderr(io.StringIO()):
            return getattr(import_module(f"gymnasium_robotics.envs.fetch.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError("Gymnasium-Robotics is not installed: pip install 'sb3-vla[fetch]'") from error


def _seen_from(path: str, views: Mapping[str, View]) -> mujoco.MjModel:
    """
    The model of an XML file, with cameras added and a larger marker, and without the green crosshair that shows where the
    gripper is led: another picture of the same physics.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(path)
    for name, view in views.items():
        camera = spec.worldbody.add_camera(name=name, pos=view.position, fovy=view.fovy)
        camera.alt.type, camera.alt.xyaxes = mujoco.mjtOrientation.mjORIENTATION_XYAXES, view.axes
    for geom in (geom for body in spec.bodies if body.mocap for geom in body.geoms):
        geom.rgba = np.zeros(4)
    for marker in (site for site in spec.sites if site.name == "target0"):
        marker.size = np.full(3, MARKER_RADIUS)
    return spec.compile()

"""What the environments of suites have in common whose tasks are MuJoCo simulators."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..task_env import MultiTaskEnv, Outcome
from .camera import Camera
from .physics_state import get_physics, get_plain_attributes, set_physics, set_plain_attributes

if TYPE_CHECKING:
    import mujoco

    from .rendering import SceneRenderer

# Those of MuJoCo's warnings (mjtWarning) that say so: bad positions, velocities, accelerations or controls; the others are
# of its memory. Not by name, as importing this package imports no MuJoCo
_UNSTABLE = slice(4, 8)


class Simulator(Protocol):
    """What plays one task: an environment with MuJoCo's model and state."""

    model: Any
    data: Any

    def close(self) -> None:
        """Let go of it."""


SimulatorT = TypeVar("SimulatorT", bound=Simulator)


class MujocoTaskEnv(MultiTaskEnv, Generic[SimulatorT]):
    """
    A :class:`MultiTaskEnv` with a simulator a task, which is built when the task is first drawn, and kept.

    A simulation that MuJoCo warns has become unstable ends the episode, without success or reward in that step: MuJoCo puts
    everything back to its initial state then, which some tasks take for success.

    A subclass sets :attr:`video_camera` and implements, beside the methods of :class:`MultiTaskEnv` except for
    :meth:`picture` and :meth:`_advance`, :meth:`_build_simulator` and :meth:`_simulate`. It plays on :attr:`_simulator`, that
    of the current task, whose ``data`` an episode begins with resetting (``mj_resetData``).
    """

    #: What a human sees the scene through
    video_camera: Camera

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._simulators: dict[str, SimulatorT] = {}
        self._renderers: dict[str, SceneRenderer] = {}

    @abstractmethod
    def _build_simulator(self) -> SimulatorT:
        """
        :return: A new simulator of ``self.task``
        """

    @abstractmethod
    def _simulate(self, action: Any) -> Outcome:
        """
        Take a primitive step.

        :param action: Of the action space's type; a ``Box``'s finite and within its bounds
        :return: What it led to
        """

    @property
    def model(self) -> mujoco.MjModel:
        """The MuJoCo model of the current task."""
        model: mujoco.MjModel = self._simulator.model
        return model

    @property
    def data(self) -> mujoco.MjData:
        """The MuJoCo state of the current task."""
        data: mujoco.MjData = self._simulator.data
        return data

    def _advance(self, action: Any) -> Outcome:
        outcome = self._simulate(action)
        if self.data.warning.number[_UNSTABLE].any():
            return Outcome(success=False, reward=0.0, terminated=True)
        return outcome

    def _get_episode(self) -> dict[str, Any]:
        return {"simulator": get_plain_attributes(self._simulator), "physics": get_physics(self.model, self.data)}

    def _set_episode(self, episode: dict[str, Any]) -> None:
        self._begin()  # what follows from the goal, such as the places of bodies in the model
        set_plain_attributes(self._simulator, episode["simulator"])
        set_physics(self.model, self.data, episode["physics"])

    def picture(self) -> NDArray[np.uint8]:
        """
        Draw the scene for a human, whatever the render mode.

        :return: Upright RGB picture, as large as :attr:`video_camera` says, uint8
        :raises RuntimeError: If no OpenGL library is installed
        """
        if self.task not in self._renderers:
            from .rendering import SceneRenderer  # needs OpenGL, which environments without pictures do not

            self._renderers[self.task] = SceneRenderer(self.model, [self.video_camera], "plain")
        return self._renderers[self.task].render(self.data)

    def close(self) -> None:
        """Let go of the simulators."""
        for simulator in self._simulators.values():
            simulator.close()
        self._simulators.clear()
        self._renderers.clear()
        super().close()

    @property
    def _simulator(self) -> SimulatorT:
        if self.task not in self._simulators:
            self._simulators[self.task] = self._build_simulator()
        return self._simulators[self.task]

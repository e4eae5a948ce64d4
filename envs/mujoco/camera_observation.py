"""Pictures as observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from ..wrappers.shallow_copy import NoShallowCopy
from .camera import CameraLike, Quality, as_cameras

if TYPE_CHECKING:
    from .rendering import SceneRenderer


# Whose renderers are kept: a suite has a model for each task, and an environment may make a new one with each reset
_MOST_MODELS = 64


class CameraObservation(NoShallowCopy, gym.ObservationWrapper, RecordConstructorArgs):
    """
    Adds a picture per camera to a dictionary observation: ``image`` for the first one, ``image_<camera>`` for the others.

    The environment must have MuJoCo's ``model`` and ``data`` as attributes; they may change with each reset. Wrap it
    around :class:`ChunkedActionWrapper`, not inside: then only the end of a chunk is drawn, not every step.

    Example:
        >>> from sb3_vla_envs import CameraObservation, find_suite
        >>> simulation = find_suite("window-open-v3").make_simulation("window-open-v3")
        >>> env = CameraObservation(simulation, cameras=["corner4", "gripperPOV"])
        >>> obs, info = env.reset(seed=0)
        >>> obs["image"].shape, obs["image_gripperPOV"].dtype
        ((96, 96, 3), dtype('uint8'))

    :param env: The environment to wrap
    :param cameras: :class:`Camera` objects, names of cameras, or mappings with a camera's fields; by default those of the
        environment's suite
    :param quality: ``"fast"``, ``"plain"`` or ``"full"``, see :class:`SceneRenderer`
    :raises TypeError: If the environment's observation is not a dictionary
    :raises ValueError: If a camera or the quality is unknown, none is given, or the environment has no MuJoCo scene
    :raises RuntimeError: If no OpenGL library is installed
    """

    def __init__(self, env: gym.Env, cameras: Sequence[CameraLike] | None = None, quality: Quality = "fast") -> None:
        if not isinstance(env.observation_space, spaces.Dict):
            raise TypeError(f"CameraObservation adds to a Dict observation space, got {env.observation_space}")
        self.cameras = as_cameras(_suites_cameras(env) if cameras is None else cameras)
        # Recorded as plain dictionaries, so that a spec can be written as JSON.
        RecordConstructorArgs.__init__(self, cameras=[asdict(camera) for camera in self.cameras], quality=quality)
        gym.ObservationWrapper.__init__(self, env)
        if not (env.has_wrapper_attr("model") and env.has_wrapper_attr("data")):
            raise ValueError(f"Cameras need MuJoCo's `model` and `data` as attributes of the environment, {env} has none")
        self.quality = quality
        self._keys = ["image", *(f"image_{camera.name}" for camera in self.cameras[1:])]
        pictures = {
            key: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
            for key, camera in zip(self._keys, self.cameras, strict=True)
        }
        self.observation_space = spaces.Dict({**pictures, **env.observation_space.spaces})
        self._renderers: dict[int, SceneRenderer] = {}
        self._renderer()  # here, so that an unknown camera or a missing library shows before any work is lost

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """
        Add the pictures.

        :param observation: The wrapped environment's observation
        :return: The same with one ``(height, width, 3)`` uint8 picture a camera
        """
        renderer, data = self._renderer(), self.env.get_wrapper_attr("data")
        pictures = {key: renderer.render(data, index) for index, key in enumerate(self._keys)}
        return {**pictures, **observation}

    def close(self) -> None:
        """Let go of the renderers and close the wrapped environment."""
        self._renderers.clear()
        super().close()

    def _renderer(self) -> SceneRenderer:
        from .rendering import SceneRenderer  # imports MuJoCo, which the other wrappers do not need

        model = self.env.get_wrapper_attr("model")
        # A renderer holds its model, so no other can get the same id while it is here.
        renderer = self._renderers.pop(id(model), None) or SceneRenderer(model, self.cameras, self.quality)
        self._renderers[id(model)] = renderer  # as the latest
        if len(self._renderers) > _MOST_MODELS:
            del self._renderers[next(iter(self._renderers))]
        return renderer


def _suites_cameras(env: gym.Env) -> Sequence[CameraLike]:
    cameras = env.get_wrapper_attr("suite").wrapping.cameras if env.has_wrapper_attr("suite") else None
    if cameras is None:
        raise ValueError(f"{env} has no cameras of its own: name some, as in CameraObservation(env, cameras=['top'])")
    return cameras  # type: ignore[no-any-return]

"""What a camera is and how its pictures may be drawn, without any rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..argument_checks import Limits, check_count

Quality = Literal["fast", "plain", "full"]
QUALITIES: tuple[Quality, ...] = ("fast", "plain", "full")


@dataclass(frozen=True)
class Camera:
    """
    A view of the scene.

    :param name: Name of a camera of the MuJoCo model
    :param height: Height of the picture in pixels
    :param width: Width of the picture in pixels
    :param fovy: Vertical field of view in degrees, ``None`` for the model's own
    :raises TypeError: If one of these must be a number and is not
    :raises ValueError: If a size or the field of view is out of range
    """

    name: str
    height: int = 96
    width: int = 96
    fovy: float | None = None

    def __post_init__(self) -> None:
        check_count(f"Camera {self.name!r}: height", self.height)
        check_count(f"Camera {self.name!r}: width", self.width)
        Limits(above=0, below=180, others=(None,)).check(f"Camera {self.name!r}: fovy (degrees)", self.fovy)


CameraLike = Camera | str | Mapping[str, Any]


def as_cameras(cameras: Sequence[CameraLike]) -> tuple[Camera, ...]:
    """
    Cameras from any description of them, so that a YAML file or an environment's spec can hold them.

    :param cameras: :class:`Camera` objects, names of cameras, or mappings with a camera's fields
    :return: The cameras
    :raises TypeError: If a description has unknown fields or is of another type
    :raises ValueError: If there is no camera, or one twice
    """
    if isinstance(cameras, (str, Mapping, Camera)):
        raise TypeError(f"cameras must be a list of cameras, got {cameras!r}: put it in a list")
    result = tuple(_as_camera(camera) for camera in cameras)
    names = [camera.name for camera in result]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"At least one camera is needed, and each only once, got {names}")
    return result


def _as_camera(camera: CameraLike) -> Camera:
    if isinstance(camera, Camera):
        return camera
    if isinstance(camera, str):
        return Camera(camera)
    if isinstance(camera, Mapping):
        return Camera(**camera)
    raise TypeError(f"A camera is a Camera, a name or a mapping with name, height, width and fovy, got {camera!r}")

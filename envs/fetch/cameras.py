"""What is seen of the Fetch scenes: where we put cameras, since their own show the floor, or the arm from above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """
    A camera at a fixed place.

    :param position: Of the camera, in metres
    :param target: What it looks at, the middle of its picture
    :param fovy: Vertical field of view in degrees
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float

    @property
    def axes(self) -> NDArray[np.float64]:
        """Right and up in the picture, as MuJoCo's ``xyaxes``, shape ``(6,)``."""
        forward = np.subtract(self.target, self.position)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        up = np.cross(right, forward)
        return np.concatenate([right / np.linalg.norm(right), up / np.linalg.norm(up)])


# From afar, with a narrow field: every goal and all of the gripper's way to it just fit in. In ``scene`` the robot faces us;
# ``side`` looks along the table from its right.
VIEWS = {
    "scene": View(position=(2.6, 0.75, 1.3), target=(1.34, 0.75, 0.61), fovy=27.0),
    "side": View(position=(1.34, -0.5, 0.95), target=(1.34, 0.75, 0.62), fovy=27.0),
}
# The puck slides on a table twice as long.
SLIDE_VIEWS = {
    "scene": View(position=(2.8, 0.75, 1.8), target=(1.28, 0.75, 0.44), fovy=24.0),
    "side": View(position=(1.28, -0.9, 1.4), target=(1.28, 0.75, 0.46), fovy=33.0),
}

# In metres, instead of 0.02: 10 instead of 6 pixels wide at 96 pixels. A small policy finds it sooner: after 600 batches of 64
# pictures of reach, the default backbone explains 98 % of the variance of goals, and 52 % with the smaller one (one seed).
MARKER_RADIUS = 0.035

"""How an environment is wrapped for a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .argument_checks import FRACTION, check_choice, check_chunk_size, check_count
from .mujoco.camera import QUALITIES, CameraLike, Quality, as_cameras
from .task_env import TRAINING_ONLY


@dataclass(frozen=True, kw_only=True)
class WrappingSettings:
    """
    What stands between a simulation and a policy: chunks, cameras, the instruction.

    :param chunk_size: Number of actions in a chunk
    :param n_action_steps: How many of them are executed, all by default
    :param gamma: Discount factor per step inside a chunk; must be that of the algorithm
    :param cameras: The views of a MuJoCo scene, see :class:`CameraObservation`; by default the suite's own
    :param quality: ``"fast"``, ``"plain"`` or ``"full"`` rendering, see :class:`SceneRenderer`
    :param max_instruction_bytes: Length of the instruction observation
    :raises TypeError: If a setting is of another type
    :raises ValueError: If a setting is not one of those allowed
    """

    chunk_size: int = 8
    n_action_steps: int | None = None
    gamma: float = field(default=0.99, metadata=TRAINING_ONLY)
    cameras: Sequence[CameraLike] | None = None
    quality: Quality = "fast"
    max_instruction_bytes: int = 64

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size, self.n_action_steps)
        FRACTION.check("gamma", self.gamma)
        if self.cameras is not None:
            as_cameras(self.cameras)
        check_choice("quality", self.quality, QUALITIES)
        check_count("max_instruction_bytes", self.max_instruction_bytes)

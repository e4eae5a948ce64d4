"""Suites of tasks for vision-language-action policies, and wrappers for action chunks: Gymnasium, NumPy and MuJoCo only."""

from typing import TYPE_CHECKING, Any

from .mujoco.gl_backend import configure_gl_backend, select_gl_backend

configure_gl_backend()  # before anything imports MuJoCo, which reads the choice only then

from .collection import ExpertFailure, collect_demonstrations  # noqa: E402
from .demonstration_file import load_demonstrations, save_demonstrations  # noqa: E402
from .demonstrations import Demonstration  # noqa: E402
from .fetch.env import FetchEnv  # noqa: E402
from .fetch.goals import sample_fetch_goals  # noqa: E402
from .fetch.registration import register_fetch  # noqa: E402
from .gym_suite import GymSuite, GymTask  # noqa: E402
from .lerobot.reader import read_lerobot  # noqa: E402
from .lerobot.writer import write_lerobot  # noqa: E402
from .make import make_env_fns, make_vla_env  # noqa: E402
from .metaworld.env import MetaWorldEnv  # noqa: E402
from .metaworld.goals import sample_goals  # noqa: E402
from .metaworld.instructions import INSTRUCTIONS  # noqa: E402
from .metaworld.registration import register_metaworld  # noqa: E402
from .metaworld.suite import DEFAULT_CAMERAS  # noqa: E402
from .metaworld.tasks import MT10, MT50  # noqa: E402
from .mujoco.camera import Camera  # noqa: E402
from .mujoco.camera_observation import CameraObservation  # noqa: E402
from .suite import Suite, find_suite, get_suite, register_suite, registered_suites, resolve_tasks  # noqa: E402
from .task_env import MultiTaskEnv, Outcome, SimulationSettings  # noqa: E402
from .wrappers.chunked_action import ChunkedActionWrapper  # noqa: E402
from .wrappers.episode_caption import EpisodeCaption  # noqa: E402
from .wrappers.instruction_observation import InstructionObservation, decode_instruction, encode_instruction  # noqa: E402
from .wrappers.observation_keys import ObservationKeys  # noqa: E402
from .wrappers.picture_observation import PictureObservation  # noqa: E402
from .wrapping import WrappingSettings  # noqa: E402

if TYPE_CHECKING:
    from .mujoco.rendering import SceneRenderer

register_metaworld()
register_fetch()


def __getattr__(name: str) -> Any:
    # On first use only: it imports MuJoCo, which this package alone shall not.
    if name == "SceneRenderer":
        from .mujoco.rendering import SceneRenderer

        return SceneRenderer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DEFAULT_CAMERAS",
    "INSTRUCTIONS",
    "MT10",
    "MT50",
    "Camera",
    "CameraObservation",
    "ChunkedActionWrapper",
    "Demonstration",
    "EpisodeCaption",
    "ExpertFailure",
    "FetchEnv",
    "GymSuite",
    "GymTask",
    "InstructionObservation",
    "MetaWorldEnv",
    "MultiTaskEnv",
    "ObservationKeys",
    "Outcome",
    "PictureObservation",
    "SceneRenderer",
    "SimulationSettings",
    "Suite",
    "WrappingSettings",
    "collect_demonstrations",
    "decode_instruction",
    "encode_instruction",
    "find_suite",
    "get_suite",
    "load_demonstrations",
    "make_env_fns",
    "make_vla_env",
    "read_lerobot",
    "register_suite",
    "registered_suites",
    "resolve_tasks",
    "sample_fetch_goals",
    "sample_goals",
    "save_demonstrations",
    "select_gl_backend",
    "write_lerobot",
]

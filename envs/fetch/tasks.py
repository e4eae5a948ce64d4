"""The Fetch tasks of Gymnasium-Robotics, and what of their make-up matters before one is simulated."""

from __future__ import annotations

from dataclasses import dataclass

# Spelled out, not read from Gymnasium-Robotics, so that listing tasks and drawing goals does not import a simulator.
# A test holds all of it equal to the simulators' own.


@dataclass(frozen=True)
class FetchTask:
    """
    One task. Lengths are in metres.

    :param simulator: Module in ``gymnasium_robotics.envs.fetch`` and class of its simulator
    :param has_object: Whether there is a block or a puck; otherwise the gripper itself shall reach the goal
    :param object_range: Farthest that the object begins from the gripper, along x and y
    :param target_range: Farthest that the goal is from ``target_offset``, along each axis
    :param target_offset: Where goals lie around, along x, seen from where the gripper begins
    :param target_in_the_air: Whether every other goal floats above the table
    """

    simulator: tuple[str, str]
    has_object: bool = True
    object_range: float = 0.15
    target_range: float = 0.15
    target_offset: float = 0.0
    target_in_the_air: bool = False


TASKS: dict[str, FetchTask] = {
    "FetchReach-v4": FetchTask(("reach", "MujocoFetchReachEnv"), has_object=False, target_in_the_air=True),
    "FetchPush-v4": FetchTask(("push", "MujocoFetchPushEnv")),
    "FetchSlide-v4": FetchTask(("slide", "MujocoFetchSlideEnv"), object_range=0.1, target_range=0.3, target_offset=0.4),
    "FetchPickAndPlace-v4": FetchTask(("pick_and_place", "MujocoFetchPickAndPlaceEnv"), target_in_the_air=True),
}

# The same for all: how near counts as there, and how far from the gripper the object begins at least
DISTANCE_THRESHOLD = 0.05
MIN_OBJECT_DISTANCE = 0.1
# How high goals may float, for objects; the gripper's goals are as far above and below it as to the sides
MAX_TARGET_HEIGHT = 0.45

"""Scripted experts for Fetch tasks. None has a memory: what it does follows from the state, so that it recovers from noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# An action of 1 moves the gripper by 3.3 cm in a step: this one halves the distance in two steps,
_GAIN = 10.0
# and this one in five. There in two or three, it would show hardly more than its start, from which a policy does not learn to
# find the goal in the picture: that takes seeing how actions change with the place of the hand.
_REACH_GAIN = 4.0
# How far a block or the fingers' tips must be apart in height to pass each other, and how steeply the gripper comes down
_CLEARANCE = 0.08
_SLOPE = 2.0
# Where the closed gripper touches the block that it pushes, and how far from the line it may be
_CONTACT = 0.055
_ALIGNED = 0.02
# The block is between the fingers, or held by them (it is 5 cm wide)
_BETWEEN = 0.02
_HELD_OPENING = 0.06
_OPEN, _CLOSE = 1.0, -1.0


def has_expert(task: str) -> bool:
    """
    :param task: Name of a Fetch task
    :return: Whether :func:`expert_action` can do it
    """
    return task in _EXPERTS


def expert_action(task: str, observation: Mapping[str, Vector]) -> Vector:
    """
    What to do next.

    :param task: Name of a Fetch task
    :param observation: Gymnasium-Robotics', with its keys
    :return: The action, shape ``(4,)``, not clipped
    :raises NotImplementedError: If there is no expert for the task
    """
    if not has_expert(task):
        raise NotImplementedError(f"There is no expert for {task!r}, only for {', '.join(_EXPERTS)}")
    return _EXPERTS[task](observation["observation"], observation["desired_goal"])


def _reach(observation: Vector, goal: Vector) -> Vector:
    return np.append(_REACH_GAIN * (goal - observation[:3]), 0.0)


def _push(observation: Vector, goal: Vector) -> Vector:
    """From behind the block, seen from the goal, along the line to the goal; over the block to get there."""
    gripper, block = observation[:3], observation[3:6]
    way = (goal - block) * [1.0, 1.0, 0.0]
    direction = way / max(float(np.linalg.norm(way)), 1e-6)
    from_block = (gripper - block) * [1.0, 1.0, 0.0]
    along = float(from_block @ direction)
    beside = float(np.linalg.norm(from_block - along * direction))
    if along < 0 and beside < _ALIGNED and gripper[2] < block[2] + 0.5 * _CLEARANCE:
        return _move(gripper, goal - 0.5 * _CONTACT * direction)
    return _come_down(gripper, block - _CONTACT * direction, block)


def _pick_and_place(observation: Vector, goal: Vector) -> Vector:
    """Down upon the block with open fingers, close them, carry it to the goal."""
    gripper, block, opening = observation[:3], observation[3:6], observation[9:11].sum()
    if np.abs(gripper - block).max() > _BETWEEN:
        return _come_down(gripper, block, block, _OPEN)
    if opening > _HELD_OPENING:
        return _move(gripper, gripper, _CLOSE)
    return _move(gripper, goal + gripper - block, _CLOSE)


_EXPERTS: dict[str, Callable[[Vector, Vector], Vector]] = {
    "FetchReach-v4": _reach,
    "FetchPush-v4": _push,
    "FetchPickAndPlace-v4": _pick_and_place,
}


def _move(gripper: Vector, target: Vector, fingers: float = 0.0) -> Vector:
    return np.append(_GAIN * (target - gripper), fingers)


def _come_down(gripper: Vector, target: Vector, block: Vector, fingers: float = 0.0) -> Vector:
    """Move to a place on the table from above, the lower the nearer, without touching the block on the way."""
    distance = float(np.linalg.norm((target - gripper)[:2]))
    above = target + np.array([0.0, 0.0, min(_CLEARANCE, _SLOPE * distance)])
    near_block = np.linalg.norm((block - gripper)[:2]) < _CLEARANCE
    if near_block and gripper[2] < above[2] - 0.5 * _CLEARANCE:
        above[:2] = gripper[:2]  # up first
    return _move(gripper, above, fingers)

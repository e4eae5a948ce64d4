"""How far an episode has come, in primitive steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def task_name(info: Mapping[str, Any]) -> str:
    """
    :param info: Of a reset or a step
    :return: The task in it as text, whatever it is there; "" where there is none
    """
    return as_task_name(info.get("task"))


def as_task_name(task: Any) -> str:
    """
    :param task: A task's name, or a number or anything else that stands for it
    :return: The same as text, "" for ``None``
    """
    return "" if task is None else str(task)


@dataclass
class EpisodeProgress:
    """
    Follows an episode by the info of its steps: a chunk counts as the steps that it executed (``chunk_length``, 1 where it is
    absent), and once ``is_success`` is true the episode has succeeded, after ``steps_to_success`` steps if the info says so,
    else after those taken until then. What it says is held within 1 and the steps taken, as an environment may count otherwise
    (repeated actions, say).

    :param steps: Primitive steps taken
    :param success: Whether it has succeeded, ``None`` where that is not reported
    :param steps_to_success: Primitive steps until success, ``None`` without
    """

    steps: int = 0
    success: bool | None = None
    steps_to_success: int | None = None

    def add(self, info: Mapping[str, Any]) -> None:
        """
        :param info: Of the next step, or chunk
        """
        self.steps += int(info.get("chunk_length", 1))
        if "is_success" in info:
            self.success = bool(self.success or info["is_success"])
        if self.success and self.steps_to_success is None:
            reported = info.get("steps_to_success")
            self.steps_to_success = self.steps if reported is None else min(max(int(reported), 1), self.steps)

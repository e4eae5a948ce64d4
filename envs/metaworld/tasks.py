"""The MetaWorld v3 tasks and how a user names a set of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# Spelled out, not read from MetaWorld, so that listing tasks and registering ids does not import a simulator.
# A test holds them equal to MetaWorld's own lists.
MT10: tuple[str, ...] = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

MT50: tuple[str, ...] = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "hand-insert-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "hammer-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "plate-slide-v3",
    "plate-slide-side-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "soccer-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "push-v3",
    "push-wall-v3",
    "push-back-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-open-v3",
    "window-close-v3",
)

BENCHMARKS: dict[str, tuple[str, ...]] = {"MT10": MT10, "MT50": MT50}


def resolve_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """
    Turn any way of naming tasks into a tuple of task names, without duplicates and in the order given.

    :param tasks: A task (``"window-open-v3"``), a benchmark (``"MT10"``, ``"MT50"``), several of them separated by
        commas, or a sequence of such names
    :return: The task names
    :raises TypeError: If ``tasks`` is neither a string nor a sequence of strings
    :raises ValueError: If there is no task, or one that MetaWorld does not have
    """
    names: list[str] = []
    for entry in [tasks] if isinstance(tasks, str) else tasks:
        if not isinstance(entry, str):
            raise TypeError(f"A task is named by a string, got {entry!r} of type {type(entry).__name__}")
        names.extend(name.strip() for name in entry.split(",") if name.strip())
    resolved: dict[str, None] = {}
    for name in names:
        resolved.update(dict.fromkeys(BENCHMARKS.get(name) or (_known(name),)))
    if not resolved:
        raise ValueError(f"No task given (got {tasks!r}): name at least one, for example 'window-open-v3' or 'MT10'")
    return tuple(resolved)


def _known(name: str) -> str:
    if name in MT50:
        return name
    matches = difflib.get_close_matches(name, [*BENCHMARKS, *MT50], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in matches)}?" if matches else "see sb3_vla_envs.MT50."
    raise ValueError(f"Unknown task {name!r}; {hint} Allowed are the 50 MetaWorld v3 tasks and 'MT10', 'MT50'.")

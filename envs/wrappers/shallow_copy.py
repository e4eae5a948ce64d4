"""Wrappers that are not copied without what they wrap."""

from __future__ import annotations

from typing import NoReturn


class NoShallowCopy:
    """Mixed into a wrapper: ``copy.copy`` would make two of it around one environment, each of which moves the other on."""

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"copy.copy of {type(self).__name__} would share the environment that it wraps: make another environment with the "
            "same arguments instead, or take copy.deepcopy where the environment can be copied"
        )

"""How far something long has come: in place on a terminal, a line a minute in a file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

_SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """
    Shows on standard error how much is done, whatever figures tell how it goes, and the time left. A terminal or notebook gets
    a bar that changes in place; anything else (a log file, a scheduler) a line a minute, and one at the end of what took more.

    Example:
        >>> from sb3_vla_envs.progress import Progress
        >>> with Progress(2, "evaluate", "episode", shown=False) as progress:
        ...     progress.update(success=1.0, steps=42)

    :param total: How much there is to do
    :param what: What is done
    :param unit: What is counted, in the singular
    :param shown: Whether to show anything
    :param done: How much of it was done before
    """

    def __init__(self, total: int, what: str, unit: str, shown: bool = True, done: int = 0) -> None:
        self.total = total
        self.what = what
        self.unit = unit
        self.done = self._done_before = done
        self._is_shown = shown
        self._figures: dict[str, Any] = {}
        self._began = self._last = time.monotonic()
        self._bar = _bar(total, what, unit, done) if shown and _is_live(sys.stderr) else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last > self._began and error is None:
            self._write()

    def update(self, n: int = 1, **figures: Any) -> None:
        """
        :param n: How much more is done
        :param figures: How it goes, numbers by name, which stay until they are given again; ``None`` where there is none
        """
        self.done += n
        self._figures.update({name: value for name, value in figures.items() if value is not None})
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.update(n)
        elif self._is_shown and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._write()

    def _text(self) -> str:
        return ", ".join(f"{name} {_short(value)}" for name, value in self._figures.items())

    def _write(self) -> None:
        elapsed, done = time.monotonic() - self._began, self.done - self._done_before
        left = f"{_duration(elapsed * max(0, self.total - self.done) / done)} left" if 0 < done else ""
        parts = [f"{self.done}/{self.total} {_plural(self.unit)}", self._text(), f"{_duration(elapsed)} so far", left]
        print(f"{self.what}: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)


def _is_live(stream: TextIO) -> bool:
    return stream.isatty() or "ipykernel" in sys.modules


def _bar(total: int, what: str, unit: str, done: int) -> Any:
    from tqdm.auto import tqdm  # here: environments alone do not need it

    return tqdm(total=total, desc=what, unit=unit, initial=done, dynamic_ncols=True)


def _short(value: Any) -> str:
    return str(value) if isinstance(value, int | str) else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"

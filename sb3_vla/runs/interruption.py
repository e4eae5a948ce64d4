"""Signals that ask a command to stop: Ctrl-C, a terminal that closes, a scheduler that wants its machine back."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """
    A signal asked for a stop.

    :param number: Which signal
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        #: As shells have it
        self.exit_status = 128 + number


class StopRequest:
    """Whether a signal has asked for a stop, and which one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """
    Within it, each of the signals raises :class:`Interrupted`, so that worker processes are ended and partial files removed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    with _handled_by(stop):
        yield


@contextmanager
def stopping_later(what_comes_first: str) -> Iterator[StopRequest]:
    """
    Within it, the first signal is only noted, for what is in hand to be finished, and a second one raises
    :class:`Interrupted` at once.

    :param what_comes_first: What will be done before the stop, for the user
    :return: Context manager that gives the note
    :raises Interrupted: At its end, if there was a signal
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise Interrupted(signal.Signals(number))
        request.signal = signal.Signals(number)
        # Not print: the signal may have come in the middle of one
        os.write(2, f"\n{request.signal.name}: {what_comes_first}; a second signal stops at once\n".encode())

    with _handled_by(note):
        yield request
    if request.signal is not None:
        raise Interrupted(request.signal)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """
    :param handler: Of the signals, but for those that the process was told to ignore, as ``nohup`` does
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handles in before.items():
        if handles != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handles in before.items():
            signal.signal(number, handles)

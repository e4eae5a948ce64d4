import io
import sys

import pytest

from sb3_vla_envs import progress
from sb3_vla_envs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the beginning, for a test to set."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def stderr(monkeypatch):
    def put(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(clock, stderr):
    log = stderr(io.StringIO())
    with Progress(1000, "train", "chunk") as bar:
        for _ in range(1000):
            clock[0] += 0.2
            bar.update(success=0.5, steps=41.26)
    lines = log.getvalue().splitlines()
    assert lines == [
        "train: 300/1000 chunks, success 0.5, steps 41.3, 1 min 00 s so far, 2 min 20 s left",
        "train: 600/1000 chunks, success 0.5, steps 41.3, 2 min 00 s so far, 1 min 20 s left",
        "train: 900/1000 chunks, success 0.5, steps 41.3, 3 min 00 s so far, 20 s left",
        "train: 1000/1000 chunks, success 0.5, steps 41.3, 3 min 20 s so far, 0 s left",
    ]


def test_what_takes_less_than_a_minute_says_nothing(clock, stderr):
    log = stderr(io.StringIO())
    with Progress(3, "film", "task") as bar:
        clock[0] += 50
        bar.update()
    assert log.getvalue() == ""


def test_time_left_is_that_of_what_is_not_done_yet_and_nothing_follows_an_error(clock, stderr):
    log = stderr(io.StringIO())
    with pytest.raises(KeyError), Progress(400, "SFT", "batch", done=200) as bar:
        clock[0] += 3 * 3600
        bar.update(150, success=None)
        raise KeyError
    assert log.getvalue() == "SFT: 350/400 batches, 3 h 00 min so far, 1 h 00 min left\n"


def test_where_more_is_done_than_was_to_be_nothing_is_left(clock, stderr):
    log = stderr(io.StringIO())
    with Progress(100, "train", "chunk") as bar:
        clock[0] += 120
        bar.update(104)  # whole rollouts
    assert log.getvalue().splitlines()[-1] == "train: 104/100 chunks, 2 min 00 s so far, 0 s left"


def test_a_terminal_gets_a_bar_in_one_line(stderr):
    terminal = stderr(Terminal())
    with Progress(4, "evaluate", "episode") as bar:
        for _ in range(4):
            bar.update(success=0.75)
    assert "4/4" in terminal.getvalue() and "success 0.75" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


def test_nothing_is_shown_unasked(clock, stderr):
    for stream in (stderr(io.StringIO()), stderr(Terminal())):
        with Progress(2, "evaluate", "episode", shown=False) as bar:
            clock[0] += 120
            bar.update(2)
        assert stream.getvalue() == ""

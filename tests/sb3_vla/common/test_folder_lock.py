import os
import signal
import subprocess
import sys

import pytest

from sb3_vla.common.folder_lock import LOCK_FILE, locked

pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from sb3_vla.common.folder_lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), *sys.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_named_and_when_it_was_killed_the_folder_is_free(tmp_path, holder):
    with pytest.raises(RuntimeError, match=rf"{tmp_path}' is in use by process {holder.pid}: wait until it has ended"):
        locked(tmp_path).__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert not list(tmp_path.iterdir())


def test_it_can_be_locked_once_at_a_time_and_is_made_where_it_is_missing(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with locked(folder), pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"), locked(folder):
            pass
    assert not list(folder.iterdir())


def test_two_folders_are_two(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass

"""A disk that gets full: what was saved before stays, nothing half written takes the rest. Needs root, for a small tmpfs."""

import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reading import check_written
from run_settings import ENVIRONMENT, HERE
from tally import Tally


def fill_disks(n: int, seed: int) -> Tally | None:
    """
    :param n: Disks
    :param seed: Of their sizes
    :return: What came of them, ``None`` where nothing can be mounted
    """
    tally, rng = Tally("disk full while a training writes"), random.Random(seed)
    for number in range(n):
        kilobytes = rng.randrange(1500, 4000)
        try:
            with _disk(kilobytes) as folder, _others_write(folder):
                command = [sys.executable, str(HERE / "writer.py"), str(folder / "run")]
                writer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
                lost = _what_is_wrong(folder, writer)
        except subprocess.CalledProcessError as error:
            print(f"no full disks: {error}")
            return None
        if lost:
            tally.lose(f"disk {number} of seed {seed}, {kilobytes} kB: {lost}")
        else:
            tally.survived("an error, and what was saved is there")
    return tally


def _what_is_wrong(folder: Path, writer: subprocess.CompletedProcess[str]) -> str | None:
    """
    :param folder: The disk
    :param writer: What has ended for lack of room
    :return: What is lost, left behind or not said, ``None`` if nothing is
    """
    said = [int(line) for line in writer.stdout.split() if line.isdecimal()]
    if lost := check_written(folder / "run", said[-1] if said else 0):
        return lost
    if half := [str(path) for path in folder.rglob(".*.part")]:
        return f"left behind: {half}"
    last = (writer.stderr.strip().splitlines() or [""])[-1]
    return None if "No space left on device" in last else f"the last line is {last!r}"


@contextmanager
def _disk(kilobytes: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()


@contextmanager
def _others_write(folder: Path) -> Iterator[None]:
    """Within it, other files take what room there is, little by little."""
    over = threading.Event()

    def fill() -> None:
        number = 0
        while not over.wait(0.1):
            number += 1
            try:
                (folder / f"other{number}").write_bytes(bytes(16384))
            except OSError:
                continue

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

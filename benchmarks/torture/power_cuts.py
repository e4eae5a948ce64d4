"""
Power cuts: an ext4 file system on a loop device, whose image is copied, as the device has it, in the middle of writing. What
was not forced to the disk is not in the copy. Needs root, loop devices and mkfs.ext4.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reading import check_written
from run_settings import ENVIRONMENT, HERE
from tally import Tally

_MEGABYTES = 48
_COPIES = 50  # until two are alike


def cut_power(n: int, seed: int) -> Tally | None:
    """
    :param n: Power cuts
    :param seed: Of the moments
    :return: What came of them, ``None`` where nothing can be mounted
    """
    tally, rng = Tally("power cut while a training writes, on ext4"), random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        image, copy = Path(temporary) / "disk.img", Path(temporary) / "copy.img"
        try:
            _check_loses(image, copy)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no power cuts: {error}")
            return None
        for number in range(n):
            said = _write_until_cut(image, copy, rng.uniform(0.0, 5.0))
            with _mounted(copy) as folder:
                lost = check_written(folder / "run", said)
            if lost is None:
                tally.survived("all that was said to be saved is there")
            else:
                tally.lose(f"cut {number} of seed {seed}: {lost}")
    return tally


def _write_until_cut(image: Path, copy: Path, seconds: float) -> int:
    """
    :param image: Becomes the disk
    :param copy: Becomes what a power cut left of it
    :param seconds: When to cut the power, after the writer is ready
    :return: The last number that it said to be saved
    """
    _format(image)
    with _mounted(image) as folder:
        command = [sys.executable, str(HERE / "writer.py"), str(folder / "run")]
        with tempfile.TemporaryFile("w+") as said:
            writer = subprocess.Popen(command, env=ENVIRONMENT, stdout=said)
            while _last_line(said) == "" and writer.poll() is None:
                time.sleep(0.05)
            time.sleep(seconds)
            os.kill(writer.pid, signal.SIGSTOP)
            number = _last_line(said)
            _copy_at_one_moment(image, copy)
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
    return int(number) if number.isdecimal() else 0


def _check_loses(image: Path, copy: Path) -> None:
    """
    :param image: Becomes the disk
    :param copy: Becomes what a power cut left of it
    :raises OSError: If what was not forced to the disk is there after a power cut: then nothing is tried here
    """
    _format(image)
    with _mounted(image) as folder:
        (folder / "file").write_text("not forced to the disk")
        _copy_at_one_moment(image, copy)
    with _mounted(copy) as folder:
        if (folder / "file").exists() and (folder / "file").read_text():
            raise OSError("the disk loses nothing")


def _format(image: Path) -> None:
    image.write_bytes(b"")
    os.truncate(image, _MEGABYTES * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)


def _last_line(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    lines = file.read().split("\n")[:-1]  # type: ignore[attr-defined]  # whole ones
    return lines[-1] if lines else ""


def _copy_at_one_moment(image: Path, copy: Path) -> None:
    """Copy until nothing has been written meanwhile: the writer stands still, and the kernel's own writing ends."""
    before = b""
    for _ in range(_COPIES):
        shutil.copyfile(image, copy)
        digest = hashlib.sha256(copy.read_bytes()).digest()
        if digest == before:
            return
        before = digest
    raise OSError("the disk does not come to rest")


@contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    """
    :param image: Of a file system
    :return: Context manager that gives the folder where it is mounted, read and written through a loop device
    """
    device = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True).stdout.strip()
    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(["mount", device, str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()
        subprocess.run(["losetup", "-d", device], check=True)

"""
Files that are there whole or not at all, whatever happens to process, machine and power.

What is written lies in the memory of the operating system for half a minute before it reaches the disk, and a new name may
reach it before the content it is for: a power cut then leaves an empty file. So content is forced to the disk before it gets
its name, and so is the folder that holds the name after that.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Ending of what is not complete yet; a process that was killed leaves it behind
PARTIAL = ".part"
_OWN_PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # as mkstemp names them
_BLOCK = 4096  # bytes, the least that a disk gives


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    Write a file that replaces another of its name, if there is one, only once it is complete and on the disk. If an error
    ends the writing, what was there before stays.

    Example:
        >>> with replacing("model.bin") as file:  # doctest: +SKIP
        ...     file.write(content)

    :param path: The file; missing folders are made
    :return: Context manager that gives the file to write into
    """
    target = Path(path)
    make_folder(target.parent)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(target.parent)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """
    Write a text file by :func:`replacing`.

    :param path: The file
    :param text: Its content, written as UTF-8
    """
    with replacing(path) as file:
        file.write(text.encode())


def make_folder(path: str | os.PathLike[str]) -> None:
    """
    Make a folder, and those that it lies in, where they are missing; on the disk, too.

    :param path: The folder
    """
    folder = Path(path)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def name_folder(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """
    Give a folder that is complete its name, once all that is in it is on the disk.

    :param temporary: The folder, beside its place
    :param path: Its name; nothing, or an empty folder, is there
    """
    folder = Path(temporary)
    for each in folder.rglob("*"):
        if each.is_file():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(each)
    sync_folder(folder)
    folder.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
    folder.rename(path)
    sync_folder(Path(path).parent)


def sweep(folder: str | os.PathLike[str]) -> None:
    """
    Remove what a process that was killed while it was :func:`replacing` files left of them in a folder and those in it.
    Nobody else may be writing there.

    :param folder: The folder
    """
    for path in Path(folder).rglob(f".*{PARTIAL}"):
        if _OWN_PARTIAL.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def check_writable(folder: str | os.PathLike[str]) -> None:
    """
    See that files can be written into a folder, which need not be there yet. Nothing is left behind.

    :param folder: The folder
    :raises OSError: If they can't
    """
    existing = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(_BLOCK))
    except OSError as error:
        raise OSError(error.errno, f"can't write to '{folder}': {error.strerror}") from error


def sync_folder(path: str | os.PathLike[str]) -> None:
    """
    Force what a folder says of its files, their names, to the disk.

    :param path: The folder
    """
    if os.name == "nt":  # which cannot open folders, and journals their changes
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing, such as some over the network
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

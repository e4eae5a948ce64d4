"""One process at a time in a folder."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sb3_vla_envs.durable_files import make_folder

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

#: The file that is locked; a process that was killed leaves it behind, unlocked
LOCK_FILE = ".lock"
# Of file systems that have no locks, such as some over the network
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """
    Within it, no other process can lock the folder. However this one ends, the operating system unlocks it.

    :param folder: The folder, made if it is missing
    :return: Context manager
    :raises RuntimeError: If another process has locked it
    :raises OSError: If it is a file, or nothing can be written there
    """
    if Path(folder).is_file():
        raise FileExistsError(f"'{folder}' is a file: give a folder")
    make_folder(folder)
    path = Path(folder) / LOCK_FILE
    if fcntl is None:
        yield
        return
    descriptor = _lock(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """
    :param path: The file to lock
    :return: Its descriptor; closing it unlocks it
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise RuntimeError(
                f"'{path.parent}' is in use by process {holder or '(its number is not there yet)'}: wait until it has ended, "
                "stop it (Ctrl-C, or kill and that number), or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # who had locked it has just removed it


def _is_at(descriptor: int, path: Path) -> bool:
    """:return: Whether the file that is open is still the one of that name"""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""A disk that loses what nobody forced it to keep."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What changes names on a disk, as Python's audit hooks call it
_EVENTS = {"open", "os.remove", "os.rename", "os.rmdir", "os.mkdir"}

# A file's name, relative to the folder, and its content; None for a folder
State = dict[str, bytes | None]


class LossyDisk:
    """
    Follows everything that happens to the files in a folder, and keeps what a power cut could leave of it at each moment: of
    the names either all or only those of folders that were synced, of the content only what was synced.

    It stands before the real thing, ``make torture``, which cuts the power of a real file system.

    :param folder: The folder; what is in it is on the disk
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: list[State] = []
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._handles: list[int] = []  # or else the number of a file that is removed may be given to a new one
        for path in (folder, *folder.rglob("*")):
            self._sync(path)
        self._root = folder.stat().st_ino

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within it, everything is followed."""
        watching, fsync = True, os.fsync

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal watching
            if watching and event in _EVENTS:
                watching = False  # what is done here is not part of it
                self._keep()
                watching = True

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            nonlocal watching
            watching = False
            self._sync(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            self._keep()
            watching = True

        sys.addaudithook(hook)  # which can't be removed
        os.fsync = synced
        try:
            yield
        finally:
            watching, os.fsync = False, fsync
        self._keep()
        while self._handles:
            os.close(self._handles.pop())

    def _sync(self, path: Path) -> None:
        if path.is_dir():
            self._names[path.stat().st_ino] = {child.name: child.stat().st_ino for child in path.iterdir()}
        else:
            self._contents[path.stat().st_ino] = path.read_bytes()
        self._handles.append(os.open(path, os.O_RDONLY))

    def _keep(self) -> None:
        for state in (dict(self._synced_names(self._root, "")), dict(self._all_names())):
            if state not in self.states:
                self.states.append(state)

    def _synced_names(self, folder: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
        for name, number in self._names[folder].items():
            if number in self._names:
                yield prefix + name, None
                yield from self._synced_names(number, f"{prefix}{name}/")
            else:
                yield prefix + name, self._contents.get(number, b"")

    def _all_names(self) -> Iterator[tuple[str, bytes | None]]:
        for path in self.folder.rglob("*"):
            content = None if path.is_dir() else self._contents.get(path.stat().st_ino, b"")
            yield path.relative_to(self.folder).as_posix(), content

    def restore(self, state: State, folder: Path) -> None:
        """
        :param state: One of the states
        :param folder: Is made to be in that state
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in sorted(state.items()):
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)

"""This repository as it was, beside what it is."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# The last commit before the work on speed
BEFORE = "b168878"
# The last commit before the packages were rearranged
FLAT = "7dfdf8a"


class Version:
    """
    A version of the packages.

    :param path: Folder from which Python imports ``sb3_vla`` and ``sb3_vla_envs``
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, command: Sequence[str], stdout: int) -> str:
        """
        Run a program with this version.

        :param command: Program and arguments
        :param stdout: ``subprocess.PIPE`` or ``subprocess.DEVNULL``
        :return: What it printed, if that was asked for
        """
        # Python and its fork server may look in the working directory first
        environment = {**os.environ, "PYTHONPATH": str(self.path)}
        done = subprocess.run(command, cwd=self.path, env=environment, check=True, stdout=stdout, text=True)
        return done.stdout or ""

    def measure(self, script: str, *arguments: str) -> dict[str, Any]:
        """
        Run a script of this folder with this version.

        :param script: Its name; the last line that it prints is JSON
        :param arguments: What it gets
        :return: What it has measured
        """
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        measured: dict[str, Any] = json.loads(self.run(command, subprocess.PIPE).splitlines()[-1])
        package = measured.pop("package")
        if Path(package).resolve() != (self.path / "sb3_vla").resolve():
            raise RuntimeError(f"{script} ran with {package}: take it off Python's path, {self.path / 'sb3_vla'} is wanted")
        return measured


@contextmanager
def checked_out(commit: str | None) -> Iterator[Version]:
    """
    :param commit: A commit of this repository, ``None`` for the working tree
    :return: The version, for as long as the context lasts
    """
    with tempfile.TemporaryDirectory() as folder:
        source = REPOSITORY
        if commit is not None:
            source = Path(folder, "source")
            archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(source, filter="data")
        path = Path(folder, "path")
        path.mkdir()
        (path / "sb3_vla").symlink_to(source / "sb3_vla")
        (path / "sb3_vla_envs").symlink_to(source / "envs")
        yield Version(path)

"""This repository as it was, beside what it is."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# The last commit before the work on speed
BEFORE = "b168878"


class Version:
    """
    A version of the packages.

    :param path: Folder from which Python imports ``sb3_vla`` and ``sb3_vla_envs``
    """

    def __init__(self, path: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(path)}

    def measure(self, script: str, *arguments: str) -> dict[str, Any]:
        """
        Run a script of this folder with this version.

        :param script: Its name; the last line that it prints is JSON
        :param arguments: What it gets
        :return: What it has measured
        """
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        run = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True)
        measured: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
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

"""A run's folder: where a command puts what it made, with the configuration and the versions that made it."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sb3_vla_envs import registered_suites
from sb3_vla_envs.durable_files import PARTIAL, replace_text

from .folder_lock import LOCK_FILE

_PACKAGES = ("sb3-vla", "torch", "stable-baselines3", "transformers", "gymnasium", "mujoco", "numpy")
_UNKNOWN_VERSIONS = "If they are lost, write {} into it."


def software_versions() -> dict[str, str | int | None]:
    """
    What this process runs on: the interpreter, the machine and every package that can change a result.

    :return: ``python``, ``platform``, ``cpu_count``, the version of each package (``None`` where it isn't installed), and
        ``git_commit`` (``None`` outside a checkout of this project; it ends in ``-dirty`` if tracked files were changed)
    """
    versions: dict[str, str | int | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }
    packages = [*_PACKAGES, *(name for suite in registered_suites() for name in suite.distributions)]
    versions.update({package: _package_version(package) for package in packages})
    versions["git_commit"] = _git_commit(Path(__file__).resolve().parents[1])
    return versions


class RunFolder:
    """
    The files of one run. Make one with :meth:`create`, come back to it with :meth:`open`.

    :param path: The folder; nothing is read or written here
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, command: str, config: Mapping[str, Any]) -> "RunFolder":
        """
        Start a run in a new or empty folder, and write into it ``config.yaml``, ``versions.json``, and the configuration once
        more as ``began.yaml``: the first may be edited to change a run on its way. The folder of a run that failed before it
        had made anything but logs and part of a checkpoint counts as empty.

        :param path: The folder; its parents are made too
        :param command: The command that makes the run, as one would type it
        :param config: Everything that determines the run; plain numbers, strings, lists and dicts
        :return: The folder
        :raises FileExistsError: If something is in the folder already: a run is never overwritten
        :raises TypeError: If the configuration holds something that YAML can't
        """
        folder = cls(path)
        try:
            text = yaml.safe_dump({"command": command, "config": dict(config)}, sort_keys=False, allow_unicode=True)
        except yaml.representer.RepresenterError as error:
            raise TypeError(
                f"The configuration of the run '{path}' can't be written as YAML: {error}. "
                "Give plain numbers, strings, lists and dicts."
            ) from error
        if folder.path.exists() and not folder._is_free():
            raise FileExistsError(
                f"'{path}' already holds something, and a run is never overwritten. "
                "Give another folder, or go on with the run in it, by --resume of the command that began it."
            )
        for path in folder._logs:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        replace_text(folder.versions_file, json.dumps(software_versions(), indent=2) + "\n")
        for file in (folder.began_file, folder.config_file):
            replace_text(file, text)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """
        Come back to the run in a folder, to resume or to look at it.

        :param path: A folder that :meth:`create` made
        :return: The folder
        :raises FileNotFoundError: If there is no such folder
        :raises ValueError: If the folder holds no run
        """
        folder = cls(path)
        if not folder.path.is_dir():
            raise FileNotFoundError(f"There is no run folder '{path}': check the path")
        if not folder.config_file.is_file() or not folder.versions_file.is_file():
            raise ValueError(
                f"'{path}' is not a run folder: it lacks {folder.config_file.name} or {folder.versions_file.name}. "
                "Give the folder that a run wrote (the one with config.yaml in it)."
            )
        return folder

    def read_config(self) -> tuple[str, dict[str, Any]]:
        """
        :return: The command that made the run, empty if it isn't known, and the configuration, as plain values
        :raises ValueError: If the file does not hold them
        """
        try:
            content = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"'{self.config_file}' is not a YAML file: {error}. {self._mend}") from error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ValueError(f"'{self.config_file}' is not the configuration of a run. {self._mend}")
        return str(content.get("command", "")), content["config"]

    def command_name(self) -> str:
        """
        :return: Name of the command that made the run, as ``"train"``, empty if it isn't known
        :raises ValueError: See :meth:`read_config`
        """
        command, _ = self.read_config()
        return next(iter(command.removeprefix("sb3-vla ").split()), "")

    def read_versions(self) -> dict[str, str | int | None]:
        """
        :return: What the run was started on (:func:`software_versions`)
        :raises ValueError: If the file does not hold it
        """
        try:
            versions = json.loads(self.versions_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"'{self.versions_file}' is not a JSON file: {error}. {_UNKNOWN_VERSIONS}") from error
        if not isinstance(versions, dict):
            raise ValueError(f"'{self.versions_file}' does not hold the versions of software. {_UNKNOWN_VERSIONS}")
        return versions

    @property
    def _mend(self) -> str:
        return f"How it was when the run began is in '{self.began_file}': copy that over it."

    def check_kinds(self) -> None:
        """
        :raises ValueError: If a folder is where a file of a run belongs, or a file where a folder does
        """
        stages = (self.demos, self.sft_checkpoint, self.sft_model, self.results, self.model)
        for path in (*stages, self.progress, self.log, self.validation, self.best_model, self.curves):
            if path.is_dir():
                raise ValueError(f"'{path}' must be a file, and is a folder: move it elsewhere")
        for path in (self.tensorboard, self.checkpoints):
            if path.exists() and not path.is_dir():
                raise ValueError(f"'{path}' must be a folder, and is a file: move it elsewhere")

    @property
    def _logs(self) -> tuple[Path, ...]:
        """What a run has left of which nothing can go on, if that is all there is."""
        incomplete = () if self.has_checkpoints else (self.checkpoints,)
        return (self.progress, self.log, self.tensorboard, *incomplete)

    def _is_free(self) -> bool:
        """:return: Whether a run may begin here: there is nothing, or what one that made nothing but logs has left"""
        if not self.path.is_dir():
            return False
        there = {path.name for path in self.path.iterdir() if path.suffix != PARTIAL and path.name != LOCK_FILE}
        own = {path.name for path in (self.config_file, self.began_file, self.versions_file)}
        return not there or own <= there <= own | {path.name for path in self._logs}

    @property
    def config_file(self) -> Path:
        """The command and the exact configuration."""
        return self.path / "config.yaml"

    @property
    def began_file(self) -> Path:
        """The same as it was when the run began."""
        return self.path / "began.yaml"

    @property
    def versions_file(self) -> Path:
        """What the run was started on (:func:`software_versions`)."""
        return self.path / "versions.json"

    @property
    def demos(self) -> Path:
        """The expert demonstrations."""
        return self.path / "demos.npz"

    @property
    def sft_model(self) -> Path:
        """The model after supervised fine-tuning."""
        return self.path / "sft_model.zip"

    @property
    def sft_checkpoint(self) -> Path:
        """What supervised fine-tuning goes on from until that model is there."""
        return self.path / "sft_checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """The post-trained model."""
        return self.path / "model.zip"

    @property
    def best_model(self) -> Path:
        """The post-trained model that was best in validation."""
        return self.path / "best_model.zip"

    @property
    def validation(self) -> Path:
        """Evaluations during post-training, a row each."""
        return self.path / "validation.csv"

    @property
    def results(self) -> Path:
        """The evaluations."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, from the newest of which ``--resume`` continues."""
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        """Whether a checkpoint was completed."""
        return any(self.checkpoints.glob("*[0-9]"))

    @property
    def curves(self) -> Path:
        """The learning curves."""
        return self.path / "curves.png"

    @property
    def gifs(self) -> Path:
        """The folder of recorded episodes."""
        return self.path / "gifs"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """The same as text."""
        return self.path / "log.txt"

    @property
    def progress(self) -> Path:
        """What SB3's logger recorded, one row a log dump."""
        return self.path / "progress.csv"


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(package: Path) -> str | None:
    """
    :param package: The folder of this package
    :return: The commit of the checkout that the package lies in, if it does: an installed copy may well lie inside
        somebody else's repository (``project/.venv/lib/...``), whose commit would say nothing about us
    """
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != package.parent:
        return None
    # --exclude=*: the hash itself, never a tag's name
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return process.stdout.strip() if process.returncode == 0 else None

"""What tests of the command line share."""

from pathlib import Path
from typing import Any

import pytest

from sb3_vla.runs.cli import main

from ...conftest import put_environments_in_this_process
from .small_settings import TASKS, write_settings


@pytest.fixture(scope="package")
def made(tmp_path_factory) -> Path:
    """A folder with what a user makes from demonstrations to a film, one command after the other."""
    folder = tmp_path_factory.mktemp("made")
    config = write_settings(folder / "tiny.yml")
    demos, sft, run = (str(folder / name) for name in ("demos/d.npz", "sft", "run"))
    commands = (
        ["demos", "--config", config, "--out", demos],
        ["sft", "--config", config, "--demos", demos, "--out", sft],
        ["train", "--config", config, "--init", f"{sft}/sft_model.zip", "--demos", demos, "--out", run, "--seed", "3"],
        ["eval", f"{run}/model.zip", "--n-goals", "1", "--out", f"{folder}/results/model.json"],
        ["record", f"{run}/model.zip", "--tasks", TASKS[0], "--out", f"{folder}/films"],
    )
    with pytest.MonkeyPatch.context() as patch:
        put_environments_in_this_process(patch)
        for command in commands:
            assert main([*command]) == 0, command
    return folder


@pytest.fixture
def fail(capsys, tmp_path):
    """Runs a command that must end with status 2 and one line, having written nothing; returns the line."""

    def fail(*argv: str) -> str:
        capsys.readouterr()
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert main(argv) == 2
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"sb3-vla {argv[0]}: "), lines
        return lines[0]

    return fail


@pytest.fixture
def config(tmp_path):
    """Writes a configuration file."""

    def config(**sections: Any) -> str:
        return write_settings(tmp_path / f"{len(list(tmp_path.iterdir()))}.yml", **sections)

    return config

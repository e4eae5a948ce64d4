import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from sb3_vla.common import run_folder
from sb3_vla.common.run_folder import RunFolder, software_versions

CONFIG = {"tasks": ["window-open-v3"], "seed": 0, "learning_rate": 3.0e-5, "sft": {"epochs": 4}}


def test_create_writes_the_exact_configuration_and_the_versions(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "first", "sb3-vla train --seed 0", CONFIG)
    for file in ("config.yaml", "began.yaml"):
        assert yaml.safe_load((tmp_path / "runs/first" / file).read_text()) == {
            "command": "sb3-vla train --seed 0",
            "config": CONFIG,
        }
    versions = json.loads((tmp_path / "runs/first/versions.json").read_text())
    assert versions["numpy"] == np.__version__
    assert versions["cpu_count"] >= 1
    assert folder.path == tmp_path / "runs" / "first"


def test_create_takes_an_empty_folder(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, "train", CONFIG).config_file.is_file()


def test_create_never_overwrites_another_run(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "train", CONFIG).demos.touch()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        RunFolder.create(tmp_path, "train", {"seed": 1})
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_run_that_made_nothing_but_logs_is_in_nobodys_way(tmp_path: Path) -> None:
    failed = RunFolder.create(tmp_path, "train", CONFIG)
    failed.tensorboard.mkdir()
    incomplete = failed.checkpoints / "16.part"  # as a full disk leaves it
    incomplete.mkdir(parents=True)
    logs = (failed.log, failed.progress)
    for file in (*logs, failed.tensorboard / "events", incomplete / "model.zip", tmp_path / ".model.zip.x.part"):
        file.write_text("of the first try")
    again = RunFolder.create(tmp_path, "train", {"seed": 1})
    assert yaml.safe_load(again.config_file.read_text())["config"] == {"seed": 1}
    assert not any(path.exists() for path in (*logs, again.tensorboard, again.checkpoints))


@pytest.mark.parametrize("made", ["checkpoints/16/model.zip", "best_model.zip"])
def test_what_a_failed_run_has_made_is_kept(tmp_path: Path, made: str) -> None:
    path = RunFolder.create(tmp_path, "train", CONFIG).path / made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("of the first try")
    with pytest.raises(FileExistsError, match="Give another folder"):
        RunFolder.create(tmp_path, "train", CONFIG)
    assert path.exists()


def test_create_refuses_a_folder_of_something_else_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    for path in (tmp_path, tmp_path / "holiday.jpg", tmp_path / "mine"):
        with pytest.raises(FileExistsError, match="another folder"):
            RunFolder.create(path, "train", CONFIG)


def test_configuration_that_yaml_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="plain numbers"):
        RunFolder.create(tmp_path / "run", "train", {"learning_rate": np.float32(1e-4)})
    assert not (tmp_path / "run").exists()


def test_open_returns_to_the_run(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "train", CONFIG)
    assert RunFolder.open(str(tmp_path)).path == tmp_path


def test_open_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"lacks config\.yaml"):
        RunFolder.open(tmp_path)


def test_paths_are_the_documented_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    paths = (
        folder.demos, folder.sft_model, folder.model, folder.results, folder.checkpoints,
        folder.curves, folder.gifs, folder.tensorboard, folder.progress, folder.config_file, folder.began_file,
    )  # fmt: skip
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "demos.npz", "sft_model.zip", "model.zip", "results.json", "checkpoints",
        "curves.png", "gifs", "tensorboard", "progress.csv", "config.yaml", "began.yaml",
    ]  # fmt: skip


def test_versions_say_none_for_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_PACKAGES", ("numpy", "surely-not-installed"))
    versions = software_versions()
    assert versions["numpy"] == np.__version__
    assert versions["surely-not-installed"] is None


def test_git_commit_is_that_of_our_checkout_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "sb3_vla"
    installed = tmp_path / ".venv" / "sb3_vla"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    git("init", "--quiet")
    git("add", "sb3_vla")
    git("commit", "--quiet", "-m", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")

    assert run_folder._git_commit(package) == commit
    assert run_folder._git_commit(installed) is None
    (package / "__init__.py").write_text("changed = True\n")
    assert run_folder._git_commit(package) == f"{commit}-dirty"

"""The commands that README and docs show run, one after the other as on their page: on one task, with few short episodes."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla.runs.parser import build_parser

from ..conftest import put_environments_in_this_process
from ..sb3_vla.policies.backbones.tiny_checkpoints import TINY_FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = {
    "device": "cpu",
    "simulation": {"horizon": 60},
    "policy": {"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]},
    "demos": {"n_per_task": 2, "n_workers": 1},
    "sft": {"n_epochs": 1},
    "train": {
        **{"total_timesteps": 48, "n_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1},
        **{"critic_epochs": 1, "critic_warmup_steps": 0, "bc_batch_size": 8, "checkpoint_every": 16},
    },
    "eval": {"n_goals": 1, "n_envs": 1},
}
# What is written, and what is run in its place
SMALLER = {
    "--tasks MT10": "--tasks handle-press-v3",
    " --watch 60": "",
    "--backbone NAME": "--backbone vlm",
    "--backbone FOLDER": "--backbone vlm",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "vlm",
    "HuggingFaceTB/SmolVLM-500M-Instruct": "vlm",
    "image_size: 256": "image_size: 64",
    "height: 256, width: 256": "height: 64, width: 64",
}
# Options that make the work of a command small
SHORT = {"eval": ["--n-goals", "1"], "play": ["--n-per-task", "2"], "probe": ["--episodes", "5"]}
OUTPUTS = ("out", "to_lerobot", "local")


def lines():
    """The commands of each page."""
    for page in PAGES:
        found = re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S)
        commands = [line.strip() for block in found for line in block.replace("\\\n", " ").splitlines()]
        commands = [line for line in commands if line.startswith("sb3-vla ")]
        if commands:
            yield pytest.param(commands, id=str(page.relative_to(ROOT)))


def configurations():
    """Files that pages have their readers write, with a small checkpoint in place of the real one."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, block in re.findall(r"`([\w.]+\.yml)`:\n\n```yaml\n(.*?)^```", text, re.M | re.S):
            for written, run in SMALLER.items():
                block = block.replace(written, run)
            yield name, block


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """A folder with what a reader has who comes to a page: a configuration, a checkpoint, a dataset, runs."""
    folder = tmp_path_factory.mktemp("readers")
    (folder / "my.yml").write_text(yaml.safe_dump({"tasks": "handle-press-v3", **SMALL}), encoding="utf-8")
    TINY_FAMILIES["smolvlm"].save(folder / "vlm")
    for name, block in configurations():
        (folder / name).write_text(block.replace("backbone: vlm", f"backbone: {folder / 'vlm'}"), encoding="utf-8")
    config = ["--config", str(folder / "my.yml")]
    with pytest.MonkeyPatch.context() as patch:
        put_environments_in_this_process(patch)
        assert main(["quickstart", *config, "--out", str(folder / "runs/quickstart")]) == 0
    demos = str(folder / "runs/quickstart/demos.npz")
    assert main(["demos", *config, "--demos", demos, "--to-lerobot", str(folder / "FOLDER")]) == 0
    for name in ("ppo", "sft", "again", "seed0", "seed1", "other"):
        (folder / "runs" / name).symlink_to("quickstart")
    return folder


def remove(folder, name):
    """Remove a file, a folder or a link, if there is one."""
    path = folder / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_small(line, folder):
    """:return: Words of the command that is run in place of a line"""
    for written, run in SMALLER.items():
        line = line.replace(written, run)
    words = shlex.split(line, comments=True)[1:]
    words += SHORT.get(words[0], [])
    arguments = build_parser().parse_args(words)
    if not hasattr(arguments, "config") or getattr(arguments, "resume", None):
        return words
    settings = {**SMALL} if arguments.suite or arguments.tasks else {"tasks": "handle-press-v3", **SMALL}
    if arguments.config is not None:
        given = load_config(arguments.config if Path(arguments.config).exists() else folder / arguments.config).to_dict()
        settings = {name: {**old, **SMALL.get(name, {})} if isinstance(old, dict) else old for name, old in given.items()}
        if getattr(arguments, "init", None) is None:
            settings["tasks"] = "handle-press-v3"
        else:  # the tasks are those of the model
            settings["train"].update(n_envs=12, n_steps=2, validate_every=None)
    (folder / "small.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [*words, "--config", "small.yml"]


@pytest.mark.parametrize("commands", list(lines()))
def test_commands_run(commands, readers, tmp_path, monkeypatch, capsys, in_this_process):
    monkeypatch.chdir(tmp_path)
    # Films are made for the readers
    monkeypatch.setattr("sb3_vla.runs.quickstart.record_comparison", lambda *args: None)
    for name in ("results", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.syspath_prepend(ROOT / "examples")
    # There is no Hub here
    monkeypatch.setattr("sb3_vla.runs.commands.push.create_repo", lambda repo_id, private: None)
    monkeypatch.setattr("sb3_vla.runs.commands.push.push_to_hub", lambda folder, repo_id: repo_id)
    for line in commands:
        words = in_small(line, readers)
        arguments = build_parser().parse_args(words)
        outputs = {path for name in OUTPUTS if (path := getattr(arguments, name, None)) is not None}
        if {*words} - outputs == {"quickstart", "--out", "--config", "small.yml"}:  # as the readers' runs were made
            continue
        for path in outputs:  # of a line before, whose alternative this is
            remove(tmp_path, path)
        for word in {*words} - outputs:
            if (readers / word).exists() and not (tmp_path / word).exists():
                (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / word).symlink_to(readers / word)
        assert main(words) == 0, (line, capsys.readouterr().err)

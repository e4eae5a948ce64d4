"""A run folder, damaged in more than two hundred ways: a run goes on from what is good, or one line names what is not."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sb3_vla import EvaluationResult, fine_tune
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.runs import training, validation
from sb3_vla.runs.checkpoint import save_checkpoint
from sb3_vla.runs.cli import main
from sb3_vla.runs.commands import quickstart
from sb3_vla.runs.config import load_config
from sb3_vla.runs.results import save_results
from sb3_vla_envs import save_demonstrations

RESULT = EvaluationResult([EpisodeRecord("reach-v3", 0, True, 5, 5, 1.0)], {"horizon": 60}, {})
COLUMNS = ["time/total_timesteps", "time/primitive_steps", "rollout/success_rate"]


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0b1001
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit at the beginning": lambda path: _flip(path, 0.0),
    "bit in the middle": lambda path: _flip(path, 0.5),
    "bit at the end": lambda path: _flip(path, 1.0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "something else": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00"),
    "a folder": _to_folder,
    "missing": lambda path: path.unlink(),
}
# The end of the last line, which says nothing; the length of a zip file's comment
HARMLESS = [
    *((name, "one byte short") for name in ("config.yaml", "began.yaml", "checksums.json", "results.json")),
    *((name, "bit at the end") for name in ("demos.npz", "sft_model.zip", "model.zip of a stage")),
]
OF_A_CHECKPOINT = ["model.zip", "replay_buffer.npz", "training_state.safetensors", "checksums.json"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory, request):
    """The folder of a run with two checkpoints, at the end of its training."""
    from tests.conftest import _make_demonstrations, _make_model

    folder = tmp_path_factory.mktemp("runs") / "run"
    config = load_config(None, None, "reach-v3", device="cpu", train={"total_timesteps": 48, "validate_every": 16})
    run = RunFolder.create(folder, "sb3-vla train", config.to_dict())
    model = _make_model()
    for _ in range(3):
        model.learn(16, reset_num_timesteps=False)
        save_checkpoint(model, run.checkpoints)
    rows = [[t, 3 * t, 0.5] for t in (16, 32, 48)]
    run.progress.write_text("".join(",".join(map(str, row)) + "\n" for row in [COLUMNS, *rows]))
    keys = ["timesteps", "seconds", "episode_steps"]
    run.validation.write_text(
        "".join(",".join(map(str, row)) + "\n" for row in [keys, [16, 3, 9.5], [32, 4, 8.5], [48, 5, 7.5]])
    )
    run.log.write_text("---\n")
    # What else a quickstart has made
    demonstrations = _make_demonstrations()
    save_demonstrations(run.demos, demonstrations)
    fine_tune(_make_model(), demonstrations, n_epochs=1, checkpoint=run.sft_checkpoint, progress=False)
    for path in (run.sft_model, run.model):
        model.save(path)
    save_results(run, {"SFT": RESULT})
    run.tensorboard.mkdir()
    return folder


@pytest.fixture
def run(intact, tmp_path, monkeypatch, make_vec_env):
    """A copy of it, which goes on in the toy environment."""
    monkeypatch.setattr(training, "_training_env", lambda config: make_vec_env())
    monkeypatch.setattr(validation, "evaluate_on_tasks", lambda *args, **kwargs: RESULT)
    return RunFolder(shutil.copytree(intact, tmp_path / "run"))


@pytest.fixture
def unhurried(monkeypatch):
    """Training ends at once where it would begin, as what it begins with is what counts."""
    monkeypatch.setattr(training, "_learn", lambda config, folder, model, *_: _finish(folder, model))


def _finish(folder, model):
    assert model.num_timesteps in (32, 48)
    model.save(folder.model)
    folder.curves.touch()


def _resume(run, capsys, command="train"):
    """:return: Exit status, lines of standard error, warnings"""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        status = main([command, "--resume", str(run.path)])
    output = capsys.readouterr()
    said = [str(warning.message) for warning in warned if warning.category is UserWarning]
    for word in ("delete", "remove", "Traceback"):
        assert word not in " ".join([output.out, output.err, *said])
    return status, output.err.splitlines(), said


def _check_goes_on(run, capsys):
    run.model.unlink()
    status, errors, said = _resume(run, capsys)
    assert (status, errors) == (0, [])
    assert run.model.is_file()
    assert run.curves.is_file() != any("there are no learning curves" in line for line in said)
    return [line for line in said if "curves" not in line]


def _check_refused(run, capsys, about, command="train"):
    before = sorted(path for path in run.path.rglob("*"))
    status, errors, _ = _resume(run, capsys, command)
    assert status == 2 and len(errors) == 1
    assert errors[0].startswith(f"sb3-vla {command}: ") and about in errors[0]
    assert sorted(path for path in run.path.rglob("*")) == before


def test_intact(run, capsys):
    assert not _check_goes_on(run, capsys)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_of_the_newest_checkpoint_goes_on_from_the_one_before_it(run, unhurried, capsys, name, damage):
    DAMAGES[damage](run.checkpoints / "48" / name)
    if (name, damage) in HARMLESS:
        assert not _check_goes_on(run, capsys)
        return
    (said,) = _check_goes_on(run, capsys)
    assert "48' is damaged" in said and "goes on from the one before it" in said and "32'" in said


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_of_both_checkpoints_is_refused(run, unhurried, capsys, name, damage):
    for folder in run.checkpoints.iterdir():
        DAMAGES[damage](folder / name)
    if (name, damage) in HARMLESS:
        assert not _check_goes_on(run, capsys)
        return
    _check_refused(run, capsys, "32' is damaged")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "began.yaml"])
def test_of_the_configuration_is_refused(run, unhurried, capsys, name, damage):
    DAMAGES[damage](run.path / name)
    if (name, damage) in HARMLESS:
        assert not _check_goes_on(run, capsys)
    else:
        _check_refused(run, capsys, "config.yaml" if name == "config.yaml" else "")


def draw_only(name, monkeypatch):
    """Curves, which take a second, are drawn of one log alone."""
    if name != "progress.csv":
        monkeypatch.setattr(training, "draw_curves", lambda folder: folder.curves.touch())


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
@pytest.mark.parametrize("name", ["progress.csv", "validation.csv", "log.txt"])
def test_of_a_log_is_in_nobodys_way(run, capsys, monkeypatch, name, damage):
    draw_only(name, monkeypatch)
    DAMAGES[damage](run.path / name)
    assert not _check_goes_on(run, capsys)


@pytest.mark.parametrize("name", ["progress.csv", "validation.csv", "log.txt"])
def test_a_folder_in_place_of_a_log_is_refused(run, capsys, name):
    _to_folder(run.path / name)
    _check_refused(run, capsys, name)


@pytest.mark.parametrize("name", ["tensorboard", "checkpoints"])
def test_a_file_in_place_of_a_folder_is_refused(run, capsys, name):
    (run.path / name).rename(run.path.parent / name)
    (run.path / name).touch()
    _check_refused(run, capsys, name)


@pytest.mark.parametrize(
    "content",
    [3, None, [], {}, "text", {"config": 3}, {"config": {"tasks": 5}}, {"config": {"train": 3}}, {"config": {"seed": "x"}}],
)
def test_a_configuration_of_wrong_types_is_refused(run, capsys, content):
    run.config_file.write_text(yaml.safe_dump(content))
    _check_refused(run, capsys, "")


@pytest.mark.parametrize("content", [3, None, [], {}, "text", {"model.zip": 3}, {"../../config.yaml": ""}, {"no.zip": "0"}])
def test_checksums_of_something_else_are_those_of_a_damaged_checkpoint(run, unhurried, capsys, content):
    (run.checkpoints / "48/checksums.json").write_text(json.dumps(content))
    (said,) = _check_goes_on(run, capsys)
    assert "48' is damaged" in said


@pytest.mark.parametrize("cell", ["nan", "inf", "x", "", "-5", '"'])
@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("name", ["progress.csv", "validation.csv"])
def test_a_cell_of_a_log_is_in_nobodys_way(run, capsys, monkeypatch, name, row, cell):
    draw_only(name, monkeypatch)
    lines = (run.path / name).read_text().splitlines()
    for column in range(3):
        cells = lines[row].split(",")
        cells[column] = cell
        (run.path / name).write_text("\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :]]) + "\n")
        assert not _check_goes_on(run, capsys)


@pytest.mark.parametrize("name", ["progress.csv", "validation.csv"])
def test_a_quote_that_nothing_closes_is_in_nobodys_way(run, capsys, name):
    with (run.path / name).open("a") as file:
        file.write('"' + "1\n" * 200_000)
    assert not _check_goes_on(run, capsys)


def test_what_else_lies_among_the_checkpoints_is_in_nobodys_way(run, unhurried, capsys):
    for name in ("64", "x", "50.part", "-3", "³"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "96").touch()
    (said,) = _check_goes_on(run, capsys)
    assert "64' is damaged" in said


def test_no_checkpoints_is_refused(run, capsys):
    shutil.rmtree(run.checkpoints)
    _check_refused(run, capsys, "there is no checkpoint")


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "missing"])
@pytest.mark.parametrize("name", ["demos.npz", "sft_checkpoint.safetensors", "sft_model.zip", "model.zip", "results.json"])
def test_of_a_stage_of_a_quickstart_is_refused_and_it_can_be_done_again(run, capsys, monkeypatch, name, damage):
    done = []
    monkeypatch.setattr(quickstart, "quickstart", lambda config, folder: done.append(folder))
    DAMAGES[damage](run.path / name)
    if name == run.sft_checkpoint.name:
        run.sft_model.unlink()
    if {(name, damage), (f"{name} of a stage", damage)} & set(HARMLESS):
        assert _resume(run, capsys, "quickstart")[0] == 0
        return
    _check_refused(run, capsys, name, "quickstart")
    (run.path / name).rename(run.path.parent / name)
    assert _resume(run, capsys, "quickstart")[0] == 0 and len(done) == 1

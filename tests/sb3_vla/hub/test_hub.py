"""Folders for the Hugging Face Hub, and the upload, to a directory that takes the Hub's place."""

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_sb3
import numpy as np
import pytest
import torch as th
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import EvaluationResult, PPOSelfBC, push_to_hub, save_for_hub
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.runs.checkpoint import save_checkpoint
from sb3_vla.runs.publish import read_run
from sb3_vla_envs import MT10, load_demonstrations

TASKS = ["drawer-close-v3", "window-open-v3"]
CONFIG = {
    "tasks": TASKS,
    "simulation": {"horizon": 40, "n_goals": 5, "privileged": True},
    "wrapping": {"chunk_size": 3, "gamma": 0.9},
}


class LocalHub:
    """
    What the Hub's client does, on a directory with a folder a repository. Arguments are held against the real signatures.

    :param root: The directory
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuse: int | None = None  # HTTP status

    def api(self, **kwargs: Any) -> SimpleNamespace:
        self._record("__init__", kwargs)
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def create_repo(self, **kwargs: Any) -> str:
        repo_id = self._record("create_repo", kwargs)["repo_id"]
        if self.refuse:
            response: Any = SimpleNamespace(status_code=self.refuse, headers={}, request=None)
            raise HfHubHTTPError(f"{self.refuse} Client Error", response=response)
        (self.root / repo_id).mkdir(parents=True, exist_ok=kwargs["exist_ok"])
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **kwargs: Any) -> None:
        arguments = self._record("upload_folder", kwargs)
        shutil.copytree(arguments["folder_path"], self.root / arguments["repo_id"], dirs_exist_ok=True)

    def download(self, repo_id: str, filename: str, **kwargs: Any) -> str:
        assert (self.root / repo_id / filename).is_file(), f"404: {filename}"
        return str(self.root / repo_id / filename)

    def _record(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        inspect.signature(getattr(HfApi, name)).bind(self, **kwargs)
        self.calls.append((name, kwargs))
        return kwargs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = LocalHub(tmp_path / "hub")
    monkeypatch.setattr("sb3_vla.hub.upload.HfApi", hub.api)
    monkeypatch.setattr("sb3_vla.hub.upload.get_token", lambda: "hf_of_the_login")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    return hub


def _result(steps: int = 30, chunk_size: int = 3, **settings: Any) -> EvaluationResult:
    episodes = [EpisodeRecord(task, goal, True, steps, steps, 1.0) for task in TASKS for goal in range(2)]
    return EvaluationResult(
        episodes, {"suite": "metaworld", "tasks": TASKS, "chunk_size": chunk_size, "goal_split": "test", **settings}, {}
    )


@pytest.fixture
def run(tmp_path, make_model, make_demonstrations) -> RunFolder:
    """A run folder as ``sb3-vla quickstart`` leaves it, the models being toys."""
    run = RunFolder.create(tmp_path / "run", "sb3-vla quickstart --out run", CONFIG)
    make_model(seed=1).save(run.sft_model)
    make_model(seed=2).learn(16).save(run.model)
    results = {"SFT": _result(50).to_dict(), "post-trained": _result(30).to_dict()}
    run.results.write_text(json.dumps(results))
    run.gifs.mkdir()
    for name in ("sft", "post_trained", "comparison"):
        for task in TASKS:
            (run.gifs / f"{name}_{task}.gif").write_bytes(f"film of {name}".encode())
    run.curves.write_bytes(b"curves")
    model = make_model(seed=2)
    model.replay_buffer.extend(make_demonstrations())
    save_checkpoint(model, run.checkpoints)
    return run


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def test_loaded_model_acts_like_the_saved_one(make_model, make_env, tmp_path):
    model = make_model().learn(16)
    assert save_for_hub(model, tmp_path / "out", "ann/toy") == ["README.md", "ppo_self_bc.zip"]
    assert _files(tmp_path / "out") == {"README.md", "ppo_self_bc.zip"}
    loaded = PPOSelfBC.load(tmp_path / "out/ppo_self_bc.zip", device="cpu")
    env = make_env()
    observation, _ = env.reset()
    for _ in range(2):
        action, _ = model.predict(observation, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
        th.manual_seed(0)
        sample, _ = model.predict(observation)
        th.manual_seed(0)
        np.testing.assert_array_equal(loaded.predict(observation)[0], sample)
        observation = env.step(action)[0]


@pytest.mark.parametrize(
    ("tasks", "env_id"), [("MT10", "metaworld/MT10"), (MT10[::-1], "metaworld/MT10"), ("push-v3", "metaworld/push-v3")]
)
def test_huggingface_sb3_finds_the_model_under_its_own_name(tasks, env_id, make_model, hub, tmp_path, monkeypatch):
    model = make_model()
    save_for_hub(model, tmp_path / "out", "ann/toy", tasks=tasks)
    push_to_hub(tmp_path / "out", "ann/toy")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    name = huggingface_sb3.ModelName("ppo_self_bc", huggingface_sb3.EnvironmentName(env_id))
    path = huggingface_sb3.load_from_hub("ann/toy", name.filename)
    assert PPOSelfBC.load(path).policy.head.log_std.equal(model.policy.head.log_std)


def test_folder_has_what_was_given(make_model, make_demonstrations, tmp_path):
    model = make_model()
    model.replay_buffer.extend(make_demonstrations())
    model.save_replay_buffer(tmp_path / "buffer.npz")
    (tmp_path / "a.gif").write_bytes(b"film")
    result, baseline = _result(30), _result(40)
    save_for_hub(
        *(model, tmp_path / "out", "ann/toy"),
        result=result,
        baseline=baseline,
        videos=[tmp_path / "a.gif"],
        demonstrations=tmp_path / "buffer.npz",
    )
    assert (tmp_path / "out/gifs/a.gif").read_bytes() == b"film"
    assert EvaluationResult.load(tmp_path / "out/results.json") == result
    assert EvaluationResult.load(tmp_path / "out/baseline_results.json") == baseline
    loaded = PPOSelfBC.load(tmp_path / "out/ppo_self_bc-metaworld.zip")
    assert loaded.replay_buffer.summary() == {}
    loaded.load_replay_buffer(tmp_path / "out/demonstrations.npz")
    assert loaded.replay_buffer.summary() == model.replay_buffer.summary() != {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": "toy"}, "no owner: give 'user/toy'"),
        ({"repo_id": "ann/my toy"}, "ann/my toy"),
        ({"repo_id": "models/ann/toy"}, "models/ann/toy"),
        ({"videos": ["a.mp4"]}, "is no GIF"),
        ({"videos": ["a.gif"]}, "no file 'a.gif'"),
        ({"videos": ["a/x.gif", "b/x.gif"]}, "two of its name"),
        ({"demonstrations": "d.npz"}, "no file 'd.npz'"),
        ({"run": "nowhere"}, "no run folder 'nowhere'"),
        ({"tasks": "window-opn-v3"}, "window-open-v3"),
        ({"baseline": _result()}, "no result to hold against it"),
        ({"result": _result(seed=0), "baseline": _result(seed=1)}, "in different ways"),
        ({"result": _result(chunk_size=8)}, "chunks of 8 actions, the model's are of 3"),
        ({"result": _result(model_timesteps=16)}, "trained for 16 timesteps, this one has for 0: evaluate it again"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(arguments, message, make_model, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        save_for_hub(make_model(), tmp_path / "out", **{"repo_id": "ann/toy", **arguments})
    assert not (tmp_path / "out").exists()


def test_model_that_needs_the_statistics_of_vecnormalize_is_refused(make_model, make_vec_env, tmp_path):
    model = make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"]))
    with pytest.raises(ValueError, match=r"'state' as VecNormalize standardises it.*norm_obs=False"):
        save_for_hub(model, tmp_path / "out", "ann/toy")
    assert not (tmp_path / "out").exists()
    model = make_model(VecNormalize(make_vec_env(), norm_obs=False))
    assert "README.md" in save_for_hub(model, tmp_path / "out", "ann/toy")


def test_folder_is_never_overwritten(make_model, tmp_path):
    (tmp_path / "README.md").write_text("written by hand")
    with pytest.raises(FileExistsError, match="already holds something"):
        save_for_hub(make_model(), tmp_path, "ann/toy")
    assert _files(tmp_path) == {"README.md"} and (tmp_path / "README.md").read_text() == "written by hand"


# ---------------------------------------------------------------------------------------------------------------------
# The upload


def test_push_uploads_the_folder_and_says_where(make_model, hub, tmp_path):
    save_for_hub(make_model(), tmp_path / "out", "ann/toy")
    url = push_to_hub(tmp_path / "out", "ann/toy", token="hf_given", private=True, commit_message="a toy")
    assert url == "https://huggingface.co/ann/toy"
    assert _files(hub.root / "ann/toy") == _files(tmp_path / "out")
    calls = {name: kwargs for name, kwargs in hub.calls}
    assert calls["__init__"] == {"token": "hf_given"}
    assert calls["create_repo"]["private"] is True
    assert calls["upload_folder"]["commit_message"] == "a toy"


def test_push_to_a_repository_that_exists_keeps_its_other_files(make_model, hub, tmp_path):
    repository = hub.root / "ann/toy"
    repository.mkdir(parents=True)
    (repository / ".gitattributes").write_text("*.zip filter=lfs")
    (repository / "README.md").write_text("of yesterday")
    save_for_hub(make_model(), tmp_path / "out", "ann/toy")
    push_to_hub(tmp_path / "out", "ann/toy")
    assert _files(repository) == {".gitattributes", "README.md", "ppo_self_bc.zip"}
    assert (repository / "README.md").read_text() == (tmp_path / "out/README.md").read_text()


@pytest.fixture
def with_card(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("card")
    return tmp_path / "out"


def test_push_needs_a_folder_with_a_card(hub, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no model card .* the folder that save_for_hub wrote"):
            push_to_hub(folder, "ann/toy")
    assert not hub.calls


def test_push_without_a_token_says_how_to_get_one(hub, with_card, monkeypatch):
    monkeypatch.setattr("sb3_vla.hub.upload.get_token", lambda: None)
    with pytest.raises(PermissionError, match=r"hf auth login.*HF_TOKEN"):
        push_to_hub(with_card, "ann/toy")
    assert not hub.calls
    assert push_to_hub(with_card, "ann/toy", token="hf_given")


def test_push_to_a_repository_of_somebody_else(hub, with_card):
    for status, error in ((403, PermissionError), (401, PermissionError), (500, HfHubHTTPError)):
        hub.refuse = status
        with pytest.raises(error, match=str(status)):
            push_to_hub(with_card, "bob/toy")
    assert "upload_folder" not in dict(hub.calls)


# ---------------------------------------------------------------------------------------------------------------------
# Run folders


def _package(run: RunFolder, out: Path, **kwargs: Any) -> tuple[ModelCard, list[str]]:
    arguments, missing = read_run(run.path, **kwargs)
    save_for_hub(folder=out, repo_id="ann/toy", **arguments)
    return ModelCard.load(out / "README.md"), missing


def test_run_of_quickstart(run, tmp_path):
    card, missing = _package(run, tmp_path / "out")
    films = {f"gifs/comparison_{task}.gif" for task in TASKS}
    assert missing == []
    assert _files(tmp_path / "out") == films | {
        *("README.md", "ppo_self_bc-metaworld.zip", "results.json", "baseline_results.json"),
        *("config.yaml", "versions.json", "curves.png"),
    }
    assert PPOSelfBC.load(tmp_path / "out/ppo_self_bc-metaworld.zip").num_timesteps == 16
    assert EvaluationResult.load(tmp_path / "out/results.json") == _result(30)
    assert EvaluationResult.load(tmp_path / "out/baseline_results.json") == _result(50)
    for name in ("config.yaml", "versions.json", "curves.png"):
        assert (tmp_path / "out" / name).read_bytes() == (run.path / name).read_bytes()
    assert "sb3-vla quickstart --out run" in card.text
    assert f"torch {json.loads(run.versions_file.read_text())['torch']}" in card.text
    # What an environment needs to act in, nothing of the training
    assert 'make_vla_env("drawer-close-v3", goal_split="test", suite="metaworld", horizon=40, chunk_size=3)' in card.text


def test_a_run_whose_results_are_not_its_models_is_refused(run):
    results = {"SFT": _result(50, model_timesteps=0).to_dict(), "post-trained": _result(30, model_timesteps=32).to_dict()}
    run.results.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results.json.*trained for 32 timesteps, this one has for 16"):
        read_run(run.path)
    run.results.write_text(json.dumps({"SFT": results["SFT"]}))
    with pytest.raises(ValueError, match="not evaluated its model yet: sb3-vla quickstart --resume"):
        read_run(run.path)


def test_run_of_sft_has_the_sft_model_and_its_results(run, tmp_path):
    run.model.unlink()
    card, missing = _package(run, tmp_path / "out")
    assert not missing
    assert PPOSelfBC.load(tmp_path / "out/ppo_self_bc-metaworld.zip").num_timesteps == 0
    assert EvaluationResult.load(tmp_path / "out/results.json") == _result(50)
    assert not (tmp_path / "out/baseline_results.json").exists()
    assert (tmp_path / f"out/gifs/sft_{TASKS[0]}.gif").is_file() and "comparison" not in card.text
    assert "not yet trained by reinforcement learning" in card.text


def test_run_of_train_names_what_is_missing_and_how_to_make_it(run, tmp_path):
    shutil.rmtree(run.gifs)
    run.results.unlink()
    run.curves.unlink()
    card, missing = _package(run, tmp_path / "out")
    assert [line.split(":")[0] for line in missing] == ["results.json", "gifs/", "curves.png"]
    assert f"sb3-vla eval {run.model} --out {run.results}" in missing[0]
    assert f"sb3-vla record {run.model} --out {run.gifs}" in missing[1]
    assert card.data.eval_results is None and "## Results" not in card.text and "![" not in card.text

    # As told
    _result(30).save(run.results)
    run.gifs.mkdir()
    (run.gifs / f"model_{TASKS[0]}.gif").write_bytes(b"film")
    card, missing = _package(run, tmp_path / "again")
    assert len(missing) == 1
    assert card.data.eval_results[1].metric_value == 30 and f"gifs/model_{TASKS[0]}.gif" in card.text
    assert "before post-training" not in card.text


def test_demonstrations_are_published_only_if_asked_for(run, tmp_path):
    _package(run, tmp_path / "without")
    assert not list((tmp_path / "without").rglob("*.npz"))
    card, _ = _package(run, tmp_path / "with", demonstrations=True)
    assert len(load_demonstrations(tmp_path / "with/demonstrations.npz")) == 4
    assert "demonstrations.npz" in card.text


def test_unusable_runs(run, tmp_path):
    shutil.rmtree(run.checkpoints)
    with pytest.raises(FileNotFoundError, match="no demonstration buffer"):
        read_run(run.path, demonstrations=True)
    for content in ("{", "[]", '{"SFT": 1, "post-trained": 2}', '{"post-trained": {}}'):
        run.results.write_text(content)
        with pytest.raises(ValueError, match=r"Cannot read .*results\.json"):
            read_run(run.path)
    _result(chunk_size=8).save(run.results)
    with pytest.raises(ValueError, match="chunks of 8"):
        read_run(run.path)
    run.model.unlink()
    run.sft_model.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.zip or sft_model\.zip"):
        read_run(run.path)
    with pytest.raises(ValueError, match="not a run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize("there_before", [False, True])
def test_a_folder_that_fails_to_be_written_is_left_as_it_was(make_model, tmp_path, monkeypatch, there_before):
    folder = tmp_path / "a" / "b"
    if there_before:
        folder.mkdir(parents=True)
    monkeypatch.setattr("sb3_vla.hub.model_folder.shutil.copyfile", _disk_full)
    film = tmp_path / "film.gif"
    film.write_bytes(b"GIF89a")
    with pytest.raises(OSError, match="No space left"):
        save_for_hub(make_model(), folder, "user/name", videos=[film])
    assert sorted(path.name for path in tmp_path.iterdir()) == (["a", "film.gif"] if there_before else ["film.gif"])
    assert not there_before or not list(folder.iterdir())


def _disk_full(*args):
    raise OSError(28, "No space left on device")

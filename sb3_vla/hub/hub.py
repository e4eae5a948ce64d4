"""To the Hugging Face Hub: a folder with the model, its card and its results, and the upload of it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from sb3_vla_envs import resolve_tasks

from ..common.run_folder import RunFolder, software_versions
from ..evaluation.evaluation import TRAINING_ONLY
from ..evaluation.result import EvaluationResult
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .model_card import CardContent, make_model_card
from .model_usage import benchmark_name

# Settings of an evaluation that are no arguments of the environment, and arguments of it that don't matter to a model in use
_NOT_OF_THE_ENV = {
    *("tasks", "seed", "n_envs", "deterministic", "n_goals", "goal_split", "goal_seed"),
    *(*TRAINING_ONLY, "render_mode"),
}


def save_for_hub(
    model: PPOSelfBC,
    folder: str | Path,
    repo_id: str,
    *,
    tasks: str | Sequence[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    result: EvaluationResult | None = None,
    baseline: EvaluationResult | None = None,
    videos: Sequence[str | Path] = (),
    run: str | Path | None = None,
    demonstrations: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[str]:
    """
    Write a folder that is ready for the Hugging Face Hub (:func:`push_to_hub`): the model, named as ``huggingface_sb3`` names
    it, a model card (``README.md``) and what else is given. The card tells only what is known: without an evaluation, for
    example, it has no table of results.

    :param model: The model
    :param folder: Where to write, new or empty
    :param repo_id: Where it will be on the Hub, ``"user/name"``; the card's code downloads it from there
    :param tasks: MetaWorld tasks that it was trained on, by default those of ``result``
    :param env_kwargs: Arguments of :func:`sb3_vla_envs.make_vla_env` in training (``chunk_size``, ``cameras``...), by default
        those of ``result``
    :param result: Evaluation of the model
    :param baseline: Evaluation of the model before post-training, on the same goals, shown beside it
    :param videos: GIFs of the model, shown in the card
    :param run: Run folder of the model: its ``config.yaml``, ``versions.json`` and ``curves.png`` go along
    :param demonstrations: File of demonstrations to publish, e.g. what ``model.save_replay_buffer`` wrote; by default none are
    :param metadata: Metadata of the card beside its own, e.g. ``{"license": "mit", "base_model": "user/name"}``
    :return: Names of the files
    :raises ValueError: if ``repo_id`` is no repository's id, a video is no GIF, or the evaluations don't fit
    :raises FileNotFoundError: if a file is missing
    :raises FileExistsError: if there is something in the folder
    """
    check_repo_id(repo_id)
    check_results(model, result, baseline)
    copies = _copies(videos, run, demonstrations)
    folder = check_new_folder(folder)
    settings = result.settings if result else {}
    # What evaluate_on_metaworld wrote has both
    tasks = resolve_tasks(tasks) if tasks else settings["tasks"] if {"tasks", "goal_split"} <= settings.keys() else []
    content = CardContent(
        model=model,
        repo_id=repo_id,
        filename=_model_filename(tasks),
        tasks=tasks,
        env_kwargs=_acting_env_kwargs({**(env_kwargs or {}), **settings}),
        result=result,
        baseline=baseline,
        command=_command(run),
        versions=_versions(run),
        files=[*copies, *(["results.json"] if result else []), *(["baseline_results.json"] if baseline else [])],
        metadata=metadata or {},
    )
    card = make_model_card(content)

    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / content.filename)
    for name, source in copies.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)
    for name, evaluation in (("results.json", result), ("baseline_results.json", baseline)):
        if evaluation is not None:
            evaluation.save(folder / name)
    card.save(folder / "README.md")
    return ["README.md", content.filename, *content.files]


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload a PPOSelfBC model with sb3-vla",
) -> str:
    """
    Upload a folder to the Hugging Face Hub, as one commit, to a repository that is made if there is none. Files that are
    there and not in the folder stay.

    :param folder: What :func:`save_for_hub` wrote
    :param repo_id: The repository, ``"user/name"``
    :param token: Access token, by default that of ``hf auth login`` or the environment variable ``HF_TOKEN``
    :param private: Whether a new repository is private, by default as the owner's settings say
    :param commit_message: Message of the commit
    :return: Where it is now
    :raises FileNotFoundError: if there is no such folder, or no model card in it
    :raises ValueError: if ``repo_id`` is no repository's id
    :raises PermissionError: if there is no token, or the Hub does not accept it
    """
    if not (Path(folder) / "README.md").is_file():
        raise FileNotFoundError(f"there is no model card '{folder}/README.md': give the folder that save_for_hub wrote")
    url = create_repo(repo_id, token, private)
    HfApi(token=token).upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return url


def create_repo(repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """
    Make sure that there is a repository to upload to. The arguments are those of :func:`push_to_hub`.

    :return: Its address
    """
    check_repo_id(repo_id)
    if token is None and get_token() is None:
        raise PermissionError(
            "there is no access token for the Hugging Face Hub: make one with write access at "
            "https://huggingface.co/settings/tokens, and run `hf auth login` or set HF_TOKEN"
        )
    try:
        return str(HfApi(token=token).create_repo(repo_id=repo_id, private=private, exist_ok=True))
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PermissionError(
            f"the Hugging Face Hub does not let you write to {repo_id!r}: give a repository of your own or of your "
            f"organization, and a token with write access ({error})"
        ) from error


def check_repo_id(repo_id: str) -> None:
    """
    :param repo_id: Id of a repository
    :raises ValueError: if it is none, or without its owner
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"the repository id {repo_id!r} has no owner: give 'user/{repo_id}'")


def check_new_folder(folder: str | Path) -> Path:
    """
    :param folder: A folder to write
    :return: The folder
    :raises FileExistsError: if there is something in it
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' already holds something: give another folder, or remove it")
    return folder


def check_results(model: PPOSelfBC, result: EvaluationResult | None, baseline: EvaluationResult | None) -> None:
    """
    :param model: The model
    :param result: Its evaluation
    :param baseline: Evaluation of the model before post-training
    :raises ValueError: if the evaluations can't be those of the model, or can't be compared
    """
    if baseline is not None:
        if result is None:
            raise ValueError("There is a baseline, but no result to hold against it: give the evaluation of the model too.")
        jobs = [[(episode.task, episode.goal_index) for episode in each.episodes] for each in (baseline, result)]
        if jobs[0] != jobs[1] or _protocol(baseline) != _protocol(result):
            raise ValueError("Result and baseline were evaluated in different ways: evaluate both with the same settings.")
    shape = model.action_space.shape or (None,)
    for evaluation in filter(None, (result, baseline)):
        chunk_size = evaluation.settings.get("chunk_size", shape[0])
        if chunk_size != shape[0]:
            raise ValueError(f"The evaluation is of chunks of {chunk_size} actions, the model's are of {shape[0]}.")


def _model_filename(tasks: Sequence[str]) -> str:
    """
    :param tasks: MetaWorld tasks, if any
    :return: ``<algorithm>-<environment id>.zip`` where they are those of one, as ``huggingface_sb3.ModelName`` has it
    """
    if not tasks:
        return "ppo_self_bc.zip"
    name = benchmark_name(tasks)
    return f"ppo_self_bc-MetaWorldVLA{f'-{name}' if name else ''}.zip"


def _acting_env_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: Arguments of ``make_vla_env``, among others
    :return: Those of them that matter to a model in use, as plain types
    """
    chosen = {key: value for key, value in settings.items() if key not in _NOT_OF_THE_ENV and value is not None}
    return json.loads(json.dumps(chosen, default=asdict))  # a Camera is a dataclass


def _protocol(result: EvaluationResult) -> dict[str, Any]:
    """Settings of an evaluation but for the number of environments, on which the numbers don't depend."""
    return {key: value for key, value in result.settings.items() if key != "n_envs"}


def _copies(videos: Sequence[str | Path], run: str | Path | None, demonstrations: str | Path | None) -> dict[str, Path]:
    """
    :param videos: GIFs
    :param run: Run folder
    :param demonstrations: File of demonstrations
    :return: By its name on the Hub, each file to copy
    """
    copies: dict[str, Path] = {}
    for video in map(Path, videos):
        if video.suffix != ".gif" or f"gifs/{video.name}" in copies:
            raise ValueError(f"The video '{video}' is no GIF, or there are two of its name: give GIFs of different names.")
        copies[f"gifs/{video.name}"] = video
    if demonstrations is not None:
        copies["demonstrations.npz"] = Path(demonstrations)
    if run is not None:
        folder = RunFolder.open(run)
        copies.update({path.name: path for path in (folder.config_file, folder.versions_file)})
        if folder.curves.is_file():
            copies[folder.curves.name] = folder.curves
    for path in copies.values():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file '{path}'")
    return copies


def _command(run: str | Path | None) -> str | None:
    if run is None:
        return None
    content = yaml.safe_load(RunFolder(run).config_file.read_text(encoding="utf-8"))
    return content.get("command") if isinstance(content, dict) else None


def _versions(run: str | Path | None) -> dict[str, str | int | None]:
    return software_versions() if run is None else json.loads(RunFolder(run).versions_file.read_text(encoding="utf-8"))

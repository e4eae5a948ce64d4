"""A folder for the Hugging Face Hub: the model, its card and its results."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_vla_envs.durable_files import check_writable
from sb3_vla_envs.suite import Suite, check_suite_in_file, find_suite

from ..common.run_folder import RunFolder, software_versions
from ..evaluation.result import MODEL_TIMESTEPS, EvaluationResult
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .model_card import CardContent, make_model_card
from .upload import check_license, check_repo_id

# Settings of the environment of which an evaluation has its own
_OF_THE_EVALUATION = ("n_goals", "goal_split", "goal_seed")


def save_for_hub(
    model: PPOSelfBC,
    folder: str | Path,
    repo_id: str | None,
    *,
    tasks: str | Sequence[str] | None = None,
    suite: str | Suite | None = None,
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
    :param repo_id: Where it will be on the Hub, ``"user/name"``; the card's code downloads it from there. ``None`` if it stays
        where it is: the card's code reads it in this folder then
    :param tasks: Tasks that it was trained on, by default those of ``result``
    :param suite: Their suite or its name, by default that of ``result``, or else the one that has them
    :param env_kwargs: Settings of :func:`sb3_vla_envs.make_vla_env` in training (``chunk_size``, ``cameras``...), by default
        those of ``result``
    :param result: Evaluation of the model
    :param baseline: Evaluation of the model before post-training, on the same goals, shown beside it
    :param videos: GIFs of the model, shown in the card
    :param run: Run folder of the model: its ``config.yaml``, ``versions.json`` and ``curves.png`` go along
    :param demonstrations: File of demonstrations to publish, e.g. what ``model.save_replay_buffer`` wrote; by default none are
    :param metadata: Metadata of the card beside its own, e.g. ``{"license": "mit", "base_model": "user/name"}``
    :return: Names of the files
    :raises ValueError: If ``repo_id`` is no repository's id, the licence can't be one of the Hub's, a video is no GIF, the
        evaluations don't fit, or the model reads observations that ``VecNormalize`` standardises: the Hub's users would lack
        its statistics
    :raises FileNotFoundError: If a file is missing
    :raises FileExistsError: If there is something in the folder
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    if (license_name := (metadata or {}).get("license")) is not None:
        check_license(license_name)
    check_portable(model)
    check_results(model, result, baseline)
    made_by = None if run is None else RunFolder.open(run)
    copies = _copies(videos, made_by, demonstrations)
    folder = check_new_folder(folder)
    settings = result.settings if result else {}
    # What evaluate_on_tasks wrote has both
    if not tasks and {"tasks", "suite"} <= settings.keys():
        check_suite_in_file(settings["suite"], "the evaluation", suite)
        tasks, suite = settings["tasks"], suite or settings["suite"]
    found = find_suite(tasks, suite) if tasks else None
    names = found.resolve_tasks(tasks) if found and tasks else ()
    base = _base_of(model)
    content = CardContent(
        model=model,
        name=folder.resolve().name if repo_id is None else repo_id.split("/")[-1],
        repo_id=repo_id,
        filename=_model_filename(found, names),
        suite=found,
        tasks=names,
        env_kwargs=_acting_settings(found, env_kwargs or {}, settings) if found else {},
        result=result,
        baseline=baseline,
        command=made_by.read_config()[0] if made_by else None,
        versions=made_by.read_versions() if made_by else software_versions(),
        files=[*copies, *(["results.json"] if result else []), *(["baseline_results.json"] if baseline else [])],
        metadata={**({"base_model": base} if base else {}), **(metadata or {})},
    )
    card = make_model_card(content)

    with _all_or_nothing(folder):
        model.save(folder / content.filename)
        for name, source in copies.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
        for name, evaluation in (("results.json", result), ("baseline_results.json", baseline)):
            if evaluation is not None:
                evaluation.save(folder / name)
        card.save(folder / "README.md")
    return ["README.md", content.filename, *content.files]


def check_new_folder(folder: str | Path) -> Path:
    """
    :param folder: A folder to write
    :return: The folder
    :raises FileExistsError: If there is something in it
    :raises OSError: If it can't be written there
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' already holds something: give another folder")
    check_writable(folder)
    return folder


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """
    Within it, a folder is filled, and left as it was if that fails.

    :param folder: The folder, empty or not there yet
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in made:
            path.rmdir()
        raise


def check_portable(model: PPOSelfBC) -> None:
    """
    :param model: The model
    :raises ValueError: If its zip file, and a model on the Hub that it names, are not enough to act with it
    """
    kwargs = model.adapter.portable_kwargs()
    named = [kwargs["backbone"], *kwargs["backbone_kwargs"].values()] if _base_of(model) else []
    if folders := [each for each in named if isinstance(each, str) and Path(each).is_absolute()]:
        raise ValueError(
            f"This model holds LoRA's adapters alone, and needs {folders[0]!r} beside it, which others don't have: train with "
            "lora=dict(save_base=True), or add them to the weights by model.policy.merge_lora()"
        )
    if model.normalized_keys:
        raise ValueError(
            f"This model reads {', '.join(map(repr, model.normalized_keys))} as VecNormalize standardises it, whose "
            "statistics are no part of the model: train without it (VLAPolicy standardises `state` itself), or with "
            "VecNormalize(venv, norm_obs=False)"
        )


def _base_of(model: PPOSelfBC) -> str | None:
    """The checkpoint that LoRA's adapters need beside them: a folder, or a name on the Hub."""
    backbone = model.adapter.portable_kwargs().get("backbone")
    return backbone if isinstance(backbone, str) else None


def check_results(model: PPOSelfBC, result: EvaluationResult | None, baseline: EvaluationResult | None) -> None:
    """
    :param model: The model
    :param result: Its evaluation
    :param baseline: Evaluation of the model before post-training
    :raises ValueError: If the evaluations can't be those of the model, or can't be compared
    """
    if baseline is not None:
        if result is None:
            raise ValueError("There is a baseline, but no result to hold against it: give the evaluation of the model too.")
        if not result.is_comparable_to(baseline):
            raise ValueError("Result and baseline were evaluated in different ways: evaluate both with the same settings.")
    trained = model.lifetime_timesteps
    if result is not None and result.settings.get(MODEL_TIMESTEPS, trained) != trained:
        raise ValueError(
            f"The evaluation is of a model that had trained for {result.settings[MODEL_TIMESTEPS]} timesteps, this one has "
            f"for {trained}: evaluate it again."
        )
    shape = model.action_space.shape or (None,)
    for evaluation in filter(None, (result, baseline)):
        chunk_size = evaluation.settings.get("chunk_size", shape[0])
        if chunk_size != shape[0]:
            raise ValueError(f"The evaluation is of chunks of {chunk_size} actions, the model's are of {shape[0]}.")


def _model_filename(suite: Suite | None, tasks: Sequence[str]) -> str:
    """
    :param suite: Suite of the tasks, if there are any
    :param tasks: Its tasks
    :return: ``<algorithm>-<suite>-<tasks>.zip``, as ``huggingface_sb3.ModelName`` has it
    """
    parts = ["ppo_self_bc", *([suite.name, suite.group_name(tasks)] if suite else [])]
    return f"{'-'.join(part for part in parts if part)}.zip"


def _acting_settings(suite: Suite, *settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param suite: The suite
    :param settings: Of its environments, among others; later ones count
    :return: Those of them that matter to a model in use and are not the suite's own anyway, as plain types
    """
    own = {name: _plain(value) for name, value in {**vars(suite.simulation()), **vars(suite.wrapping)}.items()}
    given = {name: _plain(value) for each in settings for name, value in each.items() if name in own and value is not None}
    acting = suite.acting_settings({name: value for name, value in given.items() if value != own[name]})
    return {name: value for name, value in acting.items() if name not in _OF_THE_EVALUATION}


def _plain(setting: Any) -> Any:
    return json.loads(json.dumps(setting, default=asdict))  # a Camera is a dataclass


def _copies(videos: Sequence[str | Path], run: RunFolder | None, demonstrations: str | Path | None) -> dict[str, Path]:
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
        copies.update({path.name: path for path in (run.config_file, run.versions_file)})
        if run.curves.is_file():
            copies[run.curves.name] = run.curves
    for path in copies.values():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file '{path}'")
    return copies

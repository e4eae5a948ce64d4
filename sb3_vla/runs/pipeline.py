"""The other steps of a run, each from a configuration: demonstrations, SFT, evaluation, probes, recordings."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_vla_envs import Demonstration, collect_demonstrations, save_demonstrations
from sb3_vla_envs.durable_files import replace_text
from sb3_vla_envs.suite import get_suite

from ..common.run_folder import RunFolder
from ..evaluation.collect import collect_episodes
from ..evaluation.evaluate import evaluate_on_tasks
from ..evaluation.gif import record_tasks
from ..evaluation.result import EvaluationResult
from ..imitation.probe import ProbeResult, probe
from ..imitation.sft import fine_tune
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import make_vla_vec_env, preload_workers
from .config import Config


def collect(config: Config, path: str | Path) -> list[Demonstration]:
    """
    Collect scripted-expert demonstrations and save them.

    :param config: Configuration
    :param path: Where to write
    :return: The demonstrations
    :raises FileExistsError: If the file exists
    """
    if Path(path).exists():
        raise FileExistsError(f"{str(path)!r} exists already: give another file")
    preload_workers()
    demonstrations = collect_demonstrations(
        config.tasks, seed=config.seed, suite=config.suite, **vars(config.demos), **config.env_settings()
    )
    save_demonstrations(path, demonstrations)
    return demonstrations


def run_sft(
    config: Config,
    demonstrations: Sequence[Demonstration],
    folder: RunFolder,
    auxiliary_episodes: Sequence[Demonstration] = (),
) -> PPOSelfBC:
    """
    Fine-tune a new policy on demonstrations and save it as a PPOSelfBC model, ready to be evaluated or post-trained. Where an
    earlier call was stopped, this one goes on from its checkpoint.

    :param config: Configuration
    :param demonstrations: What to imitate
    :param folder: The run's folder, which gets the model, its losses by epoch beside it, and until then the checkpoint
    :param auxiliary_episodes: See :func:`~sb3_vla.fine_tune`
    :return: The model
    :raises ValueError: If the checkpoint is damaged, or of other demonstrations
    """
    venv = make_vla_vec_env(config.tasks, 1, seed=config.seed, suite=config.suite, **config.env_settings())
    try:
        model = PPOSelfBC(
            "VLAPolicy",
            venv,
            gamma=config.wrapping.gamma,
            policy_kwargs=dict(vars(config.policy)),
            seed=config.seed,
            device=config.device,
        )
        losses = fine_tune(
            *(model, demonstrations),
            auxiliary_episodes=auxiliary_episodes,
            seed=config.seed,
            checkpoint=folder.sft_checkpoint,
            **vars(config.sft),
        )
        replace_text(folder.sft_model.with_suffix(".json"), json.dumps(asdict(losses), indent=1) + "\n")
        model.save(folder.sft_model)  # last: who finds it finds everything
        folder.sft_checkpoint.unlink(missing_ok=True)
    finally:
        venv.close()
    return model


def collect_own_episodes(config: Config, model: PPOSelfBC, path: str | Path, n_per_task: int) -> list[Demonstration]:
    """
    Collect a model's own episodes on goals of training, with the training's horizon, and save them.

    :param config: Configuration
    :param model: The model
    :param path: Where to write
    :param n_per_task: Episodes of each task
    :return: The episodes
    """
    episodes = collect_episodes(
        model,
        config.tasks,
        n_per_task,
        seed=config.seed,
        n_envs=config.train.n_envs,
        suite=config.suite,
        **config.training_env_settings(),
    )
    save_demonstrations(path, episodes)
    return episodes


def evaluate_model(config: Config, model: PPOSelfBC, **protocol: Any) -> EvaluationResult:
    """
    Evaluate on goals that training never saw.

    :param config: Configuration
    :param model: The model
    :param protocol: Arguments of :func:`~sb3_vla.evaluate_on_tasks` that go over the configuration, such as one of
        ``Suite.protocols``
    :return: The result
    """
    arguments = {**vars(config.eval), **config.acting_settings(), **protocol, "ranks": model.ranks}
    return evaluate_on_tasks(model, config.tasks, seed=config.seed, suite=config.suite, **arguments)


def probe_model(config: Config, model: PPOSelfBC, n_episodes: int) -> ProbeResult:
    """
    Ask what a policy's features know of the suite's ``privileged_parts``, on episodes of its disturbed experts.

    :param config: Configuration
    :param model: The model
    :param n_episodes: Episodes of each task, as many with goals of training as with those of the evaluation's split
    :return: The result
    """
    settings = {
        **config.env_settings(),
        **vars(config.demos),
        "privileged": True,
        "n_per_task": n_episodes,
        "every_step": False,
    }
    fitted_on, tested_on = (
        # Seeds of its own: not the very episodes that SFT may have learned by heart
        collect_demonstrations(
            config.tasks, suite=config.suite, seed=config.seed + 1_000_000 + i, **{**settings, "goal_split": split}
        )
        for i, split in enumerate(("train", config.eval.split))
    )
    what_counts = {
        **{"suite": config.suite, "seed": config.seed, "split": config.eval.split, "n_episodes": n_episodes},
        **{name: getattr(config.demos, name) for name in ("action_noise", "noise_correlation")},
        **config.acting_settings(),
    }
    parts = get_suite(config.suite).privileged_parts
    return probe(model, fitted_on, tested_on, parts, settings=what_counts)


def record_model(config: Config, model: PPOSelfBC, folder: str | Path, prefix: str, goal: int = 0) -> list[Path]:
    """
    Film one test goal of each task.

    :param config: Configuration
    :param model: The model
    :param folder: Where the GIFs go
    :param prefix: What their names begin with
    :param goal: Number of the goal
    :return: The GIFs
    """
    return record_tasks(
        *(model, config.tasks, folder, prefix, goal), seed=config.seed, suite=config.suite, **config.acting_settings()
    )

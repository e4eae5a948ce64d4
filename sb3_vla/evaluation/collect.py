"""A policy's own episodes, successful or not."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_vla_envs import Demonstration, Suite, find_suite
from sb3_vla_envs.argument_checks import check_count
from sb3_vla_envs.progress import Progress
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress

from ..common.random_states import forked_random
from .episode_schedule import episode_jobs
from .model_fit import model_settings
from .play import PlayedStep, play, scheduled_envs


def collect_episodes(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    n_per_task: int,
    *,
    deterministic: bool = False,
    seed: int = 0,
    n_envs: int = 8,
    progress: bool = True,
    suite: str | Suite | None = None,
    **settings: object,
) -> list[Demonstration]:
    """
    Let a policy act, and keep all of its episodes, failures too, each up to its success or its end. Their observations hold
    ``privileged``, too, where the suite knows any: they are what :func:`~sb3_vla.fine_tune` takes as ``auxiliary_episodes``.

    :param model: A model trained, or fine-tuned, on :func:`sb3_vla_envs.make_vla_env`'s environments
    :param tasks: Task, group of tasks, comma-separated names or a sequence of them
    :param n_per_task: Episodes of each task, each with another goal of training
    :param deterministic: Take the policy's mode instead of sampling
    :param seed: Seed of the environments' resets and of the samples
    :param n_envs: Environments that run at the same time
    :param progress: Show a progress bar over episodes with the time left
    :param suite: Suite of the tasks, by default the one that knows them
    :param settings: Settings of the environments (``cameras``, ``horizon``, ``task_ids``, ...), as in training
    :return: The episodes, as pairs of what the policy saw and the chunk that it chose
    :raises TypeError: If a setting is unknown, or an argument of another type
    :raises ValueError: If a task is unknown, an argument is out of range, or the model and the environment disagree on actions
        or observations
    """
    check_count("n_per_task", n_per_task)
    check_count("n_envs", n_envs)
    found = find_suite(tasks, suite)
    tasks = found.resolve_tasks(tasks)
    jobs = episode_jobs(tasks, n_per_task, seed)
    if settings.get("task_ids") is None:
        settings["task_ids"] = tasks
    settings = model_settings(model, **{**settings, "privileged": True, "n_goals": n_per_task})
    steps: list[list[PlayedStep]] = [[] for _ in jobs]
    with (
        scheduled_envs(model, suite or found.address, tasks, min(n_envs, len(jobs)), settings) as venv,
        Progress(len(jobs), "play", "episode", progress) as bar,
        forked_random(getattr(model, "device", None)),
    ):
        th.manual_seed(seed)
        for step in play(model, venv, jobs, deterministic):
            kept = {key: values.copy() for key, values in step.observation.items()}
            steps[step.episode].append(step._replace(observation=kept))
            bar.update(step.done)
    return [_episode(job.task, of_job) for job, of_job in zip(jobs, steps, strict=True)]


def _episode(task: str, steps: Sequence[PlayedStep]) -> Demonstration:
    """
    :param task: Name of the task
    :param steps: Of one episode
    :return: The episode
    """
    progress = EpisodeProgress()
    lengths = []
    for step in steps:
        before = progress.steps
        progress.add(step.info)
        lengths.append(progress.steps - before)
    return Demonstration(
        task=task,
        observations={key: np.stack([step.observation[key] for step in steps]) for key in steps[0].observation},
        actions=np.stack([step.action for step in steps]),
        chunk_lengths=np.array(lengths),
        success=bool(progress.success),
        rewards=np.array([step.reward for step in steps], np.float32),
        steps_to_success=progress.steps_to_success,
    )

"""Evaluation of a policy: one episode for each task and goal, in parallel, the same whatever the number of environments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from statistics import fmean
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from sb3_vla_envs import Suite, find_suite
from sb3_vla_envs.argument_checks import check_count
from sb3_vla_envs.progress import Progress
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress, task_name

from ..common.random_states import forked_random
from ..common.ranks import Ranks
from .episode_schedule import EpisodeJob, episode_jobs
from .model_fit import model_settings
from .play import VecEnvClass, play, scheduled_envs
from .result import MODEL_TIMESTEPS, EpisodeRecord, EvaluationResult


def evaluate(
    model: PolicyPredictor,
    venv: VecEnv,
    jobs: Sequence[EpisodeJob],
    deterministic: bool = True,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """
    Run exactly the given episodes; see :func:`~sb3_vla.evaluation.play.play` for what the outcome depends on.

    :param model: An SB3 model or policy, or anything with their ``predict``
    :param venv: Vectorised environment, each environment of it in an :class:`EpisodeSchedule`; the model sees it
        through its own ``VecNormalize``, if it has one
    :param jobs: The episodes (:func:`episode_jobs`)
    :param deterministic: Take the policy's mode instead of sampling
    :param progress: Show a progress bar over episodes with the time left
    :param settings: What else determines the numbers, to be kept in the result
    :return: The result, its episodes in the order of ``jobs``
    :raises ValueError: If there are no jobs, an environment has no schedule, or the model has lost its ``VecNormalize``
    :raises TypeError: If ``settings`` can't be written as JSON
    :raises RuntimeError: If an environment plays another task than it was told to, or its infos don't say which of several
        tasks it plays, or whether it succeeded; or a worker of the environments is lost
    """
    if not jobs:
        raise ValueError("There are no episodes to run: give at least one job, for example episode_jobs([''], n_goals=10).")
    # Through JSON now: settings that can't be saved should fail before the work, and look the same when loaded again.
    settings_to_keep: dict[str, Any] = json.loads(
        json.dumps({"deterministic": deterministic, **(settings or {})}, default=_as_plain)
    )
    must_name_task = len({job.task for job in jobs}) > 1
    episodes = [_Episode(job, must_name_task) for job in jobs]
    ended: list[EpisodeRecord] = []
    with Progress(len(jobs), "evaluate", "episode", progress) as bar:
        for step in play(model, venv, jobs, deterministic):
            episodes[step.episode].add(step.reward, step.info)
            if step.done:
                ended.append(episodes[step.episode].record())
                bar.update(1, **_figures(ended))
    return EvaluationResult([episode.record() for episode in episodes], settings_to_keep)


def evaluate_on_tasks(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    n_goals: int = 25,
    split: str = "test",
    n_envs: int = 8,
    vec_env_cls: VecEnvClass | None = None,
    seed: int = 0,
    deterministic: bool = True,
    progress: bool = True,
    suite: str | Suite | None = None,
    ranks: Ranks | None = None,
    **settings: Any,
) -> EvaluationResult:
    """
    Evaluate a model on tasks of a suite, one episode for each task and goal.

    :param model: A model trained on :func:`sb3_vla_envs.make_vla_env`'s environments; its chunk size, discount and
        ``VecNormalize`` are used
    :param tasks: Task, group of tasks, comma-separated names or a sequence of them
    :param n_goals: Goals per task
    :param split: Which goals: ``"test"``, which training never saw, ``"train"``, or ``"benchmark"`` where the suite has such
    :param n_envs: Environments that run at the same time
    :param vec_env_cls: ``SharedMemoryVecEnv`` (the default for more than one environment) or ``DummyVecEnv``, which starts
        at once and so is quicker for a few episodes
    :param seed: Seed of the environments' resets and, if actions are sampled, of the samples
    :param deterministic: Take the policy's mode instead of sampling
    :param progress: Show a progress bar over episodes with the time left
    :param suite: Suite of the tasks, by default the one that knows them
    :param ranks: Who shares the episodes out among them, each with ``n_envs`` environments, and all of whom get the result;
        such as ``model.ranks``, but by default this process alone
    :param settings: Settings of the environments (``cameras``, ``horizon``, ``n_action_steps``, ...), as in training
    :return: The result
    :raises TypeError: If a setting is unknown, or an argument of another type
    :raises ValueError: If a task is unknown, an argument is out of range, the model and the environment disagree on actions or
        observations, or the model has lost its ``VecNormalize``
    """
    check_count("n_envs", n_envs)
    found = find_suite(tasks, suite)
    tasks = found.resolve_tasks(tasks)
    jobs = episode_jobs(tasks, n_goals, seed)
    settings = model_settings(model, **{"goal_split": split, "n_goals": n_goals, **settings})
    ranks = ranks or Ranks()
    own = jobs[ranks.rank :: ranks.size] or jobs[:1]  # more ranks than jobs: some play one twice
    n_envs = min(n_envs, len(own))
    with scheduled_envs(model, suite or found.address, tasks, n_envs, settings, vec_env_cls) as venv:
        what_counts = {"suite": found.address, "tasks": tasks, "seed": seed, "n_envs": n_envs, **_in_full(found, settings)}
        if (timesteps := getattr(model, "lifetime_timesteps", None)) is not None:
            what_counts[MODEL_TIMESTEPS] = timesteps
        # Sampling here must not change the random numbers of a training that goes on afterwards
        with forked_random(getattr(model, "device", None)):
            th.manual_seed(seed + ranks.rank)
            result = evaluate(model, venv, own, deterministic, progress and ranks.is_first, what_counts)
    everywhere = ranks.all_gather_object(result.episodes)
    episodes = [everywhere[number % ranks.size][number // ranks.size] for number in range(len(jobs))]
    return EvaluationResult(episodes, ranks.broadcast_object(result.settings))


class _Episode:
    """
    An episode as it goes on.

    :param job: What is played
    :param must_name_task: Whether infos must say which task that is
    """

    def __init__(self, job: EpisodeJob, must_name_task: bool) -> None:
        self._job = job
        self._must_name_task = must_name_task
        self._played = ""
        self._progress = EpisodeProgress()
        self._return = 0.0

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        """
        :param reward: Of a step
        :param info: Of the step
        :raises RuntimeError: If another task is played
        """
        self._return += reward
        self._progress.add(info)
        self._played = task_name(info) or self._played
        if self._job.task and self._played not in ("", self._job.task):
            raise RuntimeError(
                f"The environment was reset with {self._job.options}, but played the task '{self._played}'. Its reset must "
                "follow options['task'] and options['goal_index']; see whether a wrapper drops them."
            )

    def record(self) -> EpisodeRecord:
        """
        :return: What it came to
        :raises RuntimeError: If nobody knows, or not of which task
        """
        if self._must_name_task and not self._played:
            raise RuntimeError(
                f"The environment was reset with {self._job.options}, but no info of the episode says by info['task'] which "
                "task it played: let its reset follow options['task'], and its infos name the task."
            )
        if self._progress.success is None:
            raise RuntimeError(
                "No info of an episode says by info['is_success'] whether it succeeded: let the environment say so, True or "
                "False, at every step or at the last one."
            )
        job, steps, to_success = self._job, self._progress.steps, self._progress.steps_to_success
        return EpisodeRecord(job.task, job.goal_index, to_success is not None, to_success, steps, self._return)


def _figures(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """
    :param episodes: Those that have ended
    :return: Success so far, and steps to it
    """
    steps = [episode.steps_to_success for episode in episodes if episode.steps_to_success is not None]
    return {"success": len(steps) / len(episodes), "steps": fmean(steps) if steps else None}


def _in_full(suite: Suite, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and those that go without saying: the suite's own, but for what matters in training only."""
    defaults = suite.acting_settings({**vars(suite.simulation()), **vars(suite.wrapping)})
    return {**defaults, **{name: value for name, value in settings.items() if value is not None}}


def _as_plain(value: Any) -> dict[str, Any]:
    """For what JSON doesn't know: a dataclass, such as a ``Camera``, as a dict."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} is among the settings of the evaluation, but can't be written to its JSON file. Leave it out.")

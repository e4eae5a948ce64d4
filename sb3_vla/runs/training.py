"""Post-training by a configuration, from its beginning or from a checkpoint."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from sb3_vla_envs import Demonstration
from sb3_vla_envs.progress import Progress

from ..common.launch import LostRank
from ..common.run_folder import RunFolder
from ..evaluation.result import EvaluationResult
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import make_vla_vec_env
from ..vec_env.ray_vec_env import RayVecEnv
from .checkpoint import ResumableCSV, RunCheckpoint, load_checkpoint, load_log
from .config import Config
from .interruption import stopping_later
from .models import new_model
from .plotting import plot_learning_curves
from .training_progress import TrainingProgress
from .validation import Validation


def post_train(
    config: Config,
    folder: RunFolder,
    initial_model: str | Path | None = None,
    demonstrations: Sequence[Demonstration] = (),
    progress: bool = True,
    trust_pickle: bool = False,
) -> PPOSelfBC:
    """
    Post-train with PPOSelfBC. Writes the model, checkpoints, ``progress.csv``, TensorBoard events and learning curves.

    :param config: Configuration
    :param folder: The run's folder
    :param initial_model: Model whose policy to start from; ``None`` starts from a new one
    :param demonstrations: What the demonstration buffer holds at the start
    :param progress: Whether to show a progress bar
    :param trust_pickle: Whether the initial model may be a pickled file, which can run anything
    :return: The model
    :raises ValueError: If the initial model or the demonstrations do not fit the environment
    """
    venv = _training_env(config)
    try:
        model = new_model(config, config.train.model_arguments(), venv, initial_model, trust_pickle)
        if model.replay_buffer is not None:
            model.replay_buffer.extend(demonstrations)
        elif demonstrations:
            warnings.warn("train.bc_weight is 0, so that nothing is imitated: the demonstrations are not used", stacklevel=2)
        return _learn(config, folder, model, progress)
    finally:
        venv.close()


def resume_training(config: Config, folder: RunFolder, checkpoint: Path, progress: bool = True) -> PPOSelfBC:
    """
    Continue a run of :func:`post_train`.

    :param config: Configuration
    :param folder: The run's folder
    :param checkpoint: What :func:`check_resuming` found there
    :param progress: Whether to show a progress bar
    :return: The model
    """
    venv = _training_env(config)
    try:
        model = load_checkpoint(checkpoint, venv, config.device)
        return _learn(config, folder, model, progress, checkpoint)
    finally:
        venv.close()


def _training_env(config: Config) -> VecEnv:
    return make_vla_vec_env(
        config.tasks,
        config.train.n_envs,
        seed=config.seed,
        suite=config.suite,
        vec_env_cls=RayVecEnv if config.train.vec_env == "ray" else None,
        task_weights=config.train.task_weights,
        **config.training_env_settings(),
    )


def _learn(
    config: Config, folder: RunFolder, model: PPOSelfBC, progress: bool, checkpoint_before: Path | None = None
) -> PPOSelfBC:
    """
    :param config: Configuration
    :param folder: The run's folder
    :param model: New, or from a checkpoint
    :param progress: Whether to show a progress bar
    :param checkpoint_before: The checkpoint
    :return: The model, trained to the end and saved
    :raises Interrupted: If a signal asked for a stop: there is a checkpoint then
    """
    logger = _make_logger(folder, model.num_timesteps) if model.ranks.is_first else Logger(None, [])
    if checkpoint_before is not None:
        load_log(checkpoint_before, logger)
    model.set_logger(logger)
    total = config.train.total_timesteps
    with (
        stopping_later("the training stops after what it is doing, with a checkpoint") as request,
        Progress(total, "train", "chunk", progress, done=model.num_timesteps) as bar,
    ):
        checkpoint = RunCheckpoint(folder.checkpoints, config.train.checkpoint_every, request)
        callbacks: list[BaseCallback] = [checkpoint, TrainingProgress(bar)]
        if config.train.validate_every is not None:
            callbacks.append(_validation(config, folder, config.train.validate_every))
        try:
            model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=model.num_timesteps == 0)
            request.signal = next(filter(None, model.ranks.all_gather_object(request.signal)), None)  # who stops one stops all
        except RuntimeError as error:
            is_lost = isinstance(error, LostRank)
            if not checkpoint.is_collecting or not (is_lost or request.signal):
                raise
            if model.is_sharded:  # the others, which have parts of it, may be gone or go on
                raise
            checkpoint.save_before_rollout()  # the signal may have ended the simulators, too
            if request.signal is None:
                raise
        finally:
            logger.close()
        if model.num_timesteps >= total:
            model.save(folder.model)
            if model.ranks.is_first:
                draw_curves(folder)
    return model


def draw_curves(folder: RunFolder, baseline: EvaluationResult | None = None) -> None:
    """
    Draw the learning curves, if there is anything to draw: what a run has learned does not depend on its log.

    :param folder: The run's folder
    :param baseline: Evaluation from before the training
    """
    try:
        plot_learning_curves(folder.progress, folder.curves, baseline)
    except ValueError as error:
        warnings.warn(f"there are no learning curves: {error}", stacklevel=2)


def _validation(config: Config, folder: RunFolder, every: int) -> Validation:
    """
    :param config: Configuration
    :param folder: The run's folder
    :param every: Timesteps between two evaluations
    :return: What evaluates a training on its way, on goals of the training's split, but of another list than it plays
    """
    arguments = {
        "tasks": config.tasks,
        "suite": config.suite,
        "seed": config.seed,
        "n_envs": config.eval.n_envs,
        **config.acting_settings(),
        "n_goals": config.train.n_validation_goals,
        "split": "train",
        "goal_seed": config.simulation.goal_seed + 1,
    }
    return Validation(folder.validation, folder.best_model, every, arguments)


def _make_logger(folder: RunFolder, last_timestep: int) -> Logger:
    """
    :param folder: The run's folder
    :param last_timestep: Timestep at which the run begins or resumes
    :return: Logger to ``progress.csv``, ``log.txt`` and TensorBoard
    """
    folder.tensorboard.mkdir(exist_ok=True)
    # Opened here, as SB3 would empty what a resumed run has; SB3 closes only what it takes for its own
    text = HumanOutputFormat(open(folder.log, "a", encoding="utf-8"))
    text.own_file = True
    return Logger(
        str(folder.path),
        [ResumableCSV(str(folder.progress), last_timestep), text, TensorBoardOutputFormat(str(folder.tensorboard))],
    )

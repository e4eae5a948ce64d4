"""The steps of a run, each from a configuration: demonstrations, SFT, post-training, evaluation, recordings."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from sb3_vla_envs import (
    Demonstration,
    collect_demonstrations,
    load_demonstrations,
    make_vla_env,
    read_lerobot,
    save_demonstrations,
    write_lerobot,
)
from sb3_vla_envs.durable_files import replace_text
from sb3_vla_envs.suite import get_suite

from ..common.run_folder import RunFolder
from ..evaluation.collect import collect_episodes
from ..evaluation.evaluate import evaluate_on_tasks
from ..evaluation.films import record_task_episode
from ..evaluation.gif import record_tasks, save_comparison_gif, save_gif
from ..evaluation.model_fit import check_model_fits, model_settings
from ..evaluation.result import EvaluationResult, results_table
from ..imitation.demonstration_buffer import DemonstrationBuffer
from ..imitation.probe import ProbeResult, probe
from ..imitation.sft import fine_tune
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import make_vla_vec_env, preload_workers
from .checkpoint import ResumableCSV, RunCheckpoint, checkpoint_timesteps, load_checkpoint, newest_checkpoint
from .config import Config, load_config
from .interruption import stopping_later
from .plotting import plot_comparison, plot_learning_curves
from .settings import deep_update
from .validation import Validation


def check_training(
    config: Config,
    initial_model: str | Path | None = None,
    demonstrations: Sequence[Demonstration] = (),
    trust_pickle: bool = False,
) -> None:
    """
    Build environment, policy and algorithm once, in this process, and hold model and demonstrations against them: so that
    mistakes show before any work is lost and anything is written, and not in a worker process.

    :param config: Configuration
    :param initial_model: Model to start from, or ``None``
    :param demonstrations: What to imitate
    :param trust_pickle: Whether the initial model may be a pickled file, which can run anything
    :raises ValueError: If the configuration does not work, or the initial model or the demonstrations do not fit it
    :raises FileNotFoundError: If there is no such model
    :raises RuntimeError: If no OpenGL library is installed
    """
    check_device(config.device)
    # All tasks in one environment, and as many chunks an update as from n_envs of them
    arguments = config.train.model_arguments()
    arguments["n_steps"] *= config.train.n_envs
    with _refusals():
        venv = make_vla_vec_env(config.tasks, 1, seed=config.seed, suite=config.suite, **config.env_settings())
        try:
            venv.reset()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run itself will warn
                model = _new_model(config, arguments, venv, initial_model, trust_pickle)
            DemonstrationBuffer(model.observation_space, model.action_space).extend(demonstrations)
        finally:
            venv.close()


def check_acting(config: Config, model: PPOSelfBC | None = None) -> None:
    """
    Build the environment once, in this process, and hold a model against it, like :func:`check_training`.

    :param config: Configuration
    :param model: Model to evaluate or record, or ``None``
    :raises ValueError: If the configuration does not work, or the model does not fit it
    :raises RuntimeError: If no OpenGL library is installed
    """
    settings = config.env_settings() if model is None else model_settings(model, **config.acting_settings())
    with _refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **settings)
        try:
            if model is not None:
                check_model_fits(model, env)
            env.reset()
        finally:
            env.close()


def check_experts(config: Config) -> None:
    """
    :param config: Configuration
    :raises ValueError: If the suite has no expert for one of the tasks
    """
    suite = get_suite(config.suite)
    without = [task for task in config.tasks if not suite.has_expert(task)]
    if without:
        raise ValueError(
            f"the suite {suite.name!r} has no expert for {', '.join(without)}: name other tasks, or give demonstrations of "
            "your own (sb3_vla_envs.save_demonstrations) to `sb3-vla sft --demos`"
        )


def check_resuming(config: Config, folder: RunFolder) -> Path:
    """
    :param config: Configuration with which a run is to go on
    :param folder: The run's folder
    :return: The checkpoint to go on from
    :raises ValueError: If it differs from the one that the run began with in what a run can't change on its way, the run is
        further than it says, all checkpoints are damaged, or PyTorch can't compute on its device here
    :raises FileNotFoundError: If there is no checkpoint
    """
    config.check_resumes(load_config(folder.began_file))
    check_device(config.device)
    checkpoint = newest_checkpoint(folder.checkpoints)
    done = checkpoint_timesteps(checkpoint)
    if config.train.total_timesteps < done:
        raise ValueError(
            f"train.total_timesteps must be at least {done}, as the run has done so many, got {config.train.total_timesteps}"
        )
    return checkpoint


def check_device(name: str) -> None:
    """
    :param name: The setting ``device``
    :raises ValueError: If PyTorch can't compute there on this machine; SB3 would take the CPU without a word
    """
    try:
        th.zeros(1, device="cpu" if name == "auto" else name).item()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device is {name!r}, but PyTorch can't compute there on this machine ({str(error).splitlines()[0]}): give "
            "'auto', 'cpu', or a GPU that torch.cuda.is_available() finds"
        ) from error


@contextmanager
def _refusals() -> Iterator[None]:
    """Within it, a setting of a wrong type and SB3's checks are a ``ValueError``, too."""
    try:
        yield
    except (TypeError, AssertionError) as error:
        raise ValueError(f"the configuration does not work: {error}") from error


@contextmanager
def _environment(config: Config) -> Iterator[gym.Env]:
    """The configuration's environment, which shows spaces and frame rate."""
    with _refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **config.env_settings())
    try:
        yield env
    finally:
        env.close()


def steps_a_second(env: gym.Env) -> float:
    """
    :param env: An environment, wrapped or not
    :return: Primitive steps a second
    """
    return float(env.unwrapped.metadata["render_fps"])


def collect(config: Config, path: str | Path) -> list[Demonstration]:
    """
    Collect scripted-expert demonstrations and save them.

    :param config: Configuration
    :param path: Where to write
    :return: The demonstrations
    :raises FileExistsError: If the file exists
    """
    if Path(path).exists():
        raise FileExistsError(f"{str(path)!r} exists already: give another file, or remove it")
    preload_workers()
    demonstrations = collect_demonstrations(
        config.tasks, seed=config.seed, suite=config.suite, **vars(config.demos), **config.env_settings()
    )
    save_demonstrations(path, demonstrations)
    return demonstrations


def import_lerobot(config: Config, folder: str | Path, path: str | Path) -> list[Demonstration]:
    """
    Read the demonstrations of a LeRobot dataset that fit the configuration's environment, and save them.

    :param config: Configuration
    :param folder: The dataset
    :param path: Where to write
    :return: The demonstrations
    :raises FileNotFoundError: If a file of the dataset is missing
    :raises ValueError: If the dataset does not fit the environment, or is damaged
    """
    suite, settings = get_suite(config.suite), dict(vars(config.lerobot))
    del settings["use_videos"]
    named = settings.pop("tasks") or {}
    unknown = sorted({*named.values()} - {*config.tasks})
    if unknown:
        raise ValueError(f"lerobot.tasks names the tasks {unknown}, but those of this run are {', '.join(config.tasks)}")
    texts = {text: task for task in config.tasks for text in (task, *suite.instructions(task))}
    with _environment(config) as env:
        settings["fps"] = settings["fps"] or steps_a_second(env)
        demonstrations = read_lerobot(
            folder,
            env.observation_space,
            env.action_space,
            tasks={**texts, **named},
            # What the environment will say, whatever the dataset's wording is
            instructions={task: suite.instructions(task)[0] for task in config.tasks},
            every_step=config.demos.every_step,
            **settings,
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_demonstrations(path, demonstrations)
    return load_demonstrations(path)


def export_lerobot(config: Config, demonstrations: Sequence[Demonstration], folder: str | Path) -> None:
    """
    Write demonstrations as a LeRobot dataset, at the frame rate of the configuration's environment.

    :param config: Configuration
    :param demonstrations: The demonstrations
    :param folder: Where to write, new or empty
    :raises FileExistsError: If the folder holds something
    :raises ValueError: If there are no demonstrations
    """
    with _environment(config) as env:
        fps = config.lerobot.fps or steps_a_second(env)
    steps_a_frame = max((int(demo.chunk_lengths.max()) for demo in demonstrations), default=1)
    write_lerobot(
        folder, demonstrations, fps=fps / steps_a_frame, keys=config.lerobot.keys, use_videos=config.lerobot.use_videos
    )


def run_sft(
    config: Config,
    demonstrations: Sequence[Demonstration],
    path: str | Path,
    auxiliary_episodes: Sequence[Demonstration] = (),
) -> PPOSelfBC:
    """
    Fine-tune a new policy on demonstrations and save it as a PPOSelfBC model, ready to be evaluated or post-trained.

    :param config: Configuration
    :param demonstrations: What to imitate
    :param path: Where to write the model (zip); its losses by epoch stand beside it (json)
    :param auxiliary_episodes: See :func:`~sb3_vla.fine_tune`
    :return: The model
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
        settings = vars(config.sft)
        losses = fine_tune(model, demonstrations, auxiliary_episodes=auxiliary_episodes, seed=config.seed, **settings)
        replace_text(Path(path).with_suffix(".json"), json.dumps(asdict(losses), indent=1) + "\n")
        model.save(path)  # last: who finds it finds everything
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
        model = _new_model(config, config.train.model_arguments(), venv, initial_model, trust_pickle)
        if model.replay_buffer is not None:
            model.replay_buffer.extend(demonstrations)
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
        # Not the episodes of the run's beginning once more
        venv.seed(config.seed + model.num_timesteps)
        return _learn(config, folder, model, progress)
    finally:
        venv.close()


def _training_env(config: Config) -> VecEnv:
    settings = config.training_env_settings()
    return make_vla_vec_env(config.tasks, config.train.n_envs, seed=config.seed, suite=config.suite, **settings)


def _learn(config: Config, folder: RunFolder, model: PPOSelfBC, progress: bool) -> PPOSelfBC:
    """
    :param config: Configuration
    :param folder: The run's folder
    :param model: New, or from a checkpoint
    :param progress: Whether to show a progress bar
    :return: The model, trained to the end and saved
    :raises Interrupted: If a signal asked for a stop: there is a checkpoint then
    """
    logger = _make_logger(folder, model.num_timesteps)
    model.set_logger(logger)
    with stopping_later("the training stops after what it is doing, with a checkpoint") as request:
        checkpoint = RunCheckpoint(folder.checkpoints, config.train.checkpoint_every, request)
        callbacks: list[BaseCallback] = [checkpoint]
        if config.train.validate_every is not None:
            callbacks.append(_validation(config, folder, config.train.validate_every))
        try:
            model.learn(
                config.train.total_timesteps - model.num_timesteps,
                callback=callbacks,
                reset_num_timesteps=model.num_timesteps == 0,
                progress_bar=progress,
            )
        except RuntimeError:
            if request.signal is None or not checkpoint.is_collecting:
                raise
            checkpoint.save_before_rollout()  # the signal may have ended the simulators, too
        finally:
            logger.close()
        if model.num_timesteps >= config.train.total_timesteps:
            model.save(folder.model)
            plot_learning_curves(folder.progress, folder.curves)
    return model


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


def _new_model(
    config: Config, arguments: dict[str, Any], venv: VecEnv, initial_model: str | Path | None, trust_pickle: bool
) -> PPOSelfBC:
    """
    :param config: Configuration
    :param arguments: Of PPOSelfBC; ``policy_kwargs`` go over those of the initial model, and count only with one
    :param venv: Training environment
    :param initial_model: Model whose weights to take over, or ``None``
    :param trust_pickle: Whether it may be a pickled file
    :return: The model to train
    """
    policy_kwargs = dict(vars(config.policy))
    if initial_model is not None:
        initial = load_model(initial_model, config.device, trust_pickle)
        check_model_fits(initial, venv)
        policy_kwargs = deep_update(initial.policy_kwargs, arguments["policy_kwargs"] or {})
    common = {"gamma": config.wrapping.gamma, "seed": config.seed, "device": config.device}
    model = PPOSelfBC("VLAPolicy", venv, **{**common, **arguments, "policy_kwargs": policy_kwargs})
    if initial_model is not None:
        model.policy.load_state_dict(initial.policy.state_dict())
        assert isinstance(model.policy, VLAPolicy)
        model.policy.head.restart((arguments["policy_kwargs"] or {}).get("head_kwargs") or {})
    return model


def load_model(path: str | Path, device: str = "auto", trust_pickle: bool = False) -> PPOSelfBC:
    """
    :param path: A model's zip file
    :param device: Where it goes
    :param trust_pickle: Whether to load a pickled file too, which can run anything
    :return: The model
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is no PPOSelfBC model, or PyTorch can't compute on the device here
    """
    check_device(device)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model {str(path)!r}: give the zip file of `sb3-vla sft` or `sb3-vla train`")
    try:
        return PPOSelfBC.load(path, device=device, trust_pickle=trust_pickle)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{str(path)!r} can't be loaded as a PPOSelfBC model: {error}") from error


def evaluate_model(config: Config, model: PPOSelfBC, **protocol: Any) -> EvaluationResult:
    """
    Evaluate on goals that training never saw.

    :param config: Configuration
    :param model: The model
    :param protocol: Arguments of :func:`~sb3_vla.evaluate_on_tasks` that go over the configuration, such as one of
        ``Suite.protocols``
    :return: The result
    """
    arguments = {**vars(config.eval), **config.acting_settings(), **protocol}
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


def quickstart(config: Config, folder: RunFolder, say: Callable[[str], None] = print) -> dict[str, EvaluationResult]:
    """
    The whole path: demonstrations, SFT, evaluation, post-training, evaluation, table, pictures. What the folder holds of it
    already, as an earlier call was interrupted, is not done again.

    :param config: Configuration
    :param folder: The run's folder
    :param say: Where messages go
    :return: The evaluations of ``"SFT"`` and ``"post-trained"``
    """
    say("1/5  Collecting demonstrations of the suite's expert")
    demonstrations = load_demonstrations(folder.demos) if folder.demos.exists() else collect(config, folder.demos)
    say("2/5  Supervised fine-tuning (SFT)")
    if folder.sft_model.exists():
        sft_model = load_model(folder.sft_model, config.device)
    else:
        sft_model = run_sft(config, demonstrations, folder.sft_model)
    say("3/5  Evaluating the SFT policy on goals that training does not see")
    results = load_results(folder)
    if "SFT" not in results:
        results["SFT"] = evaluate_model(config, sft_model)
        save_results(folder, results)
    say("4/5  Post-training with PPOSelfBC")
    model = _post_train_on(config, folder, demonstrations)
    say("5/5  Evaluating the post-trained policy on the same goals")
    if "post-trained" not in results:
        results["post-trained"] = evaluate_model(config, model)
    say("\n" + results_table(results))  # before it is saved: a disk may be full
    save_results(folder, results)
    plot_learning_curves(folder.progress, folder.curves, baseline=results["SFT"])
    plot_comparison(results["SFT"], results["post-trained"], folder.path / "comparison.png")
    record_comparison(config, sft_model, model, folder.gifs)
    return results


def _post_train_on(config: Config, folder: RunFolder, demonstrations: Sequence[Demonstration]) -> PPOSelfBC:
    """
    :param config: Configuration
    :param folder: Folder of a quickstart
    :param demonstrations: What the demonstration buffer holds at the start
    :return: The post-trained model, whether its training has begun and ended already or not
    """
    if folder.model.exists():
        return load_model(folder.model, config.device)
    if folder.has_checkpoints:
        return resume_training(config, folder, check_resuming(config, folder))
    return post_train(config, folder, folder.sft_model, demonstrations)


def load_results(folder: RunFolder) -> dict[str, EvaluationResult]:
    """
    :param folder: The folder of a quickstart
    :return: The evaluations in its ``results.json`` by name, none if there is no such file
    :raises ValueError: If the file is something else
    """
    if not folder.results.is_file():
        return {}
    try:
        content = json.loads(folder.results.read_text(encoding="utf-8"))
        return {name: EvaluationResult.from_dict(result) for name, result in content.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Cannot read '{folder.results}': {error}") from error


def save_results(folder: RunFolder, results: dict[str, EvaluationResult]) -> None:
    """
    :param folder: The run's folder, whose ``results.json`` is written
    :param results: Evaluations by name
    """
    content = {name: result.to_dict() for name, result in results.items()}
    replace_text(folder.results, json.dumps(content, indent=1) + "\n")


def record_comparison(config: Config, before: PPOSelfBC, after: PPOSelfBC, folder: Path) -> None:
    """
    Film one test goal of each task with either model: a GIF each, and one of both side by side.

    :param config: Configuration
    :param before: Model on the left
    :param after: Model on the right
    :param folder: Where the GIFs go
    """
    for task in tqdm(config.tasks, desc="film", unit="task"):
        films = []
        for name, model in (("sft", before), ("post_trained", after)):
            films.append(record_task_episode(model, task, seed=config.seed, suite=config.suite, **config.acting_settings()))
            save_gif(films[-1], folder / f"{name}_{task}.gif")
        save_comparison_gif(films[0], films[1], ("SFT", "post-trained"), folder / f"comparison_{task}.gif")


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

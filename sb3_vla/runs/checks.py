"""What can be wrong with a run, found before any work is done or anything is written."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gymnasium import spaces

from sb3_vla_envs import Demonstration, load_demonstrations, make_env_fns, make_vla_env
from sb3_vla_envs.suite import get_suite

from ..common.device_check import check_device
from ..common.launch import launched_as
from ..common.run_folder import RunFolder
from ..evaluation.model_fit import check_model_fits, model_settings
from ..imitation.demonstration_buffer import DemonstrationBuffer
from ..imitation.sft_checkpoint import check_sft_checkpoint, fingerprint_episodes
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import make_vla_vec_env
from ..vec_env.shared_memory_room import check_room, step_sizes
from .checkpoint import checkpoint_timesteps, newest_checkpoint
from .config import Config, load_run_config
from .models import load_model, new_model
from .results import load_results


def check_training(
    config: Config,
    initial_model: str | Path | None = None,
    demonstrations: Sequence[Demonstration] = (),
    trust_pickle: bool = False,
    goes_on: bool = False,
) -> None:
    """
    Build environment, policy and algorithm once, in this process, and hold model and demonstrations against them: so that
    mistakes show before any work is lost and anything is written, and not in a worker process.

    :param config: Configuration
    :param initial_model: Model to start from, or ``None``
    :param demonstrations: What to imitate
    :param trust_pickle: Whether the initial model may be a pickled file, which can run anything
    :param goes_on: Whether ``train`` goes on from the policy that the run makes first, as in the quickstart
    :raises ValueError: If the configuration does not work, or the initial model or the demonstrations do not fit it
    :raises FileNotFoundError: If there is no such model
    :raises RuntimeError: If no OpenGL library is installed, or there is too little shared memory
    """
    check_device(config.device)
    check_tasks(config, demonstrations)
    # All tasks in one environment, and as many chunks an update as from n_envs of them
    arguments = config.train.model_arguments()
    arguments["n_steps"] *= config.train.n_envs
    with refusals():
        n_envs = config.train.n_envs * launched_as()[1]
        make_env_fns(config.tasks, n_envs, suite=config.suite, task_weights=config.train.task_weights)
        venv = make_vla_vec_env(config.tasks, 1, seed=config.seed, suite=config.suite, **config.env_settings())
        try:
            if config.train.n_envs > 1:
                check_room(sum(step_sizes(config.train.n_envs, venv.observation_space)))
            venv.reset()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run itself will warn
                model = new_model(config, arguments, venv, initial_model, trust_pickle)
                if goes_on and config.train.policy_kwargs:
                    _check_takes_over(config, model)
            DemonstrationBuffer(model.observation_space, model.action_space).extend(demonstrations)
        finally:
            venv.close()
    check_goals(config, config.eval.split, config.eval.n_goals)
    if config.train.validate_every is not None:
        check_goals(config, "train", config.train.n_validation_goals)


def check_tasks(config: Config, demonstrations: Sequence[Demonstration]) -> None:
    """
    :param config: Configuration
    :param demonstrations: What it comes with
    :raises ValueError: If some are of other tasks
    """
    others = sorted({demonstration.task for demonstration in demonstrations} - {*config.tasks})
    if others:
        raise ValueError(
            f"there are demonstrations of the tasks {', '.join(others)}, but those of this run are {', '.join(config.tasks)}: "
            "say it by --tasks, or give demonstrations of these alone"
        )


def _check_takes_over(config: Config, model: PPOSelfBC) -> None:
    """
    :param config: Configuration
    :param model: The model before training
    :raises ValueError: If the policy that ``train`` makes of its own is another network
    """
    assert isinstance(model.observation_space, spaces.Dict) and isinstance(model.action_space, spaces.Box)
    kwargs = config.policy_in_training()
    policy = VLAPolicy(model.observation_space, model.action_space, model.lr_schedule, **kwargs)
    try:
        policy.load_state_dict(model.policy.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"train.policy_kwargs make another network of the policy, which can't take over the weights of the one before: "
            f"change it in the section policy instead ({error})"
        ) from error


def check_acting(config: Config, model: PPOSelfBC | None = None) -> None:
    """
    Build the environment once, in this process, and hold a model against it, like :func:`check_training`.

    :param config: Configuration
    :param model: Model to evaluate or record, or ``None``
    :raises ValueError: If the configuration does not work, or the model does not fit it
    :raises RuntimeError: If no OpenGL library is installed
    """
    settings = config.env_settings() if model is None else model_settings(model, **config.acting_settings())
    with refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **settings)
        try:
            if model is not None:
                check_model_fits(model, env)
            env.reset()
        finally:
            env.close()


def check_goals(config: Config, split: str, n_goals: int) -> None:
    """
    :param config: Configuration
    :param split: Goals to evaluate on, film or play
    :param n_goals: How many of them
    :raises ValueError: If the suite has no such goals, or not as many
    """
    settings = {**config.acting_settings(), "goal_split": split, "n_goals": n_goals}
    with refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **settings)
        try:
            env.reset(options={"task": config.tasks[0], "goal_index": n_goals - 1})
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
        further than it says, all checkpoints are damaged, a folder has the name of a file or the other way round, or PyTorch
        can't compute on its device here
    :raises FileNotFoundError: If there is no checkpoint
    """
    _check_same_run(config, folder, "train")
    check_device(config.device)
    checkpoint = newest_checkpoint(folder.checkpoints)
    done = checkpoint_timesteps(checkpoint)
    if config.train.total_timesteps < done:
        raise ValueError(
            f"train.total_timesteps must be at least {done}, as the run has done so many, got {config.train.total_timesteps}"
        )
    return checkpoint


def check_resuming_sft(
    config: Config, folder: RunFolder, demonstrations: Sequence[Demonstration], auxiliary_episodes: Sequence[Demonstration]
) -> None:
    """
    :param config: Configuration with which a fine-tuning is to go on
    :param folder: The run's folder
    :param demonstrations: What it is to imitate
    :param auxiliary_episodes: What else it is to learn from
    :raises ValueError: If one of these differs from what the run began with, or the run is another command's, or a file of it
        is damaged
    """
    _check_same_run(config, folder, "sft")
    given = {"demonstrations": demonstrations, "auxiliary_episodes": auxiliary_episodes}
    check_sft_checkpoint(folder.sft_checkpoint, {name: fingerprint_episodes(episodes) for name, episodes in given.items()})


def _check_same_run(config: Config, folder: RunFolder, command: str) -> None:
    """
    :param config: Configuration with which a run is to go on
    :param folder: The run's folder
    :param command: Name of the command that goes on with it
    :raises ValueError: If it differs from the one that the run began with in what a run can't change on its way, the run is
        one of ``sft`` and the command is not or the other way round, or a folder has the name of a file or the other way round
    """
    config.check_resumes(load_run_config(folder.began_file))
    began_with = folder.command_name()
    if (began_with == "sft") != (command == "sft"):
        own = f"go on with it by `sb3-vla {began_with} --resume`" if began_with else "which is unknown"
        raise ValueError(f"'{folder.path}' is a run of another command than {command}: {own}")
    folder.check_kinds()


def check_quickstart_resuming(config: Config, folder: RunFolder) -> None:
    """
    :param config: Configuration with which a quickstart is to go on
    :param folder: The run's folder
    :raises ValueError: If one of the files of the stages that are done can't be read, or see :func:`check_resuming`
    """
    _check_same_run(config, folder, "quickstart")
    try:
        load_results(folder)
        if folder.demos.exists():
            demonstrations = load_demonstrations(folder.demos)
            if not folder.sft_model.exists():
                given = {"demonstrations": fingerprint_episodes(demonstrations)}
                check_sft_checkpoint(folder.sft_checkpoint, given)
        trained = 0
        for path in (folder.sft_model, folder.model):
            if path.exists():
                trained = load_model(path, config.device).num_timesteps
    except ValueError as error:
        raise ValueError(f"{error}. If it is moved elsewhere, --resume makes it again, from what else there is") from error
    if folder.has_checkpoints and trained < config.train.total_timesteps:
        check_resuming(config, folder)


@contextmanager
def refusals() -> Iterator[None]:
    """Within it, a setting of a wrong type and SB3's checks are a ``ValueError``, too."""
    try:
        yield
    except (TypeError, AssertionError) as error:
        raise ValueError(f"the configuration does not work: {error}") from error

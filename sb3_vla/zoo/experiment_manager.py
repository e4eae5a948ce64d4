"""The zoo's experiment, for algorithms and environments with action chunks."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_wrapper_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from ..ppo_self_bc import PPOSelfBC
from ..shared_memory_vec_env import SharedMemoryVecEnv
from ..vla_policy import VLAPolicy
from .configs import find_config
from .hyperparams import CHUNK_SIZES

Hyperparams = dict[str, Any]

_CHUNK_WRAPPER = "ChunkedActionWrapper"
# Learning rates that may be schedules, beside those that the zoo knows
_LEARNING_RATES = ("backbone_learning_rate", "critic_learning_rate")


class ChunkExperimentManager(ExperimentManager):
    """
    rl_zoo3's ``ExperimentManager`` (this file follows version 2.9.2) with a few things changed:

    - hyperparameters are looked up in ``zoo_configs`` first;
    - ``chunk_size`` can be given like a hyperparameter (``-params chunk_size:4``) and is searched by ``-optimize``; it goes to
      the environment, as does PPOSelfBC's ``gamma``;
    - checkpoints and the final model of PPOSelfBC come with its demonstration buffer, and ``-i`` loads it again;
    - ``--vec-env subproc`` is :class:`~sb3_vla.SharedMemoryVecEnv`;
    - the ``env_kwargs`` of a configuration hold for the evaluation, and later for ``enjoy`` and films, too.

    :param args: The zoo's command line
    :param algo: Name of the algorithm
    :param env_id: Environment
    :param more_args: See ``rl_zoo3.exp_manager.ExperimentManager``
    :param kwargs: Likewise
    """

    def __init__(self, args: Any, algo: str, env_id: str, *more_args: Any, **kwargs: Any) -> None:
        super().__init__(args, algo, env_id, *more_args, **kwargs)
        self.config = find_config(algo, env_id, kwargs.get("config")) or self.config
        if self.vec_env_class is SubprocVecEnv:
            self.vec_env_class = SharedMemoryVecEnv
        self._is_self_bc = issubclass(ALGOS[algo], PPOSelfBC)
        # What a trial of the search starts from
        self._chunk_size: int | None = None
        self._wrappers: Hyperparams = {}

    def read_hyperparameters(self) -> tuple[Hyperparams, Hyperparams]:
        """
        Read the configuration and what the command line changes of it.

        :return: Hyperparameters, and those that are saved
        :raises ValueError: if there is a ``chunk_size``, but the environment has no chunks
        """
        hyperparams, saved = super().read_hyperparameters()
        changed = self._with_chunks(hyperparams, hyperparams.pop("chunk_size", None), hyperparams.get("gamma"))
        saved.pop("chunk_size", None)
        saved.update({key: copy.deepcopy(changed[key]) for key in ("env_kwargs", "env_wrapper") if key in changed})
        return changed, saved

    def _with_chunks(self, hyperparams: Hyperparams, chunk_size: int | None, gamma: float | None) -> Hyperparams:
        """
        :param hyperparams: Hyperparameters as in a configuration file
        :param chunk_size: New chunk size, ``None`` for that of the configuration
        :param gamma: New discount factor; only counts for PPOSelfBC, which discounts each primitive step
        :return: The same with chunk size and discount in the arguments of what makes the chunks
        :raises ValueError: if nothing makes chunks, but there is a chunk size
        """
        hyperparams = copy.deepcopy(hyperparams)
        settings = self._chunk_settings(hyperparams)
        if settings is None:
            if chunk_size is not None:
                raise ValueError(
                    f"chunk_size={chunk_size} is given, but {self.env_name.gym_id} takes single actions: add "
                    "env_wrapper: sb3_vla_envs.ChunkedActionWrapper to its hyperparameters"
                )
            return hyperparams
        if chunk_size is not None:
            settings["chunk_size"] = chunk_size
        if self._is_self_bc and gamma is not None:
            settings["gamma"] = gamma
        self._chunk_size = settings.get("chunk_size", self._default_chunk_size())
        return hyperparams

    def _chunk_settings(self, hyperparams: Hyperparams) -> Hyperparams | None:
        """
        :param hyperparams: Hyperparameters as in a configuration file
        :return: The arguments among them that say how long chunks are, to be changed in place; ``None`` if there are none
        """
        wrappers = hyperparams.get("env_wrapper") or []
        for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
            if isinstance(wrapper, dict):
                name, settings = next(iter(wrapper.items()))
                if name.endswith(_CHUNK_WRAPPER):
                    return settings
        if self._default_chunk_size() is not None:
            return hyperparams.setdefault("env_kwargs", {})
        return None

    def _default_chunk_size(self) -> int | None:
        """The chunk size of an environment that makes chunks by itself, as MetaWorldVLA does."""
        entry_point = gym.spec(self.env_name.gym_id).entry_point
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        parameter = inspect.signature(creator).parameters.get("chunk_size") if creator else None
        return None if parameter is None else parameter.default

    @staticmethod
    def _preprocess_schedules(hyperparams: Hyperparams) -> Hyperparams:
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        for name in _LEARNING_RATES:
            if hyperparams.get(name) is not None:
                schedule = ExperimentManager._preprocess_schedules({"learning_rate": hyperparams[name]})
                hyperparams[name] = schedule["learning_rate"]
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: Hyperparams) -> tuple[Hyperparams, Any, list[BaseCallback], Any]:
        self._wrappers = {key: copy.deepcopy(hyperparams[key]) for key in ("env_wrapper",) if key in hyperparams}
        processed = super()._preprocess_hyperparams(hyperparams)
        if self._eval_env_kwargs_args is None:
            # The zoo forgets those of the configuration file
            self.eval_env_kwargs = self.env_kwargs
        return processed

    def create_callbacks(self) -> None:
        """Create the zoo's callbacks; checkpoints include PPOSelfBC's demonstration buffer."""
        super().create_callbacks()
        for callback in self.callbacks:
            if self._is_self_bc and isinstance(callback, CheckpointCallback):
                callback.save_replay_buffer = True

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the trained model; PPOSelfBC's with its demonstration buffer, which is small.

        :param model: The model
        """
        self.save_replay_buffer = self.save_replay_buffer or self._is_self_bc
        if isinstance(model, PPOSelfBC) and model.replay_buffer is None:
            self.save_replay_buffer = False
        super().save_trained_model(model)

    def _save_config(self, saved_hyperparams: Hyperparams) -> None:
        # Where the zoo's record_video and push_to_hub look for the environment's arguments
        self.args.env_kwargs = self.env_kwargs or None
        super()._save_config(saved_hyperparams)

    def _load_pretrained_agent(self, hyperparams: Hyperparams, env: VecEnv) -> BaseAlgorithm:
        model = super()._load_pretrained_agent(hyperparams, env)
        if isinstance(model, PPOSelfBC):
            self._load_buffer_of_checkpoint(model)
            if model._n_updates > 0:
                # Its value function knows its policy already
                model.critic_warmup_steps = 0
        return model

    def _load_buffer_of_checkpoint(self, model: PPOSelfBC) -> None:
        """
        Load the demonstration buffer that was saved with a checkpoint, which is not the one at the end of the run.

        :param model: What was loaded from the checkpoint
        """
        agent = Path(self.trained_agent)
        checkpoint = re.fullmatch(r"(.+)_(\d+_steps)\.zip", agent.name)
        if checkpoint is None or model.replay_buffer is None:
            return
        buffer = agent.with_name(f"{checkpoint[1]}_replay_buffer_{checkpoint[2]}.pkl")
        if buffer.exists():
            print(f"Loading demonstration buffer {buffer}")
            model.load_replay_buffer(buffer)

    def objective(self, trial: optuna.Trial) -> float:
        """
        One trial of a hyperparameter search. The environment's chunk size is part of PPOSelfBC's; each trial takes about as
        many primitive steps.

        :param trial: The trial
        :return: Mean reward of the last evaluation
        """
        # A copy, as trials may run in threads
        experiment = copy.copy(self)
        if self._is_self_bc:
            trial.set_user_attr("has_parts", self._has_parts())
            if self._chunk_size is not None:
                experiment._set_chunk_size(trial.suggest_categorical("chunk_size", CHUNK_SIZES))
        return super(ChunkExperimentManager, experiment).objective(trial)

    def _has_parts(self) -> bool:
        policy = self._hyperparams["policy"]
        policy_class = PPOSelfBC.policy_aliases.get(policy) if isinstance(policy, str) else policy
        return policy_class is not None and issubclass(policy_class, VLAPolicy)

    def _set_chunk_size(self, chunk_size: int) -> None:
        """
        :param chunk_size: Chunk size of the environments to be created from now on
        """
        assert self._chunk_size is not None
        self.n_timesteps = max(1, self.n_timesteps * self._chunk_size // chunk_size)
        for name in ("env_kwargs", "eval_env_kwargs"):
            hyperparams = self._with_chunks({**self._wrappers, "env_kwargs": getattr(self, name)}, chunk_size, None)
            setattr(self, name, hyperparams["env_kwargs"])
        self.env_wrapper = get_wrapper_class(hyperparams)

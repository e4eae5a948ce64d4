"""The zoo's experiment, for algorithms and environments with action chunks."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from huggingface_sb3 import EnvironmentName
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule, get_wrapper_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from ..callbacks.success_eval_callback import SuccessEvalCallback
from ..common.schedule_text import with_schedule
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.shared_memory_vec_env import SharedMemoryVecEnv
from .configs import find_config
from .environment import Hyperparams, chunk_settings, is_of_a_suite
from .hyperparams import CHUNK_SIZES
from .trust import check_config_file, check_hyperparams, refusal

# What may be a schedule, beside what the zoo knows
_SCHEDULED = ("backbone_learning_rate", "critic_learning_rate", "noise_scale")
# Of a primitive step
_DISCOUNT_OF_SCORES = 0.99


class ChunkExperimentManager(ExperimentManager):
    """
    rl_zoo3's ``ExperimentManager`` (this file follows version 2.9.2) with a few things changed:

    - hyperparameters are looked up in ``zoo_configs`` first;
    - ``chunk_size`` can be given like a hyperparameter (``-params chunk_size:4``) and is searched by ``-optimize``; it goes to
      the environment, as does PPOSelfBC's ``gamma``;
    - checkpoints and the final model of PPOSelfBC come with its demonstration buffer, and ``-i`` loads it again;
    - ``--vec-env subproc`` is :class:`~sb3_vla.SharedMemoryVecEnv`;
    - ``--env-kwargs`` go over the ``env_kwargs`` of the configuration one by one, ``--eval-env-kwargs`` over both, and
      ``enjoy`` and films find what came of it;
    - a search ranks trials by success and steps, whatever the chunk size;
    - what could run anything in a configuration or study is refused.

    :param args: The zoo's command line
    :param algo: Name of the algorithm
    :param env_id: Environment
    :param more_args: See ``rl_zoo3.exp_manager.ExperimentManager``
    :param kwargs: Likewise
    """

    #: Whether files may run what they say
    trust = False

    def __init__(self, args: Any, algo: str, env_id: str, *more_args: Any, **kwargs: Any) -> None:
        super().__init__(args, algo, env_id, *more_args, **kwargs)
        config, self._entry = find_config(algo, env_id, kwargs.get("config"))
        self.config = config or self.config
        if self.vec_env_class is SubprocVecEnv:
            self.vec_env_class = SharedMemoryVecEnv
        if self.optimize_hyperparameters and self.n_jobs > 1 and is_of_a_suite(env_id):
            raise ValueError(
                f"--n-jobs {self.n_jobs} runs trials in threads, but a process can draw {env_id} in one only: start several "
                "processes with the same --storage and --study-name instead"
            )
        self._is_self_bc = issubclass(ALGOS[algo], PPOSelfBC)
        if self.continue_training and not (self._is_self_bc or self.trust):  # before there is a folder
            raise refusal(self.trained_agent, "is a pickled model")
        # What a trial of the search starts from
        self._chunk_size: int | None = None
        self._wrappers: Hyperparams = {}

    def read_hyperparameters(self) -> tuple[Hyperparams, Hyperparams]:
        """
        Read the configuration and what the command line changes of it.

        :return: Hyperparameters, and those that are saved
        :raises UntrustedError: If the configuration could run anything, and is not trusted
        :raises ValueError: If there is a ``chunk_size``, but the environment has no chunks, or ``--env-kwargs`` discount them
            otherwise than PPOSelfBC
        """
        if not self.trust:
            check_config_file(self.config)
        # The zoo would let those of the command line replace all of the configuration's
        given, self.env_kwargs = self.env_kwargs, {}
        env_name = self.env_name
        if self._entry != env_name.gym_id:
            print(f"Using the hyperparameters of {self._entry}")
        self.env_name = EnvironmentName(self._entry)
        try:
            hyperparams, saved = super().read_hyperparameters()
        finally:
            self.env_name = env_name
        if self.trial_id == 0 and self.storage and self.study_name:
            # Which the zoo takes for none
            found = {**self.load_trial(self.storage, self.study_name, 0), **(self.custom_hyperparams or {})}
            hyperparams.update(found)
            saved.update(found)
        if not self.trust:  # what the command line says is the user's own
            typed = self.custom_hyperparams or {}
            check_hyperparams({name: value for name, value in hyperparams.items() if name not in typed}, self.config)
        hyperparams["env_kwargs"] = dict(hyperparams.get("env_kwargs") or {})
        configured = self._steps_a_chunk(copy.deepcopy(hyperparams))
        hyperparams["env_kwargs"].update(given)
        self._check_discount(hyperparams, given)
        chunk_size = hyperparams.pop("chunk_size", None)
        changed = self._with_chunks(hyperparams, chunk_size, hyperparams.get("gamma"))
        saved.pop("chunk_size", None)
        n_steps = self._steps_a_chunk(changed)
        if n_steps is not None and n_steps != configured:
            self._discount_chunks(changed, n_steps)
        saved.update({key: copy.deepcopy(changed[key]) for key in ("env_kwargs", "env_wrapper", "gamma") if key in changed})
        return changed, saved

    def load_trial(self, storage: str, study_name: str, *args: Any, **kwargs: Any) -> Hyperparams:
        """
        :param storage: Of a search
        :param study_name: Likewise
        :param args: See ``rl_zoo3.exp_manager.ExperimentManager``
        :param kwargs: Likewise
        :return: What a trial has found
        :raises UntrustedError: If that could run anything, and is not trusted
        """
        found = super().load_trial(storage, study_name, *args, **kwargs)
        if not self.trust:
            check_hyperparams(found, storage)
        return found

    def _create_sampler(self, sampler_method: str) -> optuna.samplers.BaseSampler:
        if sampler_method == "auto" and self.storage and not self.trust:
            raise refusal(self.storage, "may hold a pickled sampler, which --sampler auto loads")
        return super()._create_sampler(sampler_method)

    def _steps_a_chunk(self, hyperparams: Hyperparams) -> int | None:
        """
        :param hyperparams: Hyperparameters as in a configuration file, with ``env_kwargs``
        :return: How many primitive steps of a chunk are executed, ``None`` without chunks
        """
        settings, defaults = chunk_settings(hyperparams, self.env_name.gym_id)
        if settings is None:
            return None
        known = {**defaults, **settings}
        return known.get("n_action_steps") or known["chunk_size"]

    def _check_discount(self, hyperparams: Hyperparams, given: Hyperparams) -> None:
        """
        :param hyperparams: Hyperparameters as in a configuration file, with ``env_kwargs``
        :param given: ``--env-kwargs``
        :raises ValueError: If these discount inside chunks otherwise than PPOSelfBC does
        """
        if not self._is_self_bc or "gamma" not in given or "gamma" not in hyperparams:
            return
        settings, _ = chunk_settings(hyperparams, self.env_name.gym_id)
        gamma = hyperparams["gamma"]
        if settings is hyperparams["env_kwargs"] and given["gamma"] != gamma:
            raise ValueError(
                f"--env-kwargs gamma:{given['gamma']} is not the gamma={gamma} of PPOSelfBC, which discounts each "
                f"primitive step as the environment's chunks do: give both of them -params gamma:{given['gamma']}"
            )

    def _discount_chunks(self, hyperparams: Hyperparams, n_steps: int) -> None:
        """
        Let an algorithm that discounts once a chunk follow its new length, unless the user gave its discount, too.

        :param hyperparams: Hyperparameters with the new chunks, changed in place
        :param n_steps: Primitive steps of a chunk that are executed
        """
        settings, defaults = chunk_settings(hyperparams, self.env_name.gym_id)
        assert settings is not None
        gamma = settings.get("gamma", defaults.get("gamma"))
        if self._is_self_bc or gamma is None or "gamma" in (self.custom_hyperparams or {}):
            return
        hyperparams["gamma"] = gamma**n_steps
        print(f"{n_steps} steps of a chunk are executed: it is discounted by gamma={hyperparams['gamma']:.4f}")

    def _with_chunks(self, hyperparams: Hyperparams, chunk_size: int | None, gamma: float | None) -> Hyperparams:
        """
        :param hyperparams: Hyperparameters as in a configuration file, with ``env_kwargs``
        :param chunk_size: New chunk size, ``None`` for that of the configuration
        :param gamma: New discount factor; only counts for PPOSelfBC, which discounts each primitive step
        :return: The same with chunk size and discount in the arguments of what makes the chunks
        :raises ValueError: If nothing makes chunks, but there is a chunk size
        """
        hyperparams = copy.deepcopy(hyperparams)
        settings, defaults = chunk_settings(hyperparams, self.env_name.gym_id)
        if settings is None:
            if chunk_size is not None:
                raise ValueError(
                    f"chunk_size={chunk_size} is given, but {self.env_name.gym_id} takes single actions: add the line "
                    "`- sb3_vla_envs.ChunkedActionWrapper: {chunk_size: 4}` to the env_wrapper of its hyperparameters"
                )
            return hyperparams
        if chunk_size is not None:
            settings["chunk_size"] = chunk_size
        if self._is_self_bc and gamma is not None and "gamma" in defaults:
            settings["gamma"] = gamma
        self._chunk_size = settings.get("chunk_size", defaults["chunk_size"])
        return hyperparams

    @staticmethod
    def _preprocess_schedules(hyperparams: Hyperparams) -> Hyperparams:
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        for name in _SCHEDULED:
            if hyperparams.get(name) is not None:
                schedule = with_schedule(hyperparams[name])
                if schedule is hyperparams[name]:
                    schedule = ExperimentManager._preprocess_schedules({"learning_rate": schedule})["learning_rate"]
                hyperparams[name] = schedule
        # SB3's class for the same: a model's file names no classes of the zoo
        return {
            name: LinearSchedule(value.initial_value, 0.0, 1.0) if isinstance(value, SimpleLinearSchedule) else value
            for name, value in hyperparams.items()
        }

    def _preprocess_hyperparams(self, hyperparams: Hyperparams) -> tuple[Hyperparams, Any, list[BaseCallback], Any]:
        self._wrappers = {key: copy.deepcopy(hyperparams[key]) for key in ("env_wrapper",) if key in hyperparams}
        processed = super()._preprocess_hyperparams(hyperparams)
        # The zoo forgets those of the configuration file
        self.eval_env_kwargs = {**self.env_kwargs, **(self._eval_env_kwargs_args or {})}
        return processed

    def create_callbacks(self) -> None:
        """Create the zoo's callbacks; checkpoints include PPOSelfBC's demonstration buffer."""
        n_specified = len(self.callbacks)
        super().create_callbacks()
        for callback in self.callbacks[n_specified:]:
            if self._is_self_bc and isinstance(callback, CheckpointCallback):
                callback.save_replay_buffer = True

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the trained model; PPOSelfBC's with its demonstration buffer.

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
        if not self._is_self_bc:
            return super()._load_pretrained_agent(hyperparams, env)
        print("Loading pretrained agent")
        changed = {key: value for key, value in hyperparams.items() if key not in ("policy", "policy_kwargs")}
        model = PPOSelfBC.load(
            self.trained_agent,
            env=env,
            device=self.device,
            seed=self.seed,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
            trust_pickle=self.trust,
            **changed,
        )
        if model._n_updates > 0 and "critic_warmup_steps" not in (self.custom_hyperparams or {}):
            # Its value function knows its policy already
            model.critic_warmup_steps = 0
        buffer = _demonstrations_beside(Path(self.trained_agent))
        if buffer.exists() and model.replay_buffer is not None:
            print(f"Loading demonstration buffer {buffer}")
            model.load_replay_buffer(buffer)
        return model

    def objective(self, trial: optuna.Trial) -> float:
        """
        One trial of a hyperparameter search. The environment's chunk size is part of PPOSelfBC's; each trial takes about as
        many primitive steps.

        :param trial: The trial
        :return: Score of the last evaluation, see :class:`TrialSuccessCallback`
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


class TrialSuccessCallback(TrialEvalCallback, SuccessEvalCallback):
    """
    Evaluates a trial. Where episodes report success, its score is the mean of ``0.99 ** steps_to_success``, 0 for a failure:
    the return of a sparse reward, discounted in primitive steps, which is comparable across chunk sizes and whatever discount
    factor a trial has drawn. Elsewhere it is the mean reward.
    """

    def _log_evaluation(self, rewards: list[float], lengths: list[int]) -> None:
        super()._log_evaluation(rewards, lengths)
        if self._is_success_buffer:
            to_success = [episode.steps_to_success for _, episode in self._episodes]
            steps = [np.inf if n is None else float(n) for n in to_success]
            self.last_mean_reward = float(np.mean(np.power(_DISCOUNT_OF_SCORES, steps)))


def _demonstrations_beside(agent: Path) -> Path:
    """
    :param agent: A model's zip file
    :return: Where its demonstration buffer would be: a checkpoint has its own
    """
    checkpoint = re.fullmatch(r"(.+)_(\d+_steps)\.zip", agent.name)
    name = f"{checkpoint[1]}_replay_buffer_{checkpoint[2]}.pkl" if checkpoint else "replay_buffer.pkl"
    return agent.with_name(name)

"""The callback that evaluates during training and keeps the model that succeeds most often, then soonest."""

import os
import warnings
from collections import defaultdict
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_vla_envs.durable_files import replacing
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress, task_name

from ..common.launch import launched_as
from ..common.ranks import Ranks
from ..evaluation.model_fit import check_model_fits
from .nested_callbacks import nested_callbacks


class SuccessEvalCallback(EvalCallback):
    """
    SB3's :class:`~stable_baselines3.common.callbacks.EvalCallback` (this file follows version 2.9.2) with another idea of the
    best model: the one with the highest success rate; among equals the one with the fewest primitive steps to success, then
    the one with the highest mean reward, which is all that counts where no episode's info reports ``is_success``.

    An episode succeeds with the first step whose info says ``is_success``, whatever follows. Steps to success are that info's
    ``steps_to_success``, or else the primitive steps until then, the sum of ``chunk_length`` (1 where it is absent). All tasks
    (``info["task"]``) count alike in their mean. Where only some of the episodes report ``is_success``, the others count as
    failures.

    Beside SB3's arrays ``evaluations.npz`` has ``steps`` and ``steps_to_success`` (nan without a success), a row an evaluation
    and a column an episode. ``eval/steps_to_success`` and ``eval/success_rate/<task>`` are logged.

    ``best_mean_reward`` is that of the best model, and
    :class:`~stable_baselines3.common.callbacks.StopTrainingOnNoModelImprovement` counts every new best model.

    Of several ranks each evaluates in an environment of its own, and the first one alone writes what it has seen; whether that
    is the best counts for all of them, and for what else is called here.

    :param eval_env: The environment to evaluate in, wrapped as the one for training: what ``VecFrameStack`` and
        ``VecNormalize`` do to observations there, they must do here (``VecTransposeImage`` is not needed). The statistics are
        those of training
    :param callback_on_new_best: Callback to trigger when there is a new best model
    :param callback_after_eval: Callback to trigger after every evaluation
    :param n_eval_episodes: The number of episodes to test the agent; where environments have tasks of their own, a multiple of
        their number
    :param eval_freq: Evaluate the agent every ``eval_freq`` call of the callback.
    :param log_path: Path to a folder where the evaluations (``evaluations.npz``) will be saved. It will be updated at each
        evaluation.
    :param best_model_save_path: Path to a folder where the best model will be saved.
    :param deterministic: Whether the evaluation should use a stochastic or deterministic actions.
    :param render: Whether to render or not the environment during evaluation
    :param verbose: Verbosity level: 0 for no output, 1 for indicating information about evaluation results
    :param warn: Passed to ``evaluate_policy`` (warns if ``eval_env`` has not been wrapped with a Monitor wrapper)
    :raises ValueError: If environments with tasks of their own would not all play as many episodes
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 5,
        eval_freq: int = 10000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 1,
        warn: bool = True,
    ) -> None:
        super().__init__(
            eval_env,
            callback_on_new_best=callback_on_new_best,
            callback_after_eval=callback_after_eval,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            log_path=log_path,
            best_model_save_path=best_model_save_path,
            deterministic=deterministic,
            render=render,
            verbose=verbose,
            warn=warn,
        )
        self._check_that_all_play_alike()
        self.evaluations_steps: list[list[int]] = []
        self.evaluations_steps_to_success: list[list[float]] = []
        # The evaluated episodes, each with the name of its task, and by environment those under way
        self._episodes: list[tuple[str, EpisodeProgress]] = []
        self._under_way: defaultdict[int, EpisodeProgress] = defaultdict(EpisodeProgress)
        # Success rate, minus the steps to success, reward
        self._best_quality = (-np.inf, -np.inf, -np.inf)

    def _check_that_all_play_alike(self) -> None:
        n_envs = self.eval_env.num_envs
        if self.n_eval_episodes % n_envs and self.eval_env.has_attr("tasks"):
            tasks = set(map(str, self.eval_env.get_attr("tasks")))  # whatever they are
            if len(tasks) > 1:  # of which SB3 plays some less often, or never
                raise ValueError(
                    f"n_eval_episodes={self.n_eval_episodes} can't be shared out evenly among the {n_envs} environments of "
                    f"eval_env, which have other tasks each: give a multiple of {n_envs}"
                )

    def _init_callback(self) -> None:
        check_model_fits(self.model, self.eval_env)
        training, evaluation = _normalized_keys(self.training_env), _normalized_keys(self.eval_env)
        if training != evaluation:
            raise ValueError(
                f"VecNormalize normalises the observations {training} of the training environment, and {evaluation} of that "
                "for evaluation: wrap both alike, the latter in VecNormalize(eval_env, training=False, norm_reward=False, "
                "norm_obs_keys=...) with the same norm_obs_keys, or neither."
            )
        with warnings.catch_warnings():
            # SB3 compares the outermost wrappers, which may differ in what makes no difference
            warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
            super()._init_callback()

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        self._sync_normalization()
        self._episodes.clear()
        self._under_way.clear()
        rewards, lengths = evaluate_policy(
            self.model,
            self.eval_env,
            n_eval_episodes=self.n_eval_episodes,
            render=self.render,
            deterministic=self.deterministic,
            return_episode_rewards=True,
            warn=self.warn,
            callback=self._log_success_callback,
        )
        assert isinstance(rewards, list) and isinstance(lengths, list)
        reported = any(episode.success is not None for _, episode in self._episodes)
        self._is_success_buffer = [bool(episode.success) for _, episode in self._episodes] if reported else []
        if self.log_path is not None and launched_as()[0] == 0:
            self._save_evaluations(self.log_path, rewards, lengths)
        self.last_mean_reward = float(np.mean(rewards))
        self._log_evaluation(rewards, lengths)

        continue_training = True
        success_rate = float(np.mean(self._is_success_buffer)) if reported else 0.0
        quality = (success_rate, -self._mean_steps_to_success(), self.last_mean_reward)
        # All save a sharded model, or none does: what ranks see in their environments differs
        quality = getattr(self.model, "ranks", Ranks()).broadcast_object(quality)
        self.last_mean_reward = quality[-1]
        if quality > self._best_quality:
            self._best_quality = quality
            continue_training = self._on_new_best()
        # Trigger callback after every evaluation, if needed
        return continue_training and self._on_event()

    def _sync_normalization(self) -> None:
        """Let the evaluation environment normalise with what the training environment has learnt."""
        training, evaluation = unwrap_vec_normalize(self.training_env), unwrap_vec_normalize(self.eval_env)
        if training is None or evaluation is None:
            return
        if training.norm_obs:
            evaluation.obs_rms = deepcopy(training.obs_rms)
        evaluation.ret_rms = deepcopy(training.ret_rms)

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        Follow the episodes of ``evaluate_policy``, which calls this after each step of each environment.

        :param locals_: Its local variables
        :param globals_: Its global variables
        """
        i, info = locals_["i"], locals_["info"]
        self._under_way[i].add(info)
        # Where there is a Monitor, its word counts: a lost life is no end, see evaluate_policy
        if not locals_["done"] or (locals_["is_monitor_wrapped"] and "episode" not in info):
            return
        self._episodes.append((task_name(info), self._under_way.pop(i)))

    def _mean_steps_to_success(self) -> float:
        """
        :return: Mean over the tasks of the mean steps to success, infinite without a success
        """
        by_task = defaultdict(list)
        for task, episode in self._episodes:
            if episode.steps_to_success is not None:
                by_task[task].append(episode.steps_to_success)
        return float(np.mean([np.mean(steps) for steps in by_task.values()])) if by_task else np.inf

    def _save_evaluations(self, log_path: str, rewards: list[float], lengths: list[int]) -> None:
        """
        :param log_path: File
        :param rewards: Return of each episode
        :param lengths: Its length, as Monitor or the environment counts
        """
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(rewards)
        self.evaluations_length.append(lengths)
        self.evaluations_steps.append([episode.steps for _, episode in self._episodes])
        to_success = [episode.steps_to_success for _, episode in self._episodes]
        self.evaluations_steps_to_success.append([np.nan if steps is None else steps for steps in to_success])
        arrays: dict[str, Any] = {}
        # Save success log if present
        if self._is_success_buffer:
            self.evaluations_successes.append(self._is_success_buffer)
            arrays["successes"] = self.evaluations_successes
        # As np.savez does
        with replacing(log_path if log_path.endswith(".npz") else f"{log_path}.npz") as file:
            np.savez(
                file,
                timesteps=self.evaluations_timesteps,
                results=self.evaluations_results,
                ep_lengths=self.evaluations_length,
                steps=self.evaluations_steps,
                steps_to_success=self.evaluations_steps_to_success,
                **arrays,
            )

    def _log_evaluation(self, rewards: list[float], lengths: list[int]) -> None:
        """
        :param rewards: Return of each episode
        :param lengths: Its length, as Monitor or the environment counts
        """
        if self.verbose >= 1:
            print(f"Eval num_timesteps={self.num_timesteps}, episode_reward={np.mean(rewards):.2f} +/- {np.std(rewards):.2f}")
            print(f"Episode length: {np.mean(lengths):.2f} +/- {np.std(lengths):.2f}")
        self.logger.record("eval/mean_reward", self.last_mean_reward)
        self.logger.record("eval/mean_ep_length", np.mean(lengths))
        if self._is_success_buffer:
            self._log_success()
        # Dump log so the evaluation results are printed with the correct timestep
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _log_success(self) -> None:
        success_rate, steps = np.mean(self._is_success_buffer), self._mean_steps_to_success()
        if self.verbose >= 1:
            print(f"Success rate: {100 * success_rate:.2f}%, steps to success: {steps:.2f}")
        self.logger.record("eval/success_rate", success_rate)
        if np.isfinite(steps):
            self.logger.record("eval/steps_to_success", steps)
        by_task = defaultdict(list)
        for task, episode in self._episodes:
            by_task[task].append(bool(episode.success))
        for task, successes in by_task.items():
            if task:
                # Not on the console, whose keys are cut at 36 characters and must stay different
                self.logger.record(f"eval/success_rate/{task}", np.mean(successes), exclude=("stdout", "log"))

    def _on_new_best(self) -> bool:
        """
        Keep the model.

        :return: Whether to go on training
        """
        if self.verbose >= 1:
            print("New best model!")
        if self.best_model_save_path is not None:
            self.model.save(os.path.join(self.best_model_save_path, "best_model"))
        self.best_mean_reward = self.last_mean_reward
        for child in nested_callbacks(self.callback):
            if isinstance(child, StopTrainingOnNoModelImprovement):
                # It compares rewards, which need not rise when success or steps get better
                child.last_best_mean_reward = -np.inf
        # Trigger callback on new best model, if needed
        return self.callback_on_new_best is None or self.callback_on_new_best.on_step()


def _normalized_keys(env: VecEnv) -> list[str]:
    """The observations that ``VecNormalize`` normalises; where they have no names, "observation"."""
    normalize = unwrap_vec_normalize(env)
    if normalize is None or not normalize.norm_obs:
        return []
    return ["observation"] if normalize.norm_obs_keys is None else sorted(normalize.norm_obs_keys)

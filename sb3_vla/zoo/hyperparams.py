"""What a hyperparameter search of the zoo (``-optimize``) tries for PPOSelfBC."""

from typing import Any

import optuna

NAME = "ppo_self_bc"
CHUNK_SIZES = (2, 4, 8, 16)


def sample_ppo_self_bc_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw PPOSelfBC's hyperparameters, for ``rl_zoo3.HYPERPARAMS_SAMPLER``. The chunk size belongs to the environment:
    :class:`~sb3_vla.zoo.experiment_manager.ChunkExperimentManager` draws it, and tells by the trial's user attribute
    ``has_parts`` whether the policy's parts have learning rates of their own.

    :param trial: The trial
    :param n_actions: Not used
    :param n_envs: Not used
    :param additional_args: Not used
    :return: Arguments of PPOSelfBC
    """
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "n_epochs": trial.suggest_categorical("n_epochs", [1, 2, 5, 10]),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.5, 0.95),
        "bc_rule": trial.suggest_categorical("bc_rule", ["constant", "tanh", "success", "gradient_balance"]),
        "bc_strength": trial.suggest_float("bc_strength", 0.01, 2.0, log=True),
        "episodes_per_task": trial.suggest_categorical("episodes_per_task", [10, 30, 100]),
    }
    if trial.user_attrs.get("has_parts", False):
        sampled["critic_learning_rate"] = trial.suggest_float("critic_learning_rate", 1e-4, 3e-3, log=True)
        sampled["backbone_learning_rate"] = trial.suggest_float("backbone_learning_rate", 1e-6, 3e-4, log=True)
    return convert_ppo_self_bc_params(sampled)


def convert_ppo_self_bc_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what a trial has drawn (``trial.params``) into arguments, for ``rl_zoo3.HYPERPARAMS_CONVERTER``.

    :param sampled_params: What was drawn, by name
    :return: Arguments of PPOSelfBC, and ``chunk_size`` if that was drawn
    """
    params = sampled_params.copy()
    rule = params.pop("bc_rule")
    params["bc_weight"] = rule
    # A proportion of gradients in one rule, a weight in the others
    params["bc_weight_kwargs"] = {"ratio" if rule == "gradient_balance" else "weight": params.pop("bc_strength")}
    params["replay_buffer_kwargs"] = {"episodes_per_task": params.pop("episodes_per_task")}
    # Those of the value function include n_epochs; where it is a part of its own, more of them cost little
    params["critic_epochs"] = max(20, params["n_epochs"]) if "critic_learning_rate" in params else params["n_epochs"]
    return params

"""What a model fixes about the environments that it can act in."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ..policies.observation_checks import has_channels_first
from ..policies.vla_policy import VLAPolicy


def model_settings(model: BaseAlgorithm, **settings: Any) -> dict[str, Any]:
    """
    Complete the settings of a suite's environment by those that the model fixes: its chunk size and its discount. Without
    ``privileged``, unless it is asked for: VLAPolicy doesn't need it to act, and its size depends on the tasks in training.

    :param model: A model whose actions are chunks of shape (chunk_size, action_dim)
    :param settings: Settings of the environment, see :func:`sb3_vla_envs.make_vla_env`
    :return: The settings, with ``chunk_size``, ``gamma`` and ``privileged``
    :raises ValueError: If the model's actions are no chunks, or of another size than an explicit ``chunk_size``
    """
    shape = model.action_space.shape
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"The model's action space is {model.action_space}, but the environments of a suite take chunks of actions: a Box "
            "of shape (chunk_size, action_dim). Give a model that was trained on sb3_vla_envs.make_vla_env(...)."
        )
    chunk_size = settings.setdefault("chunk_size", shape[0])
    if chunk_size != shape[0]:
        raise ValueError(
            f"chunk_size is {chunk_size}, but the model predicts chunks of {shape[0]}. Leave chunk_size out; to execute "
            "fewer actions of each chunk, give n_action_steps."
        )
    settings.setdefault("privileged", False)
    if hasattr(model, "gamma"):
        settings.setdefault("gamma", float(model.gamma))
    return settings


def check_model_fits(model: BaseAlgorithm, env: gym.Env[Any, Any] | VecEnv) -> None:
    """
    Check that a model can act in an environment. Whether images are channels-first doesn't matter, as SB3 policies turn
    them, nor does a missing ``privileged``, which only a critic in training reads, or one that VLAPolicy was trained without.

    :param model: The model
    :param env: The environment
    :raises ValueError: If actions or observations differ in shape or type; the message names them
    """
    expected = {"action": _signature(model.action_space), **_observation_signatures(model.observation_space)}
    given = {"action": _signature(env.action_space), **_observation_signatures(env.observation_space)}
    key = "observation 'privileged'"
    if key not in given or (key not in expected and isinstance(getattr(model, "policy", None), VLAPolicy)):
        expected.pop(key, None)
        given.pop(key, None)
    differences = [
        f"{key}: the model has {expected.get(key, 'none')}, the environment {given.get(key, 'none')}"
        for key in {**expected, **given}
        if expected.get(key) != given.get(key)
    ]
    if differences:
        raise ValueError(
            f"The model doesn't fit the environment. {'; '.join(differences)}. Give the environment the settings "
            "(chunk_size, cameras, tasks or task_ids, ...) and the wrappers (VecFrameStack, ...) that it had in training."
        )


def _observation_signatures(space: gym.Space[Any]) -> dict[str, str]:
    if isinstance(space, gym.spaces.Dict):
        return {f"observation '{key}'": _signature(subspace) for key, subspace in space.spaces.items()}
    return {"observation": _signature(space)}


def _signature(space: gym.Space[Any]) -> str:
    shape = space.shape
    if shape is not None and has_channels_first(space):
        shape = (*shape[1:], shape[0])
    return f"{type(space).__name__}{shape} of {space.dtype}"

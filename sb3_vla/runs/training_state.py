"""What a training goes on from beside its model's file and its demonstrations: environments, episodes, random numbers."""

from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from ..common.normalizer_state import get_normalizer_state, set_normalizer_state
from ..common.random_states import get_random_states, set_random_states
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.vec_env_state import get_states, set_states


def training_state(model: PPOSelfBC) -> dict[str, Any]:
    """
    :param model: A model between two updates, or before its first
    :return: The state, of values that a file of plain ones can hold; what comes after leaves it alone
    """
    return {
        "random": _random_states(model),
        "demonstrations": None if model.replay_buffer is None else model.replay_buffer.get_state(),
        "episodes": model.get_episodes(),
        "environments": _environments(model),
        "log": _recorded(getattr(model, "_logger", None)),
    }


def restore_environments(env: VecEnv, state: dict[str, Any]) -> str | None:
    """
    Let environments go on with their episodes.

    :param env: Environments like those of the training
    :param state: What :func:`training_state` returned
    :return: Why they can't, "" if they had not begun any, ``None`` if they do
    """
    environments = state["environments"]
    if "why_not" in environments:
        return str(environments["why_not"])
    try:
        base, normalizer = _unwrapped(env)
        if (normalizer is None) != (environments["normalizer"] is None):
            raise ValueError("VecNormalize was around the environments, and is not now, or the other way round")
        set_states(base, environments["states"])
    except (NotImplementedError, ValueError) as error:
        return str(error)
    if normalizer is not None:
        set_normalizer_state(normalizer, environments["normalizer"])
    return None


def restore_model(model: PPOSelfBC, state: dict[str, Any], with_episodes: bool) -> None:
    """
    :param model: The model, loaded with its demonstrations
    :param state: What :func:`training_state` returned
    :param with_episodes: Whether its environments go on with their episodes
    """
    if model.replay_buffer is not None:
        model.replay_buffer.set_state(state["demonstrations"])
    if state["episodes"] is not None:
        model.set_episodes(state["episodes"], under_way=with_episodes)
    if model.ranks.is_first:
        restore_random_states(model, state["random"])
        return
    # What is kept is the first rank's; the others begin new random numbers, each its own
    seed = None if model.rank_seed is None else model.rank_seed + model.num_timesteps
    model.set_random_seed(seed)
    if model.replay_buffer is not None:
        model.replay_buffer.rng = np.random.default_rng(seed)


def restore_log(logger: Logger, state: dict[str, Any]) -> None:
    """
    :param logger: Of a training that goes on
    :param state: What :func:`training_state` returned: of the last update, say, nothing had been written yet
    """
    for name, (value, excluded) in state["log"].items():
        logger.record(name, value, tuple(excluded))


def _recorded(logger: Logger | None) -> dict[str, Any]:
    """
    :param logger: Of a training, ``None`` before its beginning
    :return: Numbers that it will write with the next row, and the formats that leave them out
    """
    if logger is None:
        return {}
    return {
        name: (float(value), list(logger.name_to_excluded[name]))
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float | np.number)
    }


def restore_random_states(model: PPOSelfBC, states: dict[str, Any]) -> None:
    """
    :param model: The model
    :param states: The part ``"random"`` of what :func:`training_state` returned
    """
    set_random_states(states, model.device)
    model.action_space.np_random.bit_generator.state = states["action_space"]


def _random_states(model: PPOSelfBC) -> dict[str, Any]:
    return {**get_random_states(model.device), "action_space": model.action_space.np_random.bit_generator.state}


def _environments(model: PPOSelfBC) -> dict[str, Any]:
    """
    :param model: The model
    :return: States of its environments, or ``why_not``, empty before their first episodes
    """
    if model.env is None or model._last_obs is None:
        return {"why_not": ""}
    if model.rollout_is_ahead:
        return {"why_not": "overlap=True had begun the next rollout already"}
    try:
        base, normalizer = _unwrapped(model.env)
        normalizer_state = None if normalizer is None else get_normalizer_state(normalizer)
        return {"states": get_states(base), "normalizer": normalizer_state}
    except (NotImplementedError, RuntimeError) as error:  # the latter of workers that have ended
        return {"why_not": str(error)}


def _unwrapped(env: VecEnv) -> tuple[VecEnv, VecNormalize | None]:
    """
    :param env: A vectorised environment
    :return: What is wrapped, and the ``VecNormalize`` around it
    :raises NotImplementedError: If there is another wrapper that keeps something
    """
    normalizer = None
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and normalizer is None:
            normalizer = env
        elif not isinstance(env, VecTransposeImage):
            raise NotImplementedError(f"{type(env).__name__} can't tell its state")
        env = env.venv
    return env, normalizer

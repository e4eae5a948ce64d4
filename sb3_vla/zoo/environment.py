"""What a configuration of the zoo says of an environment."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.utils import get_class_by_name

from sb3_vla_envs import ChunkedActionWrapper, make_vla_env
from sb3_vla_envs.suite import find_suite

Hyperparams = dict[str, Any]


def env_creator(env_id: str) -> Callable[..., Any]:
    """
    :param env_id: Environment
    :return: The class or function that makes it
    """
    entry_point = gym.spec(env_id).entry_point
    assert entry_point is not None
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def is_of_a_suite(env_id: str) -> bool:
    """
    :param env_id: Environment
    :return: Whether it is made by :func:`sb3_vla_envs.make_vla_env`, out of pictures and chunks
    """
    return env_creator(env_id) is make_vla_env


def chunk_settings(hyperparams: Hyperparams, env_id: str) -> tuple[Hyperparams | None, Hyperparams]:
    """
    :param hyperparams: Hyperparameters as in a configuration file, with ``env_kwargs``
    :param env_id: Environment
    :return: The arguments among them that say how long chunks are, to be changed in place (``None`` if nothing makes chunks),
        and what they are by default
    """
    wrappers = hyperparams.get("env_wrapper") or []
    # Each a name, a class, or a dictionary of one of them and its arguments
    wrappers = list(wrappers) if isinstance(wrappers, list) else [wrappers]
    for i, wrapper in enumerate(wrappers):
        name, settings = next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, None)
        wrapper_class = get_class_by_name(name) if isinstance(name, str) else name
        if inspect.isclass(wrapper_class) and issubclass(wrapper_class, ChunkedActionWrapper):
            wrappers[i] = {name: dict(settings or {})}
            hyperparams["env_wrapper"] = wrappers
            return wrappers[i][name], {"chunk_size": None, "gamma": 1.0}
    given = gym.spec(env_id).kwargs
    if is_of_a_suite(env_id):
        return hyperparams["env_kwargs"], {**vars(find_suite(given["tasks"], given.get("suite")).wrapping), **given}
    parameters = inspect.signature(env_creator(env_id)).parameters
    if "chunk_size" not in parameters:
        return None, {}
    defaults = {name: parameter.default for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    return hyperparams["env_kwargs"], {"chunk_size": None, **defaults, **given}

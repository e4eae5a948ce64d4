"""What an environment goes on from in another process, bit for bit, its wrappers included."""

import copy
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor

# What changes in the wrappers of others; those that only translate are taken to keep nothing
_CHANGES: dict[type[gym.Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    Monitor: ("rewards", "needs_reset", "total_steps", "current_reset_info"),
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
    PassiveEnvChecker: (),
}
_TRANSLATORS = (gym.ObservationWrapper, gym.ActionWrapper, gym.RewardWrapper)

#: Of an environment: of each wrapper, from the outermost on, and of what they wrap, its class and its state
EnvState = list[tuple[str, Any]]


@runtime_checkable
class TellsState(Protocol):
    """An environment, or a wrapper, that another one made with the same arguments can go on from."""

    def get_state(self) -> Any:
        """
        :return: What it goes on from, of a wrapper what that itself does: numbers, texts, arrays, and tuples, lists and
            dictionaries of these
        :raises NotImplementedError: If it can't tell
        """

    def set_state(self, state: Any) -> None:
        """
        :param state: What :meth:`get_state` returned
        """


def get_env_state(env: gym.Env[Any, Any]) -> EnvState:
    """
    :param env: An environment
    :return: What it goes on from
    :raises NotImplementedError: If it, or one of its wrappers, can't tell
    """
    return [(type(layer).__name__, _state_of(layer)) for layer in _layers(env)]


def set_env_state(env: gym.Env[Any, Any], state: EnvState) -> None:
    """
    :param env: An environment like the one that the state is of
    :param state: What :func:`get_env_state` returned
    :raises ValueError: If its wrappers are others
    """
    layers = _layers(env)
    if [name for name, _ in state] != [type(layer).__name__ for layer in layers]:
        raise ValueError(f"the state is of an environment of other wrappers than {env}: {[name for name, _ in state]}")
    for layer, (_, own) in zip(layers, state, strict=True):
        if isinstance(layer, TellsState):
            layer.set_state(own)
        else:
            vars(layer).update({name: copy.copy(own[name]) for name in _changes(layer)})


def _layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _state_of(layer: gym.Env[Any, Any]) -> Any:
    if isinstance(layer, TellsState):
        return layer.get_state()
    return {name: copy.copy(getattr(layer, name)) for name in _changes(layer)}


def _changes(layer: gym.Env[Any, Any]) -> tuple[str, ...]:
    """:return: Names of attributes"""
    for kind, names in _CHANGES.items():
        if isinstance(layer, kind):
            return names
    if isinstance(layer, _TRANSLATORS):
        return ()
    raise NotImplementedError(f"{type(layer).__name__} can't tell its state: it has no get_state and set_state")

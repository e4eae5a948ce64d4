"""One number that is not finite, anywhere in a training: it stops before it learns from it, and says where it came from."""

import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from run_settings import make_model, settings
from tally import Tally

from sb3_vla import PPOSelfBC
from sb3_vla.runs.checkpoint import RunCheckpoint, load_checkpoint, newest_checkpoint
from sb3_vla.runs.config import load_config
from sb3_vla.runs.interruption import StopRequest
from sb3_vla_envs import collect_demonstrations

_TIMESTEPS = 96  # six updates
_SAVED = 16  # by the first of them


class _Once:
    """
    Spoils one number, once.

    :param at: At which call, counted from 0
    :param value: What it becomes
    """

    def __init__(self, at: int, value: float) -> None:
        self.at, self.value, self.calls = at, value, 0

    def __call__(self, array: Any) -> Any:
        self.calls += 1
        if self.calls - 1 != self.at:
            return array
        if isinstance(array, float):
            return self.value
        spoilt = array.clone() if isinstance(array, th.Tensor) else array.copy()
        spoilt.reshape(-1)[0] = self.value
        return spoilt


class _Spoilt(gym.Wrapper[Any, Any, Any, Any]):
    """
    :param env: An environment of chunks
    :param reward: Spoils the reward
    :param state: Spoils the state
    """

    def __init__(self, env: gym.Env[Any, Any], reward: _Once | None = None, state: _Once | None = None) -> None:
        super().__init__(env)
        self.reward, self.state = reward, state

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self.state is not None and not (terminated or truncated):  # of the last one the critic reads other things
            obs = {**obs, "state": self.state(obs["state"])}
        return obs, reward if self.reward is None else self.reward(float(reward)), terminated, truncated, info


def inject(n: int, seed: int) -> Tally:
    """
    :param n: How many
    :param seed: Of where, when and what
    :return: What came of them
    """
    tally, rng = Tally("NaN or infinity in rewards, observations, weights, gradients and demonstrations"), random.Random(seed)
    places = list(_PLACES)
    for number in range(n):
        place, value = places[number % len(places)], rng.choice([np.nan, np.inf, -np.inf])
        # While the critic warms up, nothing else has gradients
        warmup = 0 if place.startswith("a gradient") and "critic" not in place else rng.choice([0, 1000])
        with tempfile.TemporaryDirectory() as temporary:
            wrong = _learn(place, value, rng.randrange(4), warmup, Path(temporary))
        if wrong is None:
            tally.survived(f"{place}: stopped, and said so")
        else:
            tally.lose(f"injection {number} of seed {seed}, {value} in {place}, warm-up {warmup}: {wrong}")
    return tally


def _learn(place: str, value: float, at: int, warmup: int, folder: Path) -> str | None:
    """:return: What is wrong with how the training ended, ``None`` if nothing is"""
    spoil, named = _PLACES[place]
    model = make_model(critic_warmup_steps=0)
    model.learn(_SAVED, callback=RunCheckpoint(folder, 1, StopRequest()))
    model.critic_warmup_steps = warmup
    try:
        spoil(model, _Once(at, value))
        model.learn(_TIMESTEPS, callback=RunCheckpoint(folder, 1, StopRequest()), reset_num_timesteps=False)
    except (FloatingPointError, ValueError) as error:
        if not re.search(named, str(error)):
            return f"said {error}"
    else:
        return "went on"
    again = load_checkpoint(newest_checkpoint(folder), make_model().get_env(), device="cpu")
    numbers = [value for state in again.policy.optimizer.state_dict()["state"].values() for value in state.values()]
    if not all(th.isfinite(value).all() for value in (*numbers, *again.policy.state_dict().values())):
        return "its checkpoint is not finite"
    again.learn(_SAVED, reset_num_timesteps=False)
    return None


def _spoil_environment(name: str) -> Callable[[PPOSelfBC, _Once], None]:
    def spoil(model: PPOSelfBC, once: _Once) -> None:
        environments = model.get_env().unwrapped.envs  # type: ignore[union-attr]
        environments[0] = _Spoilt(environments[0], **{name: once})

    return spoil


def _spoil_gradient(part: str) -> Callable[[PPOSelfBC, _Once], None]:
    def spoil(model: PPOSelfBC, once: _Once) -> None:
        next(weight for weight in getattr(model.policy, part).parameters() if weight.requires_grad).register_hook(once)

    return spoil


def _spoil_weight(part: str) -> Callable[[PPOSelfBC, _Once], None]:
    def spoil(model: PPOSelfBC, once: _Once) -> None:
        weight = next(getattr(model.policy, part).parameters())
        once.at = 0
        with th.no_grad():
            weight.copy_(once(weight))

    return spoil


def _spoil_demonstration(name: str) -> Callable[[PPOSelfBC, _Once], None]:
    def spoil(model: PPOSelfBC, once: _Once) -> None:
        config = load_config(None, **settings(_SAVED))
        (demonstration,) = collect_demonstrations("point", 1, suite=config.suite, progress=False, **config.env_settings())
        once.at = 0
        if name == "actions":
            demonstration.actions = once(demonstration.actions)
        else:
            demonstration.observations[name] = once(demonstration.observations[name])
        model.replay_buffer.extend([demonstration])  # type: ignore[union-attr]

    return spoil


# How it is put there, and what the error has to name
_PLACES: dict[str, tuple[Callable[[PPOSelfBC, _Once], None], str]] = {
    "the reward": (_spoil_environment("reward"), "reward"),
    "the state": (_spoil_environment("state"), "state"),
    "a gradient of the critic": (_spoil_gradient("critic"), "critic"),
    "a gradient of the head": (_spoil_gradient("head"), "head"),
    "a gradient of the backbone": (_spoil_gradient("backbone"), "backbone"),
    "a weight of the critic": (_spoil_weight("critic"), "critic"),
    "a weight of the head": (_spoil_weight("head"), "head|policy's weights"),
    "a weight of the backbone": (_spoil_weight("backbone"), "backbone|policy's weights"),
    "a demonstration's actions": (_spoil_demonstration("actions"), "action"),
    "a demonstration's states": (_spoil_demonstration("state"), "state"),
}

"""Classes and functions that a file may name: those of the libraries that policies are made of, and what the user trusts."""

import importlib
from types import FunctionType
from typing import Any

import torch as th
from stable_baselines3.common.buffers import BaseBuffer
from torch import nn

# Networks, optimizers and buffers that a file may name: none of them runs anything that a file says
_PARTS = (nn.Module, th.optim.Optimizer, BaseBuffer)
_MODULES_OF_PARTS = (
    "sb3_vla.policies.",
    "sb3_vla.ppo_self_bc.rollout_buffer",
    "stable_baselines3.common.buffers",
    "stable_baselines3.common.policies",
    "stable_baselines3.common.sb2_compat.",
    "stable_baselines3.common.torch_layers",
    "torch.nn.modules.",
    "torch.optim.",
)
# Modules of small values: schedules, rules of the BC weight
_MODULES_OF_VALUES = ("sb3_vla.ppo_self_bc.bc_weight", "stable_baselines3.common.utils")

_trusted: dict[str, Any] = {}


class UntrustedError(ValueError):
    """A file says what could run anything, or names what is not trusted."""


def trust(*objects: Any) -> None:
    """
    Let model files name classes and functions of one's own: a backbone, a head, a policy, a schedule. Those that a model was
    saved with are trusted in the process that saved it.

    :param objects: Classes and functions
    :raises TypeError: If one is something else, or has no name of its own, such as a lambda
    """
    for each in objects:
        _trusted[name_of(each)] = each


def trust_by_name(name: str) -> None:
    """
    :param name: ``"module:name"`` of a class or function to :func:`trust`; its module is imported
    :raises ValueError: If there is none of that name
    """
    module, _, qualname = name.partition(":")
    try:
        trust(getattr(importlib.import_module(module), qualname))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} can't be trusted: give MODULE:NAME of a class or function ({error})") from error


def name_of(each: Any) -> str:
    """
    :param each: A class or function
    :return: Its module and name
    :raises TypeError: If it is something else, or has no name of its own
    """
    name = getattr(each, "__qualname__", "<")
    if not isinstance(each, type | FunctionType) or "<" in name:
        raise TypeError(f"{each!r:.200} is no class and no function of a module: give it a name in one")
    return f"{each.__module__}:{name}"


def is_part(each: type) -> bool:
    """
    :param each: A class
    :return: Whether its objects are parts of a model, which are never in a file themselves
    """
    return issubclass(each, _PARTS)


def find_trusted(name: str) -> Any:
    """
    :param name: Module and name, as :func:`name_of` has it
    :return: The class or function; nothing but modules of torch, Stable-Baselines3 and sb3-vla is imported for it
    :raises UntrustedError: If it is not trusted
    """
    module, _, qualname = name.partition(":")
    if name in _trusted:
        return _trusted[name]
    if module == "__main__":  # where it was in a script, and may be in a module now
        found = [each for known, each in _trusted.items() if known.partition(":")[2] == qualname]
        if len(found) == 1:
            return found[0]
    if module in _MODULES_OF_VALUES or module.startswith(_MODULES_OF_PARTS):
        try:
            each = getattr(importlib.import_module(module), qualname)
        except (ImportError, AttributeError):
            each = None
        if isinstance(each, type) and each.__module__ == module and (module in _MODULES_OF_VALUES or is_part(each)):
            return each
    raise UntrustedError(
        f"the file names {name!r}, which is not trusted: if it is yours, import it and call sb3_vla.trust({qualname}) first"
    )

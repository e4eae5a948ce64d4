"""
What the files of the zoo may say without being trusted.

rl_zoo3 2.9.2 and Stable-Baselines3 run what is in them: objects in ``config.yml`` and ``args.yml``, text of hyperparameters by
``eval``, classes by any name, ``VecNormalize`` and models by pickle. Here they are read so that nothing runs, or refused.
"""

import ast
import importlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import yaml
from stable_baselines3.common import base_class
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import nn
from yaml.constructor import ConstructorError

from ..common.trusted_names import UntrustedError, find_trusted
from .environment import Hyperparams

# Hyperparameters that name classes, of what kind, and from where; these do nothing but their work, whatever their arguments
_CLASSES = {"policy": BasePolicy, "env_wrapper": gym.Wrapper, "vec_env_wrapper": VecEnvWrapper, "callback": BaseCallback}
_MODULES = (
    *("gymnasium.wrappers", "minigrid.wrappers", "rl_zoo3.callbacks", "rl_zoo3.wrappers"),
    *("sb3_contrib", "sb3_vla", "sb3_vla_envs", "stable_baselines3"),
)
# Hyperparameters whose text the zoo evaluates, and what may stand in it
_EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
_SYNTAX = (
    *(ast.Expression, ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.keyword, ast.Load),
    *(ast.UnaryOp, ast.UAdd, ast.USub),
)
_NAMES = ("dict", "nn", "HerReplayBuffer", "RMSpropTFLike")
# Hyperparameters in a run folder that count when it is played
_PLAYED = ("env_kwargs", "env_wrapper", "normalize", "vec_env_wrapper")
# What a pickled VecNormalize consists of
_STATISTICS = {
    "collections": ("OrderedDict",),
    "gymnasium.spaces.box": ("Box",),
    "gymnasium.spaces.dict": ("Dict",),
    "gymnasium.spaces.discrete": ("Discrete",),
    "gymnasium.spaces.multi_binary": ("MultiBinary",),
    "gymnasium.spaces.multi_discrete": ("MultiDiscrete",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.random._pcg64": ("PCG64",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor"),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "stable_baselines3.common.running_mean_std": ("RunningMeanStd",),
    "stable_baselines3.common.vec_env.vec_normalize": ("VecNormalize",),
}


def refusal(file: str | os.PathLike[str], content: str) -> UntrustedError:
    """
    :param file: A file
    :param content: What of it could run anything
    :return: The error that says so, and what to do
    """
    return UntrustedError(
        f"{os.fspath(file)!r} {content}, which can run anything: only if you trust whoever made it, say --trust before the "
        "command, python -m sb3_vla.zoo --trust ..."
    )


def check_config_file(file: str) -> None:
    """
    :param file: What ``--conf-file`` gives
    :raises UntrustedError: If it is Python
    """
    if not file.endswith((".yml", ".yaml")):
        raise refusal(file, "is Python")


def check_hyperparams(hyperparams: Hyperparams, file: str) -> None:
    """
    :param hyperparams: Hyperparameters, before the zoo evaluates what is text and imports what is named
    :param file: Where they are from
    :raises UntrustedError: If one names a class that is not of the libraries, or is more than a literal
    """
    for name, base in _CLASSES.items():
        for each in _named(hyperparams.get(name)):
            if not _is_class(each, base) and not (name == "policy" and "." not in str(each)):  # which the algorithm knows
                raise refusal(file, f"has the {name} {each!r:.200}")
    for name in _EVALUATED:
        text = hyperparams.get(name)
        if isinstance(text, str) and not _is_literal(text):
            raise refusal(file, f"has the {name} {text!r:.200}")
    suite = dict(hyperparams.get("env_kwargs") or {}).get("suite")
    if ":" in str(suite):  # which imports what stands before it
        raise refusal(file, f"has the suite {suite!r:.200}")


def _named(value: Any) -> Iterator[Any]:
    """
    :param value: A name, a dictionary of one and arguments, or a list of both
    :return: The names
    """
    for each in value if isinstance(value, list) else [value]:
        if each is not None:
            yield from each if isinstance(each, dict) else [each]


def _is_class(name: Any, base: type) -> bool:
    """Whether a name is that of a class of the libraries, and of a kind."""
    module, _, attribute = str(name).rpartition(".")
    if not any(module == known or module.startswith(f"{known}.") for known in _MODULES):
        return False
    found = getattr(importlib.import_module(module), attribute, None)
    return isinstance(found, type) and issubclass(found, base)


def _is_literal(text: str) -> bool:
    """Whether evaluating a text gives values and classes of networks, and calls nothing but ``dict``."""
    try:
        return all(map(_is_harmless, ast.walk(ast.parse(text.strip(), mode="eval"))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "dict"
    if isinstance(node, ast.Attribute):
        found = vars(nn).get(node.attr)
        return ast.unparse(node.value) == "nn" and isinstance(found, type) and issubclass(found, nn.Module)
    return node.id in _NAMES if isinstance(node, ast.Name) else isinstance(node, _SYNTAX)


class RunFolderLoader(yaml.SafeLoader):
    """
    Reads what the zoo writes of a run with ``yaml.dump``: values, tuples, ordered dictionaries, and networks by name.

    :raises UntrustedError: If there is more, or what the zoo would run of it
    """

    def get_single_data(self) -> Any:
        """
        :return: The content of the file
        """
        try:
            data = super().get_single_data()
        except (ConstructorError, UntrustedError) as error:
            raise refusal(self.name, f"holds more than values ({getattr(error, 'problem', error)})") from error
        if isinstance(data, dict):
            check_hyperparams({name: data[name] for name in _PLAYED if name in data}, self.name)
        return data

    def _ordered(self, node: yaml.SequenceNode) -> Any:
        return OrderedDict(*self.construct_sequence(node, deep=True))

    def _tuple(self, node: yaml.SequenceNode) -> Any:
        return tuple(self.construct_sequence(node, deep=True))

    def _network(self, name: str, node: yaml.Node) -> Any:
        return find_trusted(":".join(name.rsplit(".", 1)))


_PYTHON = "tag:yaml.org,2002:python/"
RunFolderLoader.add_constructor(f"{_PYTHON}object/apply:collections.OrderedDict", RunFolderLoader._ordered)
RunFolderLoader.add_constructor(f"{_PYTHON}tuple", RunFolderLoader._tuple)
RunFolderLoader.add_multi_constructor(f"{_PYTHON}name:", RunFolderLoader._network)


class _StatisticsUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._path = file.name

    def find_class(self, module: str, name: str) -> Any:
        if name not in _STATISTICS.get(module, ()):
            raise refusal(self._path, f"holds {module}.{name}")
        return super().find_class(module, name)


def load_statistics(load_path: str, venv: VecEnv) -> VecNormalize:
    """
    ``VecNormalize.load``, without running what the file says.

    :param load_path: What ``VecNormalize.save`` wrote
    :param venv: The environment to wrap
    :return: The wrapper around it
    :raises UntrustedError: If the file holds more than a ``VecNormalize``
    """
    with open(load_path, "rb") as file:
        normalizer = _StatisticsUnpickler(file).load()
    if type(normalizer) is not VecNormalize:
        raise refusal(load_path, "is no VecNormalize")
    normalizer.set_venv(venv)
    return normalizer


def refuse_pickled_model(load_path: Any, *args: Any, **kwargs: Any) -> Any:
    """
    Stable-Baselines3's ``load_from_zip_file`` for files that this process has open, such as those that it made itself.

    :param load_path: Path or file
    :param args: See Stable-Baselines3
    :param kwargs: Likewise
    :return: Likewise
    :raises UntrustedError: If it is a path
    """
    if isinstance(load_path, str | Path):
        raise refusal(load_path, "is a pickled model")
    return load_from_zip_file(load_path, *args, **kwargs)


#: By owner and name, what reads files in the zoo and in Stable-Baselines3, and what stands there unless they are trusted
READERS: tuple[tuple[Any, str, Any], ...] = (
    (yaml, "UnsafeLoader", RunFolderLoader),
    (VecNormalize, "load", staticmethod(load_statistics)),
    (base_class, "load_from_zip_file", refuse_pickled_model),
)

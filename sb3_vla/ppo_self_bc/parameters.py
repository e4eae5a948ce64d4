"""What changes when a model is loaded with other ``policy_kwargs``."""

import copy
import inspect
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file

# What makes the networks whose weights are in the file
_NETWORKS = ("backbone", "backbone_kwargs", "head", "critic_net_arch", "net_arch", "activation_fn", "features_extractor_class")


def merge_policy_kwargs(
    path: str | pathlib.Path | io.BufferedIOBase, given: Mapping[str, Any], custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    :param path: A model's zip file
    :param given: ``policy_kwargs`` to change; those that the model was made with change nothing
    :param custom_objects: See SB3's ``load``
    :return: All ``policy_kwargs``
    :raises ValueError: If they would make another network than the saved one
    """
    data, _, _ = load_from_zip_file(path, custom_objects=custom_objects, load_data=True)
    if isinstance(path, io.IOBase):
        path.seek(0)
    assert data is not None
    saved = data["policy_kwargs"]
    parameters = inspect.signature(data["policy_class"]).parameters
    at_first = {name: parameter.default for name, parameter in parameters.items()} | data.get("_given_policy_kwargs", {})
    merged = copy.copy(saved)
    for name, value in given.items():
        if name in _NETWORKS:
            if any(name in known and _same(value, known[name]) for known in (at_first, saved)):
                continue
            raise ValueError(
                f"policy_kwargs: {name!r} can't be changed when a model is loaded, as its weights belong to the one it was "
                f"made with ({at_first.get(name)!r:.100}): leave it out, or make a new model"
            )
        is_both = isinstance(value, Mapping) and isinstance(saved.get(name), Mapping)
        merged[name] = {**saved[name], **value} if is_both else value
    return merged


def _same(first: Any, second: Any) -> bool:
    sequences = isinstance(first, list | tuple) and isinstance(second, list | tuple)
    return list(first) == list(second) if sequences else bool(first == second)


def fit_optimizer_state(optimizer: th.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """
    :param optimizer: An optimizer
    :param state: ``state_dict()`` of one that trained more or fewer groups of parameters
    :return: A ``state_dict()`` that fits: groups of the same name and size go on, others, and those of another
        kind of optimizer, begin anew
    """
    fitting = optimizer.state_dict()
    saved = {group.get("name", number): group for number, group in enumerate(state["param_groups"])}
    groups = []
    for number, (group, parameters) in enumerate(zip(fitting["param_groups"], optimizer.param_groups, strict=True)):
        old = saved.get(group.get("name", number))
        if (
            old is not None
            and old.keys() == group.keys()
            and _same_shapes(parameters["params"], old["params"], state["state"])
        ):
            for index, old_index in zip(group["params"], old["params"], strict=True):
                if old_index in state["state"]:
                    fitting["state"][index] = state["state"][old_index]
            group = {**group, "lr": old["lr"]}
        groups.append(group)
    return {**fitting, "param_groups": groups}


def _same_shapes(parameters: list[th.Tensor], numbers: list[int], state: dict[int, dict[str, Any]]) -> bool:
    """
    :param parameters: Of a group now
    :param numbers: Of the same group's before
    :param state: What the optimizer kept of each
    :return: Whether they are as many, and what was kept has their shapes
    """
    kept = [[t.shape for t in state.get(n, {}).values() if isinstance(t, th.Tensor) and t.dim()] for n in numbers]
    return len(parameters) == len(numbers) and all(
        shape == parameter.shape for parameter, shapes in zip(parameters, kept, strict=True) for shape in shapes
    )

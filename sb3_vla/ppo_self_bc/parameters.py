"""What changes when a model is loaded with other ``policy_kwargs``."""

import copy
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
    saved, at_first = data["policy_kwargs"], data.get("_given_policy_kwargs", {})
    merged = copy.copy(saved)
    for name, value in given.items():
        if (name in at_first and _same(value, at_first[name])) or (name in saved and _same(value, saved[name])):
            continue
        if name in _NETWORKS:
            raise ValueError(
                f"policy_kwargs: {name!r} can't be changed when a model is loaded, as its weights belong to the one it was "
                f"made with ({at_first.get(name, 'the default')!r:.100}): leave it out, or make a new model"
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
    :return: A ``state_dict()`` that fits: groups of the same name and size go on, others begin anew
    """
    fitting = optimizer.state_dict()
    saved = {group.get("name", number): group for number, group in enumerate(state["param_groups"])}
    groups = []
    for number, group in enumerate(fitting["param_groups"]):
        old = saved.get(group.get("name", number))
        if old is not None and len(old["params"]) == len(group["params"]):
            for index, old_index in zip(group["params"], old["params"], strict=True):
                if old_index in state["state"]:
                    fitting["state"][index] = state["state"][old_index]
            group = {**old, "params": group["params"]}
        groups.append(group)
    return {**fitting, "param_groups": groups}

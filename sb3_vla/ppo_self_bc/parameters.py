"""What changes when a model is loaded with other ``policy_kwargs``."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from torch import nn

from ..policies.lora import are_of_adapters, needs_checkpoint

# What makes the networks whose weights are in the file, or only those weights' first values
_NETWORKS = (
    *(
        "backbone",
        "backbone_kwargs",
        "lora",
        "head",
        "critic_net_arch",
        "net_arch",
        "activation_fn",
        "log_std_init",
        "ortho_init",
    ),
    *("features_extractor_class", "features_extractor_kwargs", "share_features_extractor", "full_std"),
)


def merge_policy_kwargs(data: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param data: Attributes of a saved model
    :param given: ``policy_kwargs`` to change; those that the model was made with change nothing. Of the arguments of a class,
        such as ``head_kwargs``, those can be changed that it names as :attr:`~sb3_vla.ActionHead.adjustable`, and likewise of
        ``backbone_kwargs``, if no others are given
    :return: All ``policy_kwargs``
    :raises ValueError: If they would make another network than the saved one, or are what its weights began with
    """
    saved = data["policy_kwargs"]
    at_first = _defaults(data["policy_class"]) | data.get("_given_policy_kwargs", {})
    merged = copy.copy(saved)
    for name, value in given.items():
        if name == "backbone" and needs_checkpoint(saved):
            merged[name] = value  # which may have moved; adapters know their base
        elif name == "backbone_kwargs" and value and value.keys() <= _adjustable_of(saved.get("backbone")):
            merged[name] = {**(saved[name] or {}), **value}
        elif name in _NETWORKS:
            if not any(name in known and _same(value, known[name]) for known in (at_first, saved)):
                raise _refusal(repr(name), at_first.get(name))
        else:
            is_both = isinstance(value, Mapping) and isinstance(saved.get(name), Mapping)
            owner = saved.get(name.removesuffix("_kwargs")) if is_both else None
            if hasattr(owner, "adjustable"):
                _check_adjustable(name, owner, value, saved[name], at_first.get(name) or {})
            merged[name] = {**saved[name], **value} if is_both else value
    return merged


def _adjustable_of(backbone: Any) -> set[str]:
    if isinstance(backbone, str):  # what its class does not rebuild is loaded from a checkpoint of this name
        from ..policies.backbones.pretrained import PretrainedBackbone  # which takes long to import

        backbone = PretrainedBackbone
    return set(getattr(backbone, "adjustable", ()))


def _defaults(maker: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(maker).parameters.items()}


def _check_adjustable(
    name: str, owner: Any, given: Mapping[str, Any], saved: Mapping[str, Any], at_first: Mapping[str, Any]
) -> None:
    """
    :param name: Which of the ``policy_kwargs``
    :param owner: The class whose arguments they are, which names those that can be changed
    :param given: Arguments to change
    :param saved: What a saved model rebuilds it from
    :param at_first: What the model was made with
    :raises ValueError: If one can't be changed
    """
    first = _defaults(owner) | dict(at_first)
    for key, value in given.items():
        known = [values[key] for values in (first, saved) if key in values]
        if known and key not in owner.adjustable and not any(_same(value, old) for old in known):
            raise _refusal(f"{name}={{{key!r}: ...}}", known[-1])


def _refusal(what: str, old: Any) -> ValueError:
    return ValueError(
        f"policy_kwargs: {what} can't be changed when a model is loaded, as the weights in the file belong to the one it was "
        f"made with ({old!r:.100}): leave it out, or make a new model. A weight itself can be changed after loading, e.g. "
        "model.policy.log_std.data.fill_(-1.0)"
    )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(value, second[key]) for key, value in first.items())
    several = list | tuple | np.ndarray | th.Tensor
    if isinstance(first, several) and isinstance(second, several):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def check_shapes(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """
    :param module: A policy
    :param weights: ``state_dict()`` of one
    :raises ValueError: If it is of another network
    """
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if are_of_adapters(weights) and not are_of_adapters(own):
        raise ValueError(
            "these are the weights of a policy with adapters, and this one has none: make it with "
            "policy_kwargs=dict(lora=...) as the other was"
        )
    wrong = [name for name, tensor in weights.items() if name in own and own[name] != getattr(tensor, "shape", own[name])]
    if wrong:
        raise ValueError(
            f"these are the weights of another network: {wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}, and "
            f"{tuple(own[wrong[0]])} in this policy ({len(wrong)} differ): make it with the policy_kwargs and the spaces of "
            "the model that the weights are from"
        )


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

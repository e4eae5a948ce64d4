"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685) beside a backbone's pretrained weights, by ``peft``."""

import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_vla_envs.argument_checks import Limits, check_choice, check_count

from ..common.argument_checks import check_keywords, check_known
from ..common.tensor_fingerprint import fingerprint
from .backbones import VLABackbone

_OF_ADAPTERS = "lora_"  # in the names of their weights
_SCALING, _BASE = "lora_scaling", "lora_base_fingerprint"  # buffers
_DTYPES = {"bfloat16": th.bfloat16, "float32": th.float32}


def add_lora(backbone: VLABackbone, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Put adapters beside a backbone's pretrained weights, see :func:`adapt`.

    :param backbone: The backbone, changed in place
    :param arguments: Those of :func:`adapt` that are not its default
    :return: Those with which the same adapters fit the same base again
    :raises TypeError: If there is no such argument
    """
    arguments = check_keywords("lora", arguments)
    check_known("lora", arguments, adapt, ("backbone",))
    return {**arguments, "base_fingerprint": adapt(backbone, **arguments)}


def adapt(
    backbone: VLABackbone,
    r: int = 16,
    lora_alpha: float = 32,
    target_modules: str | Sequence[str] | None = None,
    use_rslora: bool = False,
    base_dtype: str = "bfloat16",
    save_base: bool = False,
    base_fingerprint: str | None = None,
) -> str | None:
    """
    Freeze a backbone's pretrained weights and put adapters beside them. Trained and saved are these alone, in float32, and
    whatever in the backbone is not pretrained, such as its new tokens. There is no dropout: with it the first likelihood ratio
    of an update would not be one.

    :param backbone: The backbone, changed in place
    :param r: Rank of the adapters
    :param lora_alpha: They count ``lora_alpha / r`` times
    :param target_modules: Names of the linear layers that get one, or a regular expression of their full names; by default the
        backbone's :attr:`~sb3_vla.VLABackbone.lora_targets`
    :param use_rslora: Whether they count ``lora_alpha / sqrt(r)`` times (Kalajdzievski 2023, arXiv 2312.03732)
    :param base_dtype: Of the pretrained weights: ``"bfloat16"`` or ``"float32"``
    :param save_base: Whether the pretrained weights are saved as well, so that the checkpoint is not needed any more
    :param base_fingerprint: Of the pretrained weights that adapters to be loaded were trained beside
    :return: That of those given, ``None`` if they are saved
    :raises ImportError: If ``peft`` is not installed
    :raises ValueError: If an argument is out of range, the backbone has no pretrained weights, or other than those expected
    """
    base = backbone.pretrained
    if base is None:
        raise ValueError(
            f"lora=... adapts pretrained weights, and {type(backbone).__name__} has none: name a checkpoint as backbone, or "
            "let your own backbone's property `pretrained` say where they are"
        )
    check_count("lora: r", r)
    Limits(above=0).check("lora: lora_alpha", lora_alpha)
    check_choice("lora: base_dtype", base_dtype, tuple(_DTYPES))
    targets = backbone.lora_targets if target_modules is None else target_modules
    if targets is None:
        raise ValueError(f"{type(backbone).__name__} has no lora_targets: give lora=dict(target_modules=[...])")
    found = None if save_base else fingerprint(sorted(base.state_dict().items()))
    if base_fingerprint not in (None, found):
        raise ValueError(
            f"these adapters were trained beside other pretrained weights ({base_fingerprint}) than those of "
            f"{getattr(base, 'name_or_path', type(base).__name__)!r} ({found}): put the checkpoint that they were trained "
            "with where it was, or name another place: PPOSelfBC.load(path, policy_kwargs=dict(backbone=...))"
        )
    _inject(base, _DTYPES[base_dtype], r=r, lora_alpha=lora_alpha, target_modules=targets, use_rslora=use_rslora)
    names: list[str] = []
    if not save_base:
        (path,) = (name for name, module in backbone.named_modules() if module is base)
        names = [name for name in backbone.state_dict() if name.startswith(f"{path}.") and _OF_ADAPTERS not in name]
    # What the same numbers mean something else with goes along, wherever the weights go
    backbone.register_buffer(_SCALING, th.tensor(lora_alpha / (math.sqrt(r) if use_rslora else r)))
    base_known = bytes(8) if found is None else bytes.fromhex(found)
    backbone.register_buffer(_BASE, th.tensor(list(base_known), dtype=th.uint8))
    backbone.register_state_dict_post_hook(functools.partial(_leave_out, names))
    backbone.register_load_state_dict_pre_hook(functools.partial(_put_in, names))
    return found


def _inject(base: nn.Module, dtype: th.dtype, **settings: Any) -> None:
    """
    :param base: Pretrained weights, which are frozen and get adapters beside them
    :param dtype: What they are then
    :param settings: Of ``peft.LoraConfig``
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora=... needs peft: pip install 'sb3-vla[lora]'") from error
    for parameter in base.parameters():  # not the buffers: a rounded frequency would shift the positions that tokens stand at
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    try:
        inject_adapter_in_model(LoraConfig(**settings), base)
    except (ValueError, re.error) as error:
        linear = sorted({name.rpartition(".")[2] for name, layer in base.named_modules() if isinstance(layer, nn.Linear)})
        raise ValueError(
            f"lora: target_modules={settings['target_modules']!r} names no layers of this model, whose linear ones are "
            f"{', '.join(linear)} ({error})"
        ) from error
    for name, parameter in base.named_parameters():
        if _OF_ADAPTERS in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def are_of_adapters(names: Iterable[str]) -> bool:
    """
    :param names: Of weights
    :return: Whether some of them are those of adapters
    """
    return any(_OF_ADAPTERS in name for name in names)


def has_adapters(module: nn.Module) -> bool:
    """
    :param module: A part of a backbone
    :return: Whether some of its weights are those of adapters
    """
    return are_of_adapters(name for name, _ in module.named_parameters())


def needs_checkpoint(policy_kwargs: Mapping[str, Any]) -> bool:
    """
    :param policy_kwargs: Those that a saved policy is rebuilt with
    :return: Whether it was saved without the pretrained weights that its adapters stand beside
    """
    return bool((policy_kwargs.get("lora") or {}).get("base_fingerprint"))


def check_checkpoint(policy_kwargs: Mapping[str, Any]) -> None:
    """
    :param policy_kwargs: Those that a saved policy is rebuilt with
    :raises ValueError: If pretrained weights that were not saved are no longer where they were
    """
    folder = policy_kwargs.get("backbone")
    if needs_checkpoint(policy_kwargs) and isinstance(folder, str) and os.path.isabs(folder) and not os.path.exists(folder):
        raise ValueError(
            "it was saved without the pretrained weights that its adapters stand beside, and these are no longer at "
            f"{folder!r}: put them there, or say where they are: PPOSelfBC.load(path, policy_kwargs=dict(backbone=...)) or "
            "VLAPolicy.load(path, backbone=...)"
        )


def merge(backbone: VLABackbone) -> None:
    """
    Add the adapters to the weights that they stand beside, and take them away. The backbone is as if it had never had any, in
    float32, with what they learned.

    :param backbone: The backbone, changed in place
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = backbone.pretrained
    assert base is not None
    base.float()
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            base.set_submodule(name, layer.get_base_layer())
    del base.peft_config  # without which nothing is left out of the state_dict() any more
    for name in (_SCALING, _BASE):
        delattr(backbone, name)


def _leave_out(names: list[str], backbone: nn.Module, state_dict: dict[str, th.Tensor], prefix: str, metadata: Any) -> None:
    if _is_adapted(backbone):
        for name in names:
            del state_dict[prefix + name]


def _put_in(names: list[str], backbone: nn.Module, state_dict: dict[str, th.Tensor], prefix: str, *args: Any) -> None:
    if _is_adapted(backbone):
        own = dict((*backbone.named_parameters(), *backbone.named_buffers()))
        for name in (*names, _SCALING, _BASE):
            state_dict.setdefault(prefix + name, own[name].detach())
        _check_alike(*((state_dict[prefix + name], own[name]) for name in (_BASE, _SCALING)))


def _check_alike(bases: tuple[th.Tensor, th.Tensor], scalings: tuple[th.Tensor, th.Tensor]) -> None:
    """
    :param bases: Fingerprints of the pretrained weights of adapters that are loaded, and of those that are here; zeros where
        they are saved with the adapters
    :param scalings: How often they count
    :raises ValueError: If the same numbers would mean something else here
    """
    if len({tuple(base.tolist()) for base in bases if base.any()}) > 1:
        raise ValueError(
            "these adapters were trained beside other pretrained weights than those of this policy: make it with the "
            "checkpoint that they were trained with"
        )
    theirs, here = map(float, scalings)
    if not math.isclose(theirs, here, rel_tol=1e-2):
        raise ValueError(
            f"these adapters count {theirs:g} times beside the pretrained weights, those of this policy {here:g} times: make "
            "it with the r, lora_alpha and use_rslora that they were trained with"
        )


def _is_adapted(backbone: nn.Module) -> bool:
    return hasattr(backbone.pretrained, "peft_config")

"""
Backbones that turn images, a prompt and the robot's state into readout features.

Those that ``transformers`` has are imported on use: it takes seconds, and a process that runs environments needs none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.argument_checks import check_known
from .base import ActionExpert, BackboneFeatures, Normalization, VLABackbone

if TYPE_CHECKING:
    from .pretrained import PretrainedBackbone

__all__ = ["ActionExpert", "BackboneFeatures", "Normalization", "VLABackbone", "make_backbone", "without_weights"]


def make_backbone(backbone: str | Path | type[VLABackbone], state_dim: int, **kwargs) -> VLABackbone:
    """
    Build a backbone from what a user may write in ``policy_kwargs``.

    :param backbone: ``"tiny"`` (a small SmolVLM built from its configuration, no download), the name on the Hugging
        Face Hub or the local path of a checkpoint (a vision-language model's, a pi0's, or a SmolVLA's in LeRobot's format), or
        a subclass of :class:`VLABackbone`
    :param state_dim: Length of the state vector
    :param kwargs: Passed on to the backbone
    :return: The backbone
    :raises ValueError: If there is no such checkpoint, or it is of no kind that is known
    :raises TypeError: If ``backbone`` is neither a name, a path nor a subclass of :class:`VLABackbone`, or it has no such
        argument
    """
    if isinstance(backbone, type) and issubclass(backbone, VLABackbone):
        check_known("backbone_kwargs", kwargs, backbone, ("state_dim",))
        return backbone(state_dim=state_dim, **kwargs)  # type: ignore[call-arg]  # its own constructor, not the base's
    if not isinstance(backbone, str | Path):
        raise TypeError(f"backbone must be a name, a path or a subclass of VLABackbone, got {backbone!r}")
    if backbone == "tiny":
        from .smolvlm import SmolVLMBackbone

        check_known("backbone_kwargs", kwargs, SmolVLMBackbone, ("state_dim",))
        return SmolVLMBackbone(state_dim=state_dim, **kwargs)
    return _class_of(backbone, kwargs).from_pretrained(str(backbone), state_dim=state_dim, **kwargs)


def without_weights(backbone: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """
    :param backbone: What a user may write in ``policy_kwargs``, see :func:`make_backbone`
    :param kwargs: Arguments of the backbone
    :return: Both, for the same architecture; of a checkpoint no weights are read, and need not be there
    :raises ValueError: If there is no such checkpoint, or it is of no kind that is known
    :raises TypeError: If the backbone has no such argument
    """
    if not isinstance(backbone, str | Path) or backbone == "tiny":
        return backbone, dict(kwargs)
    found = _class_of(backbone, kwargs)
    return found, found.describe(str(backbone), **kwargs)


def _class_of(checkpoint: str | Path, kwargs: Mapping[str, Any]) -> "type[PretrainedBackbone]":
    """
    :param checkpoint: Its name or path
    :param kwargs: Arguments for it
    :return: What hosts it
    """
    from .pi0 import PI0Backbone
    from .pretrained import PretrainedBackbone, read_config
    from .smolvla import SmolVLABackbone

    config = read_config(str(checkpoint))
    host: type[PretrainedBackbone]
    if "type" in config and "model_type" not in config:
        host = SmolVLABackbone  # LeRobot's
    elif config.get("model_type") == "pi0":
        host = PI0Backbone
    else:
        check_known("backbone_kwargs", kwargs, PretrainedBackbone, ("state_dim", "model"))
        return PretrainedBackbone
    check_known("backbone_kwargs", kwargs, host.describe, ("name_or_path",))
    return host

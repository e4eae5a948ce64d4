"""The contract between :class:`~sb3_vla.policies.vla_policy.VLAPolicy` and the model that it hosts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn

from ...common.argument_checks import check_names


class BackboneFeatures(NamedTuple):
    """
    What a backbone reads out for the two heads.

    :param action: Features for the action head, ``(batch, features_dim)``
    :param value: Features for the value head, ``(batch, features_dim)``
    :param prefix: What the readouts were made from, ``(batch, tokens, features_dim)``, for heads that attend to it; ``None``
        from a backbone that has no tokens
    """

    action: th.Tensor
    value: th.Tensor
    prefix: th.Tensor | None = None


class Normalization(NamedTuple):
    """
    How a checkpoint normalises a vector x: ``(x - shift) / scale``, number by number.

    :param shift: Such as the mean of the data that it learned from
    :param scale: Such as their standard deviation
    :param source: The file that says so
    """

    shift: Sequence[float]
    scale: Sequence[float]
    source: str

    def check_length(self, what: str, length: int) -> None:
        """
        :param what: What the vectors are
        :param length: How long the environment's are
        :raises ValueError: If this is of others
        """
        if len(self.shift) != length:
            raise ValueError(
                f"{self.source} has statistics of {what}s of {len(self.shift)} numbers, the environment's have {length}: pass "
                "backbone_kwargs=dict(use_statistics=False) to do without, or take another checkpoint"
            )


class ActionExpert(nn.Module, ABC):
    """
    A network that knows how to denoise chunks, which a flow head uses: a checkpoint's own, or a new one.

    :param chunk_shape: Length and width of the chunks that it knows, at least those of the environment
    :param normalization: Of the environment's numbers of an action, if the head's units, half the range of their bounds, are
        not its own
    """

    #: Whether it reads :attr:`BackboneFeatures.prefix`
    reads_prefix: bool = False

    def __init__(self, chunk_shape: tuple[int, int], normalization: Normalization | None = None) -> None:
        super().__init__()
        self.chunk_shape, self.normalization = chunk_shape, normalization

    @abstractmethod
    def forward(self, features: BackboneFeatures, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        :param features: What the backbone read out
        :param x: Chunks on their way from noise to an action, ``(batch, *chunk_shape)``
        :param t: Time, from 1 (noise) to 0, ``(batch,)``
        :return: Their velocity: mean of noise minus action, ``(batch, *chunk_shape)``
        """


class VLABackbone(nn.Module, ABC):
    """
    Turns what the robot sees, is told and feels into one feature vector for the action head and one for the value head.

    A subclass implements :meth:`encode_images`, :meth:`forward` and :meth:`constructor_kwargs`, and may name its
    :attr:`parts`, so that they can be frozen one by one, and those of them that :meth:`encode_images` runs: where these are
    frozen, an image is encoded once, when it is observed, and not once an epoch. Its constructor must need neither network
    nor weights file: SB3 builds the policy first and loads the saved weights into it afterwards.

    :param features_dim: Length of each of the two feature vectors
    """

    #: Arguments that can be changed when a saved model is loaded, as they make neither its networks nor its weights
    adjustable: ClassVar[tuple[str, ...]] = ()

    def __init__(self, features_dim: int) -> None:
        super().__init__()
        self.features_dim = features_dim
        #: How the checkpoint normalises what it reads (``"state"``) and draws (``"action"``), if it has statistics
        self.normalization: dict[str, Normalization] = {}

    @abstractmethod
    def encode_images(self, images: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param images: One entry a camera, in the order of the observation space: ``(batch, 3, height, width)``, uint8. Of
            stacked frames one entry each, the oldest first: ``"image[-1]"`` stands before the latest, ``"image"``
        :return: ``(batch, ...)``, what :meth:`forward` takes
        """

    @abstractmethod
    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        """
        :param image_tokens: What :meth:`encode_images` returned
        :param prompts: ``batch`` instructions
        :param state: ``(batch, state_dim)`` float32, normalised
        :return: Features for the action head and for the value head
        """

    @abstractmethod
    def constructor_kwargs(self) -> dict[str, Any]:
        """
        :return: Plain keyword arguments (beside ``state_dim``) that rebuild the same architecture, tokenizer included,
            on a machine with no network
        """

    def take_action_expert(self) -> ActionExpert | None:
        """
        :return: The network with which the checkpoint draws actions, if it has one: the head's from now on
        """
        return None

    @property
    def pretrained(self) -> nn.Module | None:
        """What a checkpoint's weights are in, of which LoRA trains adapters alone; ``None`` if all of it begins anew."""
        return None

    #: Regular expression of the names of modules of :attr:`pretrained` that LoRA adapts unless it is told otherwise
    lora_targets: str | None = None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that can be frozen, by name; ``"all"`` is always one of them."""
        return {"all": self}

    @property
    def layers(self) -> Sequence[nn.Module]:
        """
        Modules that hold most of the weights, each called as a whole, so that several ranks can part them among themselves; by
        default those in lists of modules (``nn.ModuleList``).
        """
        return _listed(self)

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        """The modules that :meth:`encode_images` runs, by default possibly any."""
        return (self,)

    def freeze(self, parts: Sequence[str]) -> None:
        """
        Exclude parts from training.

        :param parts: Names out of :attr:`parts`
        :raises TypeError: If it is a single string
        :raises ValueError: If there is no part of that name
        """
        for name in check_names("frozen", parts):
            if name not in self.parts:
                raise ValueError(f"{type(self).__name__} has no part {name!r} to freeze; its parts are {sorted(self.parts)}")
            self.parts[name].requires_grad_(False)


def _listed(module: nn.Module) -> list[nn.Module]:
    """:return: Members of the outermost lists of modules within a module"""
    inner = list(module.children())
    return inner if isinstance(module, nn.ModuleList) else [layer for child in inner for layer in _listed(child)]

"""What backbones around a model of ``transformers`` have in common."""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from transformers import ByT5Tokenizer, PreTrainedModel

from .base import VLABackbone
from .tokenizer_files import load_tokenizer


class TransformersBackbone(VLABackbone):
    """
    A model of ``transformers`` with its tokenizer and its normalisation of images. After images and text its text model reads
    the robot's state (one token), then two learned readout tokens; its last hidden states at these two are the features for
    the action and for the value.

    A subclass implements :attr:`part_paths` and :meth:`_tokenize_uncached`, beside the methods of :class:`VLABackbone`.

    :param state_dim: Length of the state vector
    :param model: The model
    :param tokenizer_files: Content of its tokenizer's files by name, as ``save_pretrained`` writes them; ``None`` for bytes as
        tokens (ByT5's tokenizer, which needs no files)
    :param image_mean: Mean of each colour channel, of values in [0, 1]
    :param image_std: Standard deviation of each colour channel
    :param image_size: Height and width in pixels to which images are resized; ``None`` leaves them as they are
    """

    pixel_mean: th.Tensor
    pixel_std: th.Tensor

    def __init__(
        self,
        state_dim: int,
        model: PreTrainedModel,
        tokenizer_files: dict[str, str] | None,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        image_size: int | None,
    ) -> None:
        super().__init__(features_dim=model.config.get_text_config().hidden_size)
        self.model: Any = model
        self.tokenizer_files = tokenizer_files
        self.tokenizer: Any = ByT5Tokenizer() if tokenizer_files is None else load_tokenizer(tokenizer_files)
        self.image_mean, self.image_std, self.image_size = tuple(image_mean), tuple(image_std), image_size
        # Not part of the weights, as constructor_kwargs has them
        self.register_buffer("pixel_mean", 255 * th.tensor(self.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * th.tensor(self.image_std).view(3, 1, 1), persistent=False)
        self._make_new_tokens(state_dim)
        self._remember_tokens()

    @property
    @abstractmethod
    def part_paths(self) -> Mapping[str, str]:
        """Paths of the model's ``vision`` encoder, its ``connector`` and its ``text`` model, by these names."""

    @abstractmethod
    def _tokenize_uncached(self, prompt: str, *layout: int) -> tuple[int, ...]:
        """
        :param prompt: An instruction
        :param layout: What else the tokens depend on
        :return: The numbers of its tokens, at least one
        """

    def constructor_kwargs(self) -> dict[str, Any]:
        return {
            "config": self.model.config.to_dict(),
            "tokenizer_files": self.tokenizer_files,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "image_size": self.image_size,
        }

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"all": self, **{name: self.model.get_submodule(path) for name, path in self.part_paths.items()}}

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        return [self.parts["vision"], self.parts["connector"]]

    def _make_new_tokens(self, state_dim: int) -> None:
        self.state_token = nn.Linear(state_dim, self.features_dim)
        scale = self.model.config.get_text_config().initializer_range
        self.readout_tokens = nn.Parameter(scale * th.randn(2, self.features_dim))

    def _suffix(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: ``(batch, state_dim)``
        :return: What follows images and text, the state's token and the two readouts', ``(batch, 3, features_dim)``
        """
        return th.cat([self.state_token(state).unsqueeze(1), self.readout_tokens.expand(len(state), -1, -1)], dim=1)

    def _normalize(self, pixels: th.Tensor) -> th.Tensor:
        """
        :param pixels: ``(batch, 3, height, width)`` in [0, 255], changed in place
        :return: The same, normalised
        """
        return pixels.sub_(self.pixel_mean).div_(self.pixel_std)

    def _remember_tokens(self) -> None:
        self._tokenize = functools.lru_cache(maxsize=4096)(self._tokenize_uncached)

    def __getstate__(self) -> dict[str, Any]:
        # The cache is a C object that neither pickles nor copies (copy.deepcopy of a policy)
        return {name: value for name, value in self.__dict__.items() if name != "_tokenize"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._remember_tokens()


def rows_of_distinct(prompts: Sequence[str], device: th.device) -> tuple[list[str], th.Tensor]:
    """
    :param prompts: ``batch`` instructions, few of them different
    :param device: Where the numbers go
    :return: Those that differ, and which of them each of the batch is, ``(batch,)``
    """
    number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return list(number_of), th.tensor([number_of[prompt] for prompt in prompts], device=device)

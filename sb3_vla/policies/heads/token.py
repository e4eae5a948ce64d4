"""The token head: actions as bins, predicted all at once or one after the other."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_vla_envs.argument_checks import Limits, check_choice, check_count

from ..backbones import BackboneFeatures
from .base import ActionHead, ChunkDistribution, ChunkSample

if TYPE_CHECKING:
    from transformers import DynamicCache


class ParallelTokenDistribution(ChunkDistribution):
    """
    Each number of a chunk in one of some bins, independently (OpenVLA-OFT: Kim et al. 2025, arXiv 2502.19645).

    :param head: The head, which knows the bins
    :param logits: ``(batch, h, d, n_bins)``, divided by the temperature
    """

    def __init__(self, head: "TokenHead", logits: th.Tensor) -> None:
        self.head = head
        self.logits = logits

    def draw(self, deterministic: bool = False) -> ChunkSample:
        return ChunkSample(self.head.from_tokens(_draw(self.logits, deterministic)))

    def step_log_prob(self, sample: ChunkSample) -> th.Tensor:
        return _log_prob(self.logits, self.head.to_tokens(sample.actions)).sum(dim=-1)

    def step_entropy(self) -> th.Tensor:
        return _entropy(self.logits).sum(dim=-1)


class AutoregressiveTokenDistribution(ChunkDistribution):
    """
    Each number of a chunk in one of some bins, given those before it: ``p(a) = prod_i p(a_i | a_1 .. a_{i-1})``, dimension by
    dimension and step by step, as OpenVLA (Kim et al. 2024, arXiv 2406.09246) and RT-2 speak of them.

    :param head: The head, which knows the bins
    :param decoder: What predicts the next token
    :param features: ``(batch, features_dim)``
    """

    def __init__(self, head: "TokenHead", decoder: "TokenDecoder", features: th.Tensor) -> None:
        self.head, self.decoder, self.features = head, decoder, features

    def draw(self, deterministic: bool = False) -> ChunkSample:
        from transformers import DynamicCache  # on use, as all of it: see sb3_vla.policies.backbones

        cache = DynamicCache()
        tokens: list[th.Tensor] = []
        log_probs = []
        for _ in range(self.head.chunk_size * self.head.action_dim):
            logits = self.decoder.next_logits(self.features, tokens[-1] if tokens else None, cache) / self.head.divisor
            tokens.append(_draw(logits, deterministic))
            log_probs.append(_log_prob(logits, tokens[-1]))
        shape = (-1, self.head.chunk_size, self.head.action_dim)
        log_prob = th.stack(log_probs, dim=1).view(shape).sum(dim=-1)
        return ChunkSample(self.head.from_tokens(th.stack(tokens, dim=1).view(shape)), step_log_prob=log_prob)

    def step_log_prob(self, sample: ChunkSample) -> th.Tensor:
        return self.evaluate(sample)[0]

    def step_entropy(self) -> None:
        """It depends on the chunk: see :meth:`evaluate`."""

    def evaluate(self, sample: ChunkSample) -> tuple[th.Tensor, th.Tensor]:
        """
        :param sample: Chunks
        :return: Log-probability and entropy of each primitive step, given what in these chunks stands before each number
        """
        tokens = self.head.to_tokens(sample.actions)
        # (batch, h, d, n_bins)
        logits = self.decoder(self.features, tokens.flatten(1)).view(*tokens.shape, -1) / self.head.divisor
        return _log_prob(logits, tokens).sum(dim=-1), _entropy(logits).sum(dim=-1)


class TokenDecoder(nn.Module):
    """
    A small causal transformer (``transformers``' Llama) over the numbers of a chunk, after one token for the features.

    :param features_dim: Length of the features
    :param n_tokens: Numbers of a chunk, h * d
    :param n_bins: Bins of each
    :param hidden_dim: Width
    :param n_layers: Layers
    """

    def __init__(self, features_dim: int, n_tokens: int, n_bins: int, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            vocab_size=n_bins,
            hidden_size=hidden_dim,
            intermediate_size=2 * hidden_dim,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            max_position_embeddings=n_tokens,
        )
        self.start = nn.Linear(features_dim, hidden_dim)
        self.model = LlamaModel(config)
        # Which number of the chunk is next: its dimension and its step
        self.position = nn.Parameter(0.02 * th.randn(n_tokens, hidden_dim))
        self.output = nn.Linear(hidden_dim, n_bins)

    def forward(self, features: th.Tensor, tokens: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param tokens: All numbers of the chunks, ``(batch, h * d)``
        :return: Logits of each, given those before it, ``(batch, h * d, n_bins)``
        """
        inputs = th.cat([self.start(features).unsqueeze(1), self.model.embed_tokens(tokens[:, :-1])], dim=1)
        return self.output(self.model(inputs_embeds=inputs + self.position, use_cache=False).last_hidden_state)

    def next_logits(self, features: th.Tensor, last: th.Tensor | None, cache: "DynamicCache") -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param last: The number before, ``(batch,)``; ``None`` for the first
        :param cache: What was computed of those before, extended in place
        :return: Logits of the next, ``(batch, n_bins)``
        """
        inputs = self.start(features) if last is None else self.model.embed_tokens(last)
        inputs = inputs + self.position[cache.get_seq_length()]
        outputs = self.model(inputs_embeds=inputs.unsqueeze(1), cache=cache, use_cache=True)
        return self.output(outputs.last_hidden_state[:, -1])


class TokenHead(ActionHead):
    """
    Actions as tokens: each number of a chunk is one of ``n_bins`` values. SFT by cross-entropy; likelihoods are exact, so that
    PPO needs nothing more; exploration is that of the distribution itself.

    :param features_dim: Length of the features
    :param action_space: Chunks, a bounded ``Box`` of shape ``(h, d)``
    :param n_bins: Values that a number can have
    :param bins: ``"uniform"``: equally far apart within the bounds; ``"quantile"``: as often each in the demonstrations, once
        the policy is fine-tuned on some, and until then uniform
    :param decoding: ``"parallel"``: all numbers at once, independently; ``"autoregressive"``: one after the other
    :param temperature: By which logits are divided, above 0; 1 while it is trained by cross-entropy
    :param hidden_dim: Width of the hidden layer, or of the decoder
    :param n_layers: Layers of the decoder
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If an argument is out of range
    """

    imitation_losses: ClassVar[tuple[str, ...]] = ("nll",)
    adjustable: ClassVar[tuple[str, ...]] = ("temperature",)
    noise_scale: float = 1.0

    unit_bins: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_space: spaces.Box,
        n_bins: int = 64,
        bins: str = "uniform",
        decoding: str = "parallel",
        temperature: float = 1.0,
        hidden_dim: int = 256,
        n_layers: int = 2,
    ) -> None:
        super().__init__(features_dim, action_space)
        check_count("n_bins", n_bins, least=2)
        Limits(above=0).check("temperature", temperature)
        check_count("n_layers", n_layers)
        check_count("hidden_dim", hidden_dim)
        check_choice("bins", bins, ("uniform", "quantile"))
        check_choice("decoding", decoding, ("parallel", "autoregressive"))
        if hidden_dim % 8:
            raise ValueError(f"hidden_dim must be a positive multiple of 8, got {hidden_dim}")
        self.n_bins, self.bins, self.decoding, self.temperature = n_bins, bins, decoding, temperature
        self.hidden_dim, self.n_layers = hidden_dim, n_layers
        # Of the width 2 / n_bins each
        centres = (2 * th.arange(n_bins) + 1) / n_bins - 1
        self.register_buffer("unit_bins", centres.repeat(self.action_dim, 1))
        n_tokens = self.chunk_size * self.action_dim
        self.net: nn.Module = (
            nn.Sequential(nn.Linear(features_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, n_tokens * n_bins))
            if decoding == "parallel"
            else TokenDecoder(features_dim, n_tokens, n_bins, hidden_dim, n_layers)
        )

    @property
    def divisor(self) -> float:
        """By which logits are divided now."""
        return self.temperature * self.noise_scale

    def forward(self, features: BackboneFeatures) -> ChunkDistribution:
        if isinstance(self.net, TokenDecoder):
            return AutoregressiveTokenDistribution(self, self.net, features.action)
        logits = self.net(features.action).view(-1, self.chunk_size, self.action_dim, self.n_bins)
        return ParallelTokenDistribution(self, logits / self.divisor)

    def to_tokens(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, h, d)`` or ``(batch, h * d)`` in the environment's units
        :return: Number of the nearest bin, ``(batch, h, d)``
        """
        edges = (self.unit_bins[:, 1:] + self.unit_bins[:, :-1]) / 2
        rows = self.to_unit(actions).flatten(0, 1).T.contiguous()  # (d, batch * h)
        return th.searchsorted(edges, rows).T.view(-1, self.chunk_size, self.action_dim)

    def from_tokens(self, tokens: th.Tensor) -> th.Tensor:
        """
        :param tokens: Numbers of bins, ``(batch, h, d)``
        :return: Their centres in the environment's units, ``(batch, h, d)``
        """
        return self.to_env(self.unit_bins.gather(1, tokens.flatten(0, 1).T).T.view(tokens.shape))

    def fit(self, actions: np.ndarray) -> None:
        if self.bins == "quantile":
            steps = ((th.from_numpy(actions).to(self.center) - self.center[0]) / self.half_range[0]).clamp(-1, 1).cpu().numpy()
            bins = np.stack([_quantile_bins(column, self.n_bins) for column in steps.T])
            self.unit_bins.copy_(th.from_numpy(bins))

    def constructor_kwargs(self) -> dict[str, Any]:
        return {
            "n_bins": self.n_bins,
            "bins": self.bins,
            "decoding": self.decoding,
            "temperature": self.temperature,
            "hidden_dim": self.hidden_dim,
            "n_layers": self.n_layers,
        }


# Between two bins in [-1, 1]
_LEAST_GAP = 1e-4


def _quantile_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """
    :param values: ``(samples,)`` in [-1, 1]
    :param n_bins: How many bins
    :return: Values that stand for equally many samples each, ascending, float32; where several would be nearly the same, as at
        the bounds, the widest gaps between others are halved instead
    """
    quantiles = np.quantile(values, (np.arange(n_bins) + 0.5) / n_bins).astype(np.float32)
    # A bin's centre in the environment's units, rounded, has to be nearest to that bin
    bins = quantiles[:1]
    for value in quantiles[1:]:
        if value - bins[-1] > _LEAST_GAP:
            bins = np.append(bins, value)
    while len(bins) < n_bins:
        known = np.union1d(bins, np.array([-1, 1], np.float32))
        widest = np.diff(known).argmax()
        bins = np.union1d(bins, known[widest : widest + 2].mean())
    return bins


def _draw(logits: th.Tensor, deterministic: bool) -> th.Tensor:
    if deterministic:
        return logits.argmax(dim=-1)
    return th.distributions.Categorical(logits=logits, validate_args=False).sample()


def _log_prob(logits: th.Tensor, tokens: th.Tensor) -> th.Tensor:
    return F.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _entropy(logits: th.Tensor) -> th.Tensor:
    log_probs = F.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)

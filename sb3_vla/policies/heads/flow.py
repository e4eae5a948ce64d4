"""The flow head: chunks out of noise, by flow matching, with likelihoods for PPO."""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from sb3_vla_envs.argument_checks import Limits, check_choice, check_count

from ...common.argument_checks import check_widths
from ...common.chunk_mask import masked_mse
from ..backbones import ActionExpert, BackboneFeatures
from ..backbones.time_embedding import embed_time
from .base import ActionHead, ChunkDistribution, ChunkSample

#: ``(x, t)``, of ``(batch, h, d)`` and ``(batch,)``, to the mean velocity, ``(batch, h, d)``
Velocity = Callable[[th.Tensor, th.Tensor], th.Tensor]

# pi0's distribution of times in training, Beta(1.5, 1) scaled to [0.001, 1] (Black et al. 2024, arXiv 2410.24164): of
# Beta(a, 1) a uniform number to the power of 1 / a is a sample
_ALPHA, _MIN_TIME = 1.5, 0.001
# Numbers that say the time
_TIME_DIM = 32


class FlowDistribution(ChunkDistribution):
    """
    Chunks at the end of a denoising chain. Time t falls from 1, noise, to 0, an action, in K steps of ``1 / K``; of
    ``x_t = t noise + (1 - t) action`` the network knows the mean velocity ``v(x_t, t) = E[noise - action | x_t]``.

    Following it is deterministic, and has no likelihood. pi_RL (Chen et al. 2025, arXiv 2510.25889) gives it one, by steps
    that are Gaussians around where the velocity leads. The likelihood of a chunk is that of its random steps, given where they
    began:

    - ``"noise"`` (Flow-Noise): every step is random, with a standard deviation that is learned.
    - ``"sde"`` (Flow-SDE): one step of the chain, drawn anew each time, is one of the stochastic differential equation
      ``dx = (v + sigma_t^2 / 2t (x + (1 - t) v)) dt + sigma_t dw``, which leaves the distribution at each time as it is
      (Flow-GRPO: Liu et al. 2025, arXiv 2505.05470, equation 8), with ``sigma_t = noise_level sqrt(t / (1 - t))``.

    :param velocity: The network, given the features
    :param start: Where the noise is drawn: any tensor ``(batch, length, width)`` of its device and precision
    :param n_steps: K
    :param noise: Which steps are random, and how
    :param scale: Standard deviation of a step of ``"noise"``, ``(width,)``, or the noise level of ``"sde"``, a scalar
    :param to_env: Turns chunks that the network knows, ``(batch, length, width)``, into actions, ``(batch, h, d)``
    :param shape: ``(h, d)``. What a network draws beyond the environment's chunk counts in no likelihood
    """

    def __init__(
        self,
        velocity: Velocity,
        start: th.Tensor,
        n_steps: int,
        noise: Literal["noise", "sde"],
        scale: th.Tensor,
        to_env: Callable[[th.Tensor], th.Tensor],
        shape: tuple[int, int],
    ) -> None:
        self.velocity, self.start, self.n_steps, self.noise, self.scale = velocity, start, n_steps, noise, scale
        self.to_env, self.shape = to_env, shape

    def draw(self, deterministic: bool = False) -> ChunkSample:
        """
        :param deterministic: Whether to follow the velocity alone, from where the noise is 0
        :return: One chunk for each of the batch; where its random steps began and ended as ``before`` and ``after``,
            ``(batch, random steps, length, width)``, and which of the chain they were as ``step``, ``(batch, random steps)``
        """
        if deterministic:
            return ChunkSample(self.to_env(self.follow(th.zeros_like(self.start))))
        x, batch = th.randn_like(self.start), len(self.start)
        # Of each sample, which steps are random: (batch, K)
        is_random = th.ones(batch, self.n_steps, dtype=th.bool, device=x.device)
        if self.noise == "sde":
            chosen = th.randint(self.n_steps, (batch, 1), device=x.device)
            is_random = chosen == th.arange(self.n_steps, device=x.device)
        chain, log_prob = [x], x.new_zeros(batch, self.shape[0])
        for number in range(self.n_steps):
            x, random = self.advance(x, self._numbers(number), is_random[:, number])
            chain.append(x)
            log_prob = log_prob + is_random[:, number].unsqueeze(1) * self._sum(random.log_prob(x))
        whole, n_random = th.stack(chain, dim=1), int(is_random[0].sum())  # (batch, K + 1, length, width)
        extras = {
            "before": whole[:, :-1][is_random].view(batch, n_random, *x.shape[1:]),
            "after": whole[:, 1:][is_random].view(batch, n_random, *x.shape[1:]),
            "step": is_random.nonzero()[:, 1].view(batch, n_random),
        }
        return ChunkSample(self.to_env(x), extras, log_prob)

    def step_log_prob(self, sample: ChunkSample) -> th.Tensor:
        return self.evaluate(sample)[0]

    def step_entropy(self) -> None:
        """It depends on the chain: see :meth:`evaluate`."""

    def evaluate(self, sample: ChunkSample) -> tuple[th.Tensor, th.Tensor]:
        """
        :param sample: Chunks with the extras that they were drawn with
        :return: Log-probability and entropy of each primitive step in the random steps of the chain, given where these began
        """
        n_random = sample.extras["step"].shape[1]
        before, after, number = (sample.extras[name].flatten(0, 1) for name in ("before", "after", "step"))
        random = self._step(before, number, self.velocity(before, self._time(number)))
        terms = (random.log_prob(after), random.entropy())
        log_prob, entropy = (self._sum(each).unflatten(0, (-1, n_random)).sum(dim=1) for each in terms)
        return log_prob, entropy

    def _sum(self, terms: th.Tensor) -> th.Tensor:
        """
        :param terms: ``(n, length, width)``
        :return: Sum over the dimensions of the environment's primitive steps, ``(n, h)``
        """
        length, width = self.shape
        return terms[:, :length, :width].sum(dim=2)

    def follow(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Noise, ``(batch, length, width)``
        :return: Where the velocity alone leads from there
        """
        for number in range(self.n_steps):
            x = x - self.velocity(x, self._time(self._numbers(number))) / self.n_steps
        return x

    def advance(self, x: th.Tensor, number: th.Tensor, is_random: th.Tensor) -> tuple[th.Tensor, Normal]:
        """
        :param x: Where the chains are, ``(batch, length, width)``
        :param number: Which of the steps comes, ``(batch,)``
        :param is_random: Whether it is random, ``(batch,)``
        :return: Where they are after it, and the distribution of that where it is random
        """
        velocity = self.velocity(x, self._time(number))
        random = self._step(x, number, velocity)
        return th.where(is_random.view(-1, 1, 1), random.sample(), x - velocity / self.n_steps), random

    def _step(self, x: th.Tensor, number: th.Tensor, velocity: th.Tensor) -> Normal:
        """
        :param x: Where random steps begin, ``(n, h, d)``
        :param number: Which of the chain they are, ``(n,)``
        :param velocity: There, ``(n, h, d)``
        :return: Where they end, ``(n, h, d)``
        """
        if self.noise == "noise":
            return Normal(x - velocity / self.n_steps, self.scale.expand_as(x), validate_args=False)
        t = self._time(number).view(-1, 1, 1)
        # sigma is infinite where there is nothing but noise, at t = 1: there 1 - t counts as at the second step
        variance = self.scale**2 * t / (1 - t.clamp(max=1 - 1 / self.n_steps))
        drift = velocity + variance / (2 * t) * (x + (1 - t) * velocity)
        std = (variance / self.n_steps).sqrt()
        return Normal(x - drift / self.n_steps, std.expand_as(x), validate_args=False)

    def _numbers(self, number: int) -> th.Tensor:
        return th.full((len(self.start),), number, device=self.start.device)

    def _time(self, number: th.Tensor) -> th.Tensor:
        return 1 - number / self.n_steps


class FlowHead(ActionHead):
    """
    Flow matching (Lipman et al. 2022, arXiv 2210.02747), as pi0 does it: a network learns the velocity from noise to
    demonstrated chunks, and a chunk is where it leads. The network is the checkpoint's own where it has one, else a small new
    one. What PPO learns from: see :class:`FlowDistribution`.

    :param features_dim: Length of the features
    :param action_space: Chunks, a bounded ``Box`` of shape ``(h, d)``
    :param n_flow_steps: K, steps from noise to a chunk
    :param noise: What makes a chain random: ``"noise"`` or ``"sde"``
    :param log_std_init: Initial logarithm of the standard deviation of a step of ``"noise"``, in units of half the range of
        the bounds, or of the checkpoint's statistics; it is learned, one a dimension
    :param noise_level: Of ``"sde"``, above 0
    :param net_arch: Widths of a new network's hidden layers
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If an argument is out of range
    """

    imitation_losses: ClassVar[tuple[str, ...]] = ("flow",)
    adjustable: ClassVar[tuple[str, ...]] = ("n_flow_steps", "noise", "noise_level")
    noise_scale: float = 1.0
    needs_extras = True

    def __init__(
        self,
        features_dim: int,
        action_space: spaces.Box,
        n_flow_steps: int = 4,
        noise: Literal["noise", "sde"] = "noise",
        log_std_init: float = -2.0,
        noise_level: float = 0.5,
        net_arch: tuple[int, ...] = (256, 256),
    ) -> None:
        super().__init__(features_dim, action_space)
        check_count("n_flow_steps", n_flow_steps)
        check_choice("noise", noise, ("noise", "sde"))
        Limits(at_least=-20, at_most=2).check("log_std_init", log_std_init)
        Limits(above=0).check("noise_level", noise_level)
        self.n_flow_steps, self.noise, self.noise_level, self.log_std_init = n_flow_steps, noise, noise_level, log_std_init
        self.net_arch = check_widths("net_arch", net_arch)
        self.expert: ActionExpert = MLPExpert((self.chunk_size, self.action_dim), features_dim, self.net_arch)
        self.log_std = nn.Parameter(th.full((self.action_dim,), float(log_std_init)))

    def use_expert(self, expert: ActionExpert) -> None:
        length, width = expert.chunk_shape
        if self.chunk_size > length or self.action_dim > width:
            raise ValueError(
                f"the checkpoint's action expert draws chunks of {length} actions of {width} numbers, the environment takes "
                f"{self.chunk_size} of {self.action_dim}: make its chunks shorter, or take another checkpoint"
            )
        self.expert = expert
        self.reads_prefix = expert.reads_prefix
        if expert.normalization is not None:
            self.use_normalization(expert.normalization)

    def forward(self, features: BackboneFeatures) -> FlowDistribution:
        start = features.action.new_zeros(len(features.action), *self.expert.chunk_shape)
        scale = features.action.new_tensor(self.noise_level)
        if self.noise == "noise":
            # Numbers that the environment does not have vary as if they were random by themselves
            scale = F.pad(self.log_std, (0, start.shape[2] - self.action_dim), value=self.log_std_init).exp()
        velocity = functools.partial(self._velocity, features)
        shape = (self.chunk_size, self.action_dim)
        scale = scale * self.noise_scale
        return FlowDistribution(velocity, start, self.n_flow_steps, self.noise, scale, self._to_env, shape)

    def _velocity(self, features: BackboneFeatures, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        :param features: Of a batch
        :param x: ``(n * batch, length, width)``, n in a row for each of the batch
        :param t: ``(n * batch,)``
        :return: Velocity, ``(n * batch, length, width)``
        """
        repeats = len(x) // len(features.action)
        if repeats > 1:
            known = {name: tensor for name, tensor in features._asdict().items() if tensor is not None}
            features = BackboneFeatures(**{name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in known.items()})
        return self.expert(features, x, t)

    def _to_env(self, x: th.Tensor) -> th.Tensor:
        return self.to_env(x[:, : self.chunk_size, : self.action_dim])

    def imitation_loss(self, features: BackboneFeatures, actions: th.Tensor, mask: th.Tensor, kind: str = "auto") -> th.Tensor:
        if kind not in ("auto", "flow"):
            return super().imitation_loss(features, actions, mask, kind)
        target = self.to_unit(actions)
        length, width = self.expert.chunk_shape
        target = F.pad(target, (0, width - self.action_dim, 0, length - self.chunk_size))
        noise = th.randn_like(target)
        t = _MIN_TIME + (1 - _MIN_TIME) * th.rand_like(target[:, 0, 0]) ** (1 / _ALPHA)
        weight = t.view(-1, 1, 1)
        error = self.expert(features, weight * noise + (1 - weight) * target, t) - (noise - target)
        error = error[:, : self.chunk_size, : self.action_dim]
        return masked_mse(error, th.zeros_like(error), mask)

    def restart(self, changed: Collection[str]) -> None:
        if "log_std_init" in changed:
            with th.no_grad():
                self.log_std.fill_(self.log_std_init)

    def metrics(self) -> dict[str, float]:
        return {"std": self.noise_scale * self.log_std.detach().exp().mean().item()} if self.noise == "noise" else {}

    def constructor_kwargs(self) -> dict[str, Any]:
        return {
            "n_flow_steps": self.n_flow_steps,
            "noise": self.noise,
            "log_std_init": self.log_std_init,
            "noise_level": self.noise_level,
            "net_arch": self.net_arch,
        }


class MLPExpert(ActionExpert):
    """
    A network without layers of attention, for backbones that have no expert of their own.

    :param chunk_shape: ``(h, d)``
    :param features_dim: Length of the features
    :param net_arch: Widths of its hidden layers
    """

    def __init__(self, chunk_shape: tuple[int, int], features_dim: int, net_arch: Sequence[int]) -> None:
        super().__init__(chunk_shape)
        n_numbers = math.prod(chunk_shape)
        self.net = nn.Sequential(*create_mlp(features_dim + n_numbers + _TIME_DIM, n_numbers, list(net_arch), nn.SiLU))

    def forward(self, features: BackboneFeatures, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        return self.net(th.cat([features.action, x.flatten(1), embed_time(t, _TIME_DIM)], dim=1)).view_as(x)

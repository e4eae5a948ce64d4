"""The SB3 policy that hosts a vision-language-action model."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_vla_envs import decode_instruction

from .backbones import VLABackbone, make_backbone
from .heads.gaussian import GaussianChunkDistribution, GaussianChunkHead
from .normalizer import Normalizer

REQUIRED_KEYS = ("image", "instruction", "state")
COLOUR_CHANNELS = 3
_NORMALIZE_HINT = (
    "if VecNormalize stands around the environment, name the keys that it may normalise, e.g. "
    "VecNormalize(env, norm_obs_keys=['state'])"
)
_HOW_TO_ADD_KEYS = (
    "add pictures with sb3_vla_envs.CameraObservation, or where there is no MuJoCo with "
    "gymnasium.wrappers.AddRenderObservation(env, render_only=False, render_key='image'), the prompt with "
    "sb3_vla_envs.InstructionObservation"
)
AUTOCASTS = (None, "auto", "bfloat16")  # not float16, which needs its gradients scaled


class VLAPolicy(ActorCriticPolicy):
    """
    Actor-critic policy around a vision-language-action (VLA) backbone that outputs chunks of actions.

    The observation is a dictionary with the keys ``image`` (and ``image_<camera>`` for more), ``state`` and
    ``instruction`` (UTF-8 bytes), the action a chunk of shape ``(h, d)``: see "The contract" in the README. With a key
    ``privileged`` the value function reads that instead of the backbone's features (asymmetric actor-critic, Pinto et al.
    2017, arXiv 1710.06542); the actor never does, and :meth:`predict` works without it.

    Under SB3's ``VecFrameStack``, which stacks every key, the backbone sees each camera's last n images, the oldest first and
    black before an episode's start, the latest instruction, and ``state`` and ``privileged`` as they come: n times as long.

    What the backbone's frozen parts make of an observation is computed once and may stand in the observation's place, see
    :meth:`precompute`.

    ``forward`` and ``evaluate_actions`` return log-probability and entropy for each primitive step, ``(batch, h)``, which
    is what :class:`~sb3_vla.PPOSelfBC` and its rollout buffer expect.

    :param observation_space: Observation space
    :param action_space: Action space, a bounded ``Box`` of shape ``(h, d)``
    :param lr_schedule: Learning rate schedule (could be constant)
    :param backbone: ``"tiny"``, name or path of a SmolVLM checkpoint, or a subclass of
        :class:`~sb3_vla.policies.backbones.VLABackbone`
    :param backbone_kwargs: Keyword arguments of the backbone
    :param frozen: Parts of the backbone that are not trained, e.g. ``("vision", "text")`` or ``("all",)``
    :param chunk_size: h, if it is to be checked against the action space
    :param head_dim: Width of the chunk head's hidden layer
    :param critic_net_arch: Widths of the value function's hidden layers
    :param log_std_init: Initial logarithm of the standard deviation
    :param noise_correlation: Correlation of the exploration noise of successive primitive steps within a chunk, in [0, 1], see
        :class:`~sb3_vla.policies.heads.gaussian.GaussianChunkDistribution`
    :param autocast: Precision of the backbone's matrix products: ``None`` (float32), ``"bfloat16"``, or ``"auto"``: bfloat16
        where the processor computes in it. Both heads stay in float32
    :param compile: Whether to compile the backbone's parts with ``torch.compile``, slow at first; meant for GPUs
    :param use_sde: Not supported, there because SB3's algorithms pass it
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :raises ValueError: if a space is not of the contract, or ``chunk_size`` is not the action space's
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        backbone: str | type[VLABackbone] = "tiny",
        backbone_kwargs: dict[str, Any] | None = None,
        frozen: Sequence[str] = (),
        chunk_size: int | None = None,
        head_dim: int = 256,
        critic_net_arch: Sequence[int] = (256, 256),
        log_std_init: float = -1.5,
        noise_correlation: float = 0.0,
        autocast: str | None = None,
        compile: bool = False,
        use_sde: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        _check_spaces(observation_space, action_space, chunk_size)
        if use_sde:
            raise ValueError("VLAPolicy has no state-dependent exploration: pass use_sde=False")
        if autocast not in AUTOCASTS:
            raise ValueError(f"autocast must be one of {AUTOCASTS}, got {autocast!r}")
        self.backbone_spec = (backbone, backbone_kwargs or {})
        self.frozen = tuple(frozen)
        self.head_dim = head_dim
        self.critic_net_arch = list(critic_net_arch)
        self.noise_correlation = noise_correlation
        self.autocast = autocast
        self.compile_parts = compile
        self.image_keys = [key for key in observation_space if is_image_key(key)]
        self.n_frames = _count_frames(observation_space, self.image_keys)
        self.instruction_bytes = observation_space["instruction"].shape[0] // self.n_frames  # type: ignore[index]
        self.privileged = "privileged" in observation_space.spaces
        self.precomputed: dict[str, th.Tensor] = {}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            # SB3's initialisation would overwrite the pretrained weights
            ortho_init=False,
            log_std_init=log_std_init,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        backbone, backbone_kwargs = self.backbone_spec
        chunk_size, primitive_dim = self.action_space.shape  # type: ignore[misc]
        state_dim = self.observation_space["state"].shape[0]  # type: ignore[index]
        self.backbone = make_backbone(backbone, state_dim, **backbone_kwargs).eval()
        self.backbone.freeze(self.frozen)
        if self.compile_parts:
            for part in self.backbone.parts.values():
                if part is not self.backbone:  # around its parts there is tokenising, which does not compile
                    part.compile()
        self.head = GaussianChunkHead(
            self.backbone.features_dim, chunk_size, primitive_dim, self.head_dim, self.log_std_init, self.noise_correlation
        )
        self.state_normalizer = Normalizer(state_dim)
        critic_dim = self.backbone.features_dim
        if self.privileged:
            critic_dim = self.observation_space["privileged"].shape[0]  # type: ignore[index]
            self.privileged_normalizer = Normalizer(critic_dim)
        self.critic = nn.Sequential(*create_mlp(critic_dim, 1, self.critic_net_arch, nn.Tanh))
        # One group a part, by name, so that PPOSelfBC can give each its own learning rate
        groups = [
            {"name": name, "params": [p for p in module.parameters() if p.requires_grad]}
            for name, module in (("backbone", self.backbone), ("head", self.head), ("critic", self.critic))
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = self.optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        # SB3 insists on one; the backbone takes its place, and takes the raw observation
        return _NoFeaturesExtractor(self.observation_space, features_dim=1)

    @property
    def log_std(self) -> th.Tensor:  # type: ignore[override]  # SB3's is an attribute, ours belongs to the head
        """Logarithm of the standard deviation (SB3 logs ``train/std`` from it), ``(d,)``."""
        return self.head.log_std

    def train(self, mode: bool = True) -> "VLAPolicy":
        """
        Put the heads in training or evaluation mode. The backbone stays in evaluation mode: with dropout, the first
        likelihood ratio of an update would not be one.

        :param mode: Whether to train
        :return: The policy
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def portable_kwargs(self) -> dict[str, Any]:
        """
        :return: ``policy_kwargs`` that rebuild this backbone without network and without the checkpoint's files
        """
        return {"backbone": type(self.backbone), "backbone_kwargs": self.backbone.constructor_kwargs()}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            frozen=self.frozen,
            head_dim=self.head_dim,
            critic_net_arch=self.critic_net_arch,
            log_std_init=self.log_std_init,
            noise_correlation=self.noise_correlation,
            autocast=self.autocast,
            compile=self.compile_parts,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            **self.portable_kwargs(),
        )

    @property
    def normalized_keys(self) -> list[str]:
        """Observations that the policy standardises."""
        return ["state", "privileged"] if self.privileged else ["state"]

    def fit_normalizers(self, observations: dict[str, th.Tensor]) -> None:
        """
        Standardise ``state`` (and ``privileged``) with the statistics of a data set.

        :param observations: ``(samples, ...)`` by key
        """
        self.state_normalizer.fit(observations["state"])
        if self.privileged:
            self.privileged_normalizer.fit(observations["privileged"])

    @property
    def stored_keys(self) -> list[str]:
        """Observations that :meth:`evaluate_actions` reads beside what :meth:`precompute` returns."""
        replaced: list[str] = []
        if _is_frozen(self.backbone):
            replaced = [*REQUIRED_KEYS, *self.image_keys]
        elif self._images_are_frozen:
            replaced = self.image_keys
        return [key for key in self.observation_space if key not in replaced]  # type: ignore[attr-defined]

    def precompute(self, obs: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Run the frozen parts of the backbone.

        Added to an observation, the result takes the place of what it was computed from: whoever sees an observation several
        times, in epochs over a rollout or as a demonstration, need not compute it again as long as :meth:`frozen_version`
        stays the same.

        :param obs: Raw observation, each key ``(batch, ...)``
        :return: Tensors ``(batch, ...)``: ``features`` if the whole backbone is frozen, ``image_tokens`` if only the images'
            encoder is, nothing if that is trained
        """
        with th.no_grad():
            if _is_frozen(self.backbone):
                return {"features": th.stack(self.encode(obs), dim=1)}
            if self._images_are_frozen:
                return {"image_tokens": self._encode_images(obs)}
        return {}

    def frozen_version(self) -> tuple[int, ...]:
        """
        :return: Something that differs after the frozen weights were replaced (``load_state_dict``)
        """
        tensors = [tensor for tensor in self.state_dict(keep_vars=True).values() if not tensor.requires_grad]
        return tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))

    @property
    def _images_are_frozen(self) -> bool:
        return all(_is_frozen(module) for module in self.backbone.image_encoder)

    def _encode_images(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        images = {}
        for key in self.image_keys:
            if obs[key].dtype != th.uint8:
                raise ValueError(f"VLAPolicy needs {key!r} as uint8, got {obs[key].dtype}: {_NORMALIZE_HINT}")
            # (batch, n_frames * 3, height, width)
            for age, frame in zip(reversed(range(self.n_frames)), obs[key].chunk(self.n_frames, dim=1), strict=True):
                images[f"{key}[-{age}]" if age else key] = frame
        with self._autocast():
            return self.backbone.encode_images(images)

    def _autocast(self) -> th.autocast:
        enabled = self.autocast == "bfloat16" or (self.autocast == "auto" and _has_bfloat16(self.device))
        return th.autocast(self.device.type, dtype=th.bfloat16, enabled=enabled)

    def encode(self, obs: dict[str, th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        Run the backbone.

        :param obs: Raw observation, each key ``(batch, ...)``, or :attr:`stored_keys` of it and what :meth:`precompute` made
        :return: Features for the action and for the value, each ``(batch, features_dim)`` float32
        """
        if "features" in obs:
            action, value = obs["features"].unbind(dim=1)
            return action, value
        image_tokens = obs["image_tokens"] if "image_tokens" in obs else self._encode_images(obs)
        prompts = [_decode_cached(row.tobytes()) for row in obs["instruction"].cpu().numpy()[:, -self.instruction_bytes :]]
        with self._autocast():
            features = self.backbone(image_tokens, prompts, self.state_normalizer(obs["state"]))
        return features.action.float(), features.value.float()

    def encode_together(self, *batches: Any) -> list[dict[str, th.Tensor]]:
        """
        Run the backbone once for several batches of observations.

        :param batches: Observations, each key ``(batch, ...)``, raw or with what :meth:`precompute` made
        :return: For each batch its privileged observations and, with one graph for all, its ``features``
        """
        known = [obs if {"features", "image_tokens"} & obs.keys() else {**obs, **self.precompute(obs)} for obs in batches]
        read = [key for key in known[0] if key != "privileged" and all(key in obs for obs in known)]
        features = th.stack(self.encode({key: th.cat([obs[key] for obs in known]) for key in read}), dim=1)
        parts = features.split([len(obs[read[0]]) for obs in known])
        privileged = [{"privileged": obs["privileged"]} if self.privileged else {} for obs in known]
        return [{"features": part, **rest} for part, rest in zip(parts, privileged, strict=True)]

    def _value(self, obs: PyTorchObs, value_features: th.Tensor) -> th.Tensor:
        return self.predict_values(obs) if self.privileged else self.critic(value_features)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        :param obs: Observation, each key ``(batch, ...)``
        :param deterministic: Whether to return the mean instead of a sample
        :return: Chunks ``(batch, h, d)`` before clipping, values ``(batch, 1)``, log-probabilities ``(batch, h)``
        """
        # Kept for whoever stores the observation
        self.precomputed = self.precompute(obs)  # type: ignore[arg-type]
        action_features, value_features = self.encode({**obs, **self.precomputed})  # type: ignore[dict-item]
        distribution = self.head(action_features)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._value(obs, value_features), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: Observation, each key ``(batch, ...)``
        :param actions: Chunks, ``(batch, h * d)`` or ``(batch, h, d)``
        :return: Values ``(batch, 1)``, log-probabilities ``(batch, h)`` and entropies ``(batch, h)``
        """
        action_features, value_features = self.encode(obs)  # type: ignore[arg-type]
        distribution = self.head(action_features)
        return self._value(obs, value_features), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> GaussianChunkDistribution:
        """
        :param obs: Observation, each key ``(batch, ...)``
        :return: Distribution over chunks
        """
        return self.head(self.encode(obs)[0])  # type: ignore[arg-type]

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observation, each key ``(batch, ...)``
        :return: Values ``(batch, 1)``
        """
        if self.privileged:
            return self.critic(self.privileged_normalizer(obs["privileged"]))  # type: ignore[index]
        return self.critic(self.encode(obs)[1])  # type: ignore[arg-type]

    def critic_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        Like :meth:`predict_values`, with a gradient for the critic alone, and not for the backbone, which the actor reads.

        :param obs: Observation, each key ``(batch, ...)``
        :return: Values ``(batch, 1)``
        """
        if self.privileged:
            return self.predict_values(obs)
        with th.no_grad():
            value_features = self.encode(obs)[1]  # type: ignore[arg-type]
        return self.critic(value_features)


class _NoFeaturesExtractor(BaseFeaturesExtractor):
    """Stands where SB3 wants a features extractor."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        raise RuntimeError("VLAPolicy has no features extractor: use VLAPolicy.encode")


def is_image_key(key: str) -> bool:
    """
    :param key: Name of an observation
    :return: Whether it is a camera's picture
    """
    return key == "image" or key.startswith("image_")


def _count_frames(observation_space: spaces.Dict, image_keys: Sequence[str]) -> int:
    """
    :param observation_space: Observation space of the policy
    :param image_keys: Names of the cameras
    :return: How many frames ``VecFrameStack`` has stacked, 1 without it
    :raises ValueError: if images don't have three channels each, or keys are not all stacked alike
    """
    channels = {key: observation_space[key].shape[0] for key in image_keys}  # type: ignore[index]
    n_frames = {number // COLOUR_CHANNELS for number in channels.values()}
    n_bytes = observation_space["instruction"].shape[0]  # type: ignore[index]
    if any(number % COLOUR_CHANNELS for number in channels.values()) or len(n_frames) > 1 or n_bytes % min(n_frames):
        raise ValueError(
            f"VLAPolicy needs images of {COLOUR_CHANNELS} channels, or n times as many where VecFrameStack has stacked n of "
            f"every observation, but the images have {channels} channels and the instruction {n_bytes} bytes: make pictures "
            "RGB, and stack frames with stable_baselines3.common.vec_env.VecFrameStack"
        )
    return n_frames.pop()


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _has_bfloat16(device: th.device) -> bool:
    """Whether a processor multiplies in bfloat16 by itself: elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return th.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (th.cpu._is_avx512_bf16_supported() or th.cpu._is_amx_tile_supported())


@lru_cache(maxsize=4096)
def _decode_cached(instruction: bytes) -> str:
    return decode_instruction(np.frombuffer(instruction, dtype=np.uint8))


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space, chunk_size: int | None) -> None:
    """
    :param observation_space: Observation space of the policy
    :param action_space: Action space of the policy
    :param chunk_size: The h that the user expects, or ``None``
    :raises ValueError: if a space is not of the contract
    """
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"VLAPolicy needs a Dict observation with the keys {REQUIRED_KEYS}, got {observation_space}: {_HOW_TO_ADD_KEYS}"
        )
    missing = [key for key in REQUIRED_KEYS if key not in observation_space.spaces]
    if missing:
        raise ValueError(
            f"VLAPolicy needs the observation keys {missing}, the environment has {sorted(observation_space.spaces)}: "
            f"{_HOW_TO_ADD_KEYS}"
        )
    for key, space in observation_space.spaces.items():
        if (is_image_key(key) or key == "instruction") and space.dtype != np.uint8:
            raise ValueError(f"VLAPolicy needs {key!r} as uint8, got {space}: {_NORMALIZE_HINT}")
        if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
            raise ValueError(
                f"VLAPolicy needs images with channels first, but {key!r} is {space}: SB3's algorithms turn them, elsewhere "
                "wrap the environment in stable_baselines3.common.vec_env.VecTransposeImage"
            )
    if not (isinstance(action_space, spaces.Box) and len(action_space.shape) == 2):
        raise ValueError(
            f"VLAPolicy outputs chunks, a Box of shape (chunk_size, action_dim), but the action space is {action_space}: "
            "wrap the environment in sb3_vla_envs.ChunkedActionWrapper(env, chunk_size)"
        )
    if chunk_size is not None and chunk_size != action_space.shape[0]:
        raise ValueError(
            f"the policy's chunk_size is {chunk_size}, but the environment's chunks have {action_space.shape[0]} actions: "
            "make them equal (n_action_steps executes fewer actions than are predicted)"
        )

"""The SB3 policy that hosts a vision-language-action model."""

import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, get_device
from torch import nn

from sb3_vla_envs import decode_instruction

from ..common.argument_checks import check_keywords, check_known, check_names, check_widths
from ..common.chunk_mask import executed_mask
from ..common.device_check import check_device
from ..common.plain_file import load_plain, save_plain
from .adapter import PolicyAdapter
from .backbones import BackboneFeatures, VLABackbone, make_backbone
from .encoded import NOT_ENCODED, EncodedObservations, PolicyInput
from .finite import check_actions, check_seen, check_weights
from .heads import ActionHead, ChunkDistribution, make_head
from .lora import add_lora, check_checkpoint, has_adapters, merge, needs_checkpoint
from .normalizer import Normalizer
from .observation_checks import REQUIRED_KEYS, check_spaces, checked_observation, count_frames, is_image_key
from .vla_adapter import VLAPolicyAdapter

# Of a policy alone
_FORMAT = "sb3-vla policy 1"

AUTOCASTS = (None, "auto", "bfloat16")  # not float16, which needs its gradients scaled


class VLAPolicy(ActorCriticPolicy):
    """
    Actor-critic policy around a vision-language-action (VLA) backbone that outputs chunks of actions.

    The observation is a dictionary with the keys ``image`` (and ``image_<camera>`` for more), ``state`` and
    ``instruction`` (UTF-8 bytes), the action a chunk of shape ``(h, d)``: see "The contract" in the documentation. With a key
    ``privileged`` the value function reads that instead of the backbone's features (asymmetric actor-critic, Pinto et al.
    2017, arXiv 1710.06542); the actor never does, and :meth:`predict` works without it. Other keys are not read.

    Under SB3's ``VecFrameStack``, which stacks every key, the backbone sees each camera's last n images, the oldest first and
    black before an episode's start, the latest instruction, and ``state`` and ``privileged`` as they come: n times as long.

    For SB3's own algorithms ``forward`` and ``evaluate_actions`` give log-probability and entropy of a whole chunk, the sum
    over its steps. :class:`~sb3_vla.PPOSelfBC` asks for those of each step, and has what frozen parts compute kept, through
    :class:`~sb3_vla.policies.vla_adapter.VLAPolicyAdapter`.

    :param observation_space: Observation space
    :param action_space: Action space, a bounded ``Box`` of shape ``(h, d)``
    :param lr_schedule: Learning rate schedule (could be constant)
    :param backbone: ``"tiny"``, name or path of a checkpoint of a vision-language model, see
        :class:`~sb3_vla.PretrainedBackbone`, or a subclass of :class:`~sb3_vla.VLABackbone`
    :param backbone_kwargs: Keyword arguments of the backbone
    :param frozen: Parts of the backbone that are not trained, e.g. ``("vision", "text")`` or ``("all",)``
    :param lora: Arguments of :func:`~sb3_vla.policies.lora.adapt`, such as ``dict(r=16)``, if adapters are to be trained in
        place of the backbone's pretrained weights. They are saved without these, which the checkpoint gives again
    :param head: ``"gaussian"``, ``"token"``, ``"flow"``, or a subclass of :class:`~sb3_vla.ActionHead`
    :param head_kwargs: Keyword arguments of the head
    :param chunk_size: h, if it is to be checked against the action space
    :param critic_net_arch: Widths of the value function's hidden layers
    :param autocast: Precision of the backbone's matrix products: ``None`` (float32), ``"bfloat16"``, or ``"auto"``: bfloat16
        where the processor computes in it. Both heads stay in float32
    :param compile: Whether to compile the backbone's parts with ``torch.compile``, slow at first; meant for GPUs
    :param normalized_keys: What ``VecNormalize`` standardises before the policy sees it, noted by whoever trains the policy
    :param use_sde: Not supported, there because SB3's algorithms pass it
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer; what is not
        among them has PyTorch's defaults, Adam's ``eps`` too, which is 1e-5 in SB3's own policies
    :raises ValueError: If a space is not of the contract, ``chunk_size`` is not the action space's, or an argument is out of
        range
    :raises TypeError: If an argument is of a wrong type, or unknown to backbone, head or optimizer
    """

    adapter_class: ClassVar[type[PolicyAdapter]] = VLAPolicyAdapter

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        backbone: str | type[VLABackbone] = "tiny",
        backbone_kwargs: dict[str, Any] | None = None,
        frozen: Sequence[str] | None = (),
        lora: dict[str, Any] | None = None,
        head: str | type[ActionHead] = "gaussian",
        head_kwargs: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        critic_net_arch: Sequence[int] = (256, 256),
        autocast: str | None = None,
        compile: bool = False,
        normalized_keys: Sequence[str] = (),
        use_sde: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_spaces(observation_space, action_space, chunk_size)
        if use_sde:
            raise ValueError("VLAPolicy has no state-dependent exploration: pass use_sde=False")
        if autocast not in AUTOCASTS:
            raise ValueError(f"autocast must be one of {AUTOCASTS}, got {autocast!r}")
        self.backbone_spec = (backbone, check_keywords("backbone_kwargs", backbone_kwargs))
        self.head_spec = (head, check_keywords("head_kwargs", head_kwargs))
        self.frozen = check_names("frozen", frozen)
        self.lora = lora
        self.critic_net_arch = check_widths("critic_net_arch", critic_net_arch)
        optimizer_kwargs = check_keywords("optimizer_kwargs", optimizer_kwargs)
        check_known("optimizer_kwargs", optimizer_kwargs, optimizer_class, ("params", "lr"))
        self.autocast = autocast
        self.compile_parts = compile
        self.image_keys = [key for key in observation_space if is_image_key(key)]
        self.n_frames = count_frames(observation_space)
        self.instruction_bytes = observation_space["instruction"].shape[0] // self.n_frames  # type: ignore[index]
        self.privileged = "privileged" in observation_space.spaces
        #: What the actor reads
        self.actor_keys = [key for key in observation_space if key in REQUIRED_KEYS or key in self.image_keys]
        #: What actor and critic read
        self.read_keys = [key for key in observation_space if key in (*self.actor_keys, "privileged")]
        #: What ``VecNormalize`` standardises before the policy sees it
        self.normalized_keys: tuple[str, ...] = tuple(normalized_keys)
        if unread := [key for key in observation_space if key not in self.read_keys]:
            warnings.warn(
                f"VLAPolicy does not read the observations {unread}: call pictures 'image_<camera>', and put what the robot "
                "feels of itself into 'state'",
                stacklevel=2,
            )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            # SB3's initialisation would overwrite the pretrained weights
            ortho_init=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        backbone, backbone_kwargs = self.backbone_spec
        state_dim = self.observation_space["state"].shape[0]  # type: ignore[index]
        self.backbone = make_backbone(backbone, state_dim, **backbone_kwargs).eval()
        self.backbone.freeze(self.frozen)
        if self.lora is not None:
            self.lora = add_lora(self.backbone, self.lora)
            if adapted := [name for name in self.frozen if has_adapters(self.backbone.parts[name])]:
                raise ValueError(
                    f"frozen={self.frozen} keeps {adapted} from learning, which lora adapts: leave them out of frozen, or "
                    "their layers out of lora's target_modules"
                )
        if self.compile_parts:
            for part in self.backbone.parts.values():
                if part is not self.backbone:  # around its parts there is tokenising, which does not compile
                    part.compile()
        head, head_kwargs = self.head_spec
        self.head = make_head(head, self.backbone.features_dim, self.action_space, **head_kwargs)  # type: ignore[arg-type]
        if (expert := self.backbone.take_action_expert()) is not None:
            self.head.use_expert(expert)
        self.state_normalizer = Normalizer(state_dim)
        if (normalization := self.backbone.normalization.get("state")) is not None:
            self.state_normalizer.use(normalization.shift, normalization.scale)
        critic_dim = self.backbone.features_dim
        if self.privileged:
            critic_dim = self.observation_space["privileged"].shape[0]  # type: ignore[index]
            self.privileged_normalizer = Normalizer(critic_dim)
        self.critic = nn.Sequential(*create_mlp(critic_dim, 1, self.critic_net_arch, nn.Tanh))
        self.optimizer = self._make_optimizer(lr_schedule(1))

    def _make_optimizer(self, learning_rate: float) -> th.optim.Optimizer:
        # One group a part, by name, so that PPOSelfBC can give each its own learning rate
        groups = [
            {"name": name, "params": [p for p in module.parameters() if p.requires_grad]}
            for name, module in (("backbone", self.backbone), ("head", self.head), ("critic", self.critic))
        ]
        groups = [group for group in groups if group["params"]]
        return self.optimizer_class(groups, lr=learning_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        # SB3 insists on one; the backbone takes its place, and takes the raw observation
        return _NoFeaturesExtractor(self.observation_space, features_dim=1)

    @property
    def log_std(self) -> th.Tensor:  # type: ignore[override]  # SB3's is an attribute, this belongs to the head, if it has one
        """Logarithm of the standard deviation (SB3 logs ``train/std`` from it)."""
        return self.head.log_std  # type: ignore[return-value]

    @property
    def is_fine_tuned(self) -> bool:
        """Whether :func:`~sb3_vla.fine_tune` has trained this policy, or the one that its weights are from."""
        return self.state_normalizer.is_fitted

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
        :return: ``policy_kwargs`` that rebuild backbone and head without network and without the checkpoint's files, unless
            LoRA leaves the pretrained weights to these
        """
        backbone, backbone_kwargs = self.backbone_spec
        lora = self.lora
        if lora is None or lora.get("save_base"):
            backbone, backbone_kwargs = type(self.backbone), self.backbone.constructor_kwargs()
            # Of weights that are loaded after it is built
            lora = None if lora is None else {**lora, "base_fingerprint": None}
        else:  # which are looked for again, maybe from another folder
            backbone, backbone_kwargs = _absolute(backbone), {k: _absolute(value) for k, value in backbone_kwargs.items()}
        return {
            "backbone": backbone,
            "backbone_kwargs": backbone_kwargs,
            "lora": lora,
            "head": type(self.head),
            "head_kwargs": self.head.constructor_kwargs(),
        }

    def merge_lora(self) -> None:
        """
        Add what the adapters learned to the pretrained weights, and take them away, for use: acting is as fast as without, and
        what is saved is whole. A model that is saved then and loaded can learn on, all of it, with an optimizer that begins
        anew.

        :raises ValueError: If the policy was made without ``lora``
        """
        if self.lora is None:
            raise ValueError("this policy was made without lora=dict(...): it has no adapters to merge")
        merge(self.backbone)
        self.lora = None
        self.backbone.requires_grad_(True)
        self.backbone.freeze(self.frozen)
        self.optimizer = self._make_optimizer(self.optimizer.param_groups[0]["lr"])

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            frozen=self.frozen,
            critic_net_arch=self.critic_net_arch,
            autocast=self.autocast,
            compile=self.compile_parts,
            normalized_keys=self.normalized_keys,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            **self.portable_kwargs(),
        )

    @property
    def _normalizers(self) -> dict[str, Normalizer]:
        privileged = {"privileged": self.privileged_normalizer} if self.privileged else {}
        return {"state": self.state_normalizer, **privileged}

    @property
    def unfitted_keys(self) -> list[str]:
        """Observations that the policy standardises itself, and of which it has not seen a data set yet."""
        return [key for key, normalizer in self._normalizers.items() if not normalizer.is_fitted]

    def fit_normalizers(self, observations: Mapping[str, th.Tensor]) -> None:
        """
        Standardise observations with the statistics of a data set.

        :param observations: ``(samples, ...)`` by key; what it does not standardise does not matter
        """
        for key, normalizer in self._normalizers.items():
            if key in observations:
                normalizer.fit(observations[key])

    @property
    def stored_keys(self) -> list[str]:
        """Observations that are read beside what :meth:`precompute` returns."""
        replaced: list[str] = []
        if _is_frozen(self.backbone):
            replaced = self.actor_keys
        elif self._images_are_frozen:
            replaced = self.image_keys
        return [key for key in self.read_keys if key not in replaced]

    def precompute(self, obs: PyTorchObs) -> EncodedObservations:
        """
        Run the frozen parts of the backbone.

        With what they return, :meth:`encode` need not read what they read: whoever sees an observation several times, in
        epochs over a rollout or as a demonstration, need not compute it again as long as :meth:`frozen_version` stays.

        :param obs: Raw observation, each key ``(batch, ...)``
        :return: Features if the whole backbone is frozen, image tokens if only the images' encoder is, nothing if that is
            trained
        """
        with th.no_grad():
            if _is_frozen(self.backbone):
                return EncodedObservations(None, *self.encode(obs))
            if self._images_are_frozen:
                return EncodedObservations(self._encode_images(obs))
        return NOT_ENCODED

    def frozen_version(self) -> tuple[int, ...]:
        """
        :return: Something that differs after the frozen weights were replaced (``load_state_dict``)
        """
        learning = {id(tensor) for layer in self.learning_layers for tensor in (*layer.parameters(), *layer.buffers())}
        every = (*self.parameters(), *self.buffers())
        tensors = [tensor for tensor in every if not tensor.requires_grad and id(tensor) not in learning]
        return tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))

    @property
    def learning_layers(self) -> list[nn.Module]:
        """Layers of the backbone in which something is trained."""
        return [layer for layer in self.backbone.layers if not _is_frozen(layer)]

    @property
    def _images_are_frozen(self) -> bool:
        return all(_is_frozen(module) for module in self.backbone.image_encoder)

    def _encode_images(self, obs: PyTorchObs) -> th.Tensor:
        images = {}
        for key in self.image_keys:
            pixels = _bytes(obs, key)
            # (batch, n_frames * 3, height, width)
            for age, frame in zip(reversed(range(self.n_frames)), pixels.chunk(self.n_frames, dim=1), strict=True):
                images[f"{key}[-{age}]" if age else key] = frame
        with self._autocast():
            return self.backbone.encode_images(images)

    def _autocast(self) -> th.autocast:
        enabled = self.autocast == "bfloat16" or (self.autocast == "auto" and _has_bfloat16(self.device))
        return th.autocast(self.device.type, dtype=th.bfloat16, enabled=enabled)

    def encode(
        self, obs: PyTorchObs, encoded: EncodedObservations = NOT_ENCODED, needed: th.Tensor | None = None
    ) -> BackboneFeatures:
        """
        Run the backbone.

        :param obs: Observation, each key ``(batch, ...)``; of what ``encoded`` stands for nothing is read
        :param encoded: What :meth:`precompute` made of it
        :param needed: ``(batch,)`` bool: for which it has to run, by default all; zeros are the features of the others
        :return: Features for both heads, float32
        """
        if encoded.features is not None:
            return encoded.features
        if needed is not None:
            return self._encode_needed(obs, encoded, needed)
        image_tokens = self._encode_images(obs) if encoded.image_tokens is None else encoded.image_tokens
        instructions = _bytes(obs, "instruction").cpu().numpy()[:, -self.instruction_bytes :]
        prompts = [_decode_cached(row.tobytes()) for row in instructions]
        with self._autocast():
            features = self.backbone(image_tokens, prompts, self.state_normalizer(obs["state"]))  # type: ignore[index]
        if not self.head.reads_prefix:
            return BackboneFeatures(features.action.float(), features.value.float())
        if features.prefix is None:
            raise ValueError(
                f"{type(self.head).__name__} reads the backbone's prefix, but {type(self.backbone).__name__} has none: let "
                "its forward return BackboneFeatures(action, value, prefix)"
            )
        return BackboneFeatures(features.action.float(), features.value.float(), features.prefix.float())

    def _encode_needed(self, obs: PyTorchObs, encoded: EncodedObservations, needed: th.Tensor) -> BackboneFeatures:
        rows = needed.nonzero().flatten()
        if len(rows) == 0:  # ranks that share out layers have to call them all the same
            rows = rows.new_zeros(1)
        read = {key: value[rows.to(value.device)] for key, value in obs.items()}  # type: ignore[union-attr]
        features = self.encode(read, encoded.map(lambda tensor: tensor[rows]))

        def among_zeros(part: th.Tensor) -> th.Tensor:
            return part.new_zeros(len(needed), *part.shape[1:]).index_copy(0, rows, part)

        prefix = None if features.prefix is None else among_zeros(features.prefix)
        return BackboneFeatures(among_zeros(features.action), among_zeros(features.value), prefix)

    def encode_together(self, *batches: PolicyInput) -> tuple[PolicyInput, ...]:
        """
        Run the backbone once for several batches of observations.

        :param batches: Observations, raw or with what :meth:`precompute` made
        :return: For each batch its privileged observations and, with one graph for all, its features
        """
        known = [
            batch if batch.encoded.tensors else batch._replace(encoded=self.precompute(batch.observations))
            for batch in batches
        ]
        sizes = [batch.n_samples for batch in known]
        features = self.encode(*PolicyInput.join(known))
        parts = zip(*(tensor.split(sizes) if tensor is not None else [None] * len(sizes) for tensor in features), strict=True)
        return tuple(
            PolicyInput({"privileged": obs["privileged"]} if self.privileged else {}, EncodedObservations(None, *part))  # type: ignore[index]
            for (obs, *_), part in zip(batches, parts, strict=True)
        )

    def imitation_loss(
        self, features: BackboneFeatures, actions: th.Tensor, chunk_lengths: th.Tensor, kind: str = "auto"
    ) -> th.Tensor:
        """
        :param features: What :meth:`encode` made of the observations
        :param actions: Demonstrated chunks before clipping, ``(batch, h, d)``
        :param chunk_lengths: ``(batch,)`` primitive steps that count
        :param kind: One of the imitation losses of the head, ``"auto"`` for its own choice
        :return: Scalar: mean over the steps that count
        """
        return self.head.imitation_loss(features, actions, executed_mask(chunk_lengths, actions.shape[1]), kind)

    def values(self, obs: PyTorchObs, features: BackboneFeatures) -> th.Tensor:
        """
        :param obs: Observation, of which the privileged part is read where there is one
        :param features: What :meth:`encode` made of it, read where there is none
        :return: Values ``(batch, 1)``
        """
        return self.predict_values(obs) if self.privileged else self.critic(features.value)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        :param obs: Observation, each key ``(batch, ...)``
        :param deterministic: Whether to return the mode instead of a sample
        :return: Chunks ``(batch, h, d)`` before clipping, values ``(batch, 1)``, log-probabilities ``(batch,)``
        """
        features = self.encode(obs)
        distribution = self.head(features)
        sample = distribution.draw(deterministic)
        return sample.actions, self.values(obs, features), distribution.drawn_log_prob(sample).sum(dim=1)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: Observation, each key ``(batch, ...)``
        :param actions: Chunks, ``(batch, h * d)`` or ``(batch, h, d)``
        :return: Values ``(batch, 1)``, log-probabilities ``(batch,)`` and entropies ``(batch,)``
        :raises ValueError: If the head's likelihoods need more than the actions
        """
        if self.head.needs_extras:
            raise ValueError(
                f"{type(self.head).__name__} with {self.head.constructor_kwargs()} needs what its chunks were drawn with, "
                "which SB3's own algorithms don't keep: train it with PPOSelfBC"
            )
        features = self.encode(obs)
        distribution = self.head(features)
        return self.values(obs, features), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> ChunkDistribution:  # type: ignore[override]
        """
        :param obs: Observation, each key ``(batch, ...)``
        :return: Distribution over chunks
        """
        return self.head(self.encode(obs))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observation, each key ``(batch, ...)``
        :return: Values ``(batch, 1)``
        """
        if self.privileged:
            return self.critic(self.privileged_normalizer(obs["privileged"]))  # type: ignore[index]
        return self.critic(self.encode(obs).value)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act. The arguments and the result are those of SB3's policies.

        :param observation: Observation, or a batch of them, without ``privileged`` and whatever else the actor does not read
        :param state: Not used, as the policy has no memory
        :param episode_start: Not used
        :param deterministic: Whether to take the mode instead of a sample
        :return: Chunk, or a batch of them, clipped to the bounds, and ``state``
        :raises ValueError: If an observation is missing, or a picture or a prompt is not made of bytes
        :raises FloatingPointError: If the observation, or the action because of the weights, is not finite
        """
        seen = checked_observation(observation, self.actor_keys)
        check_seen(seen)
        return super().predict(seen, state, episode_start, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions = super()._predict(observation, deterministic)
        check_actions(actions, self)
        return actions

    def save(self, path: str) -> None:
        """
        :param path: Where to write the policy, as tensors and JSON, for :meth:`load`
        :raises FloatingPointError: If a weight is not finite: a file of that name stays as it is
        """
        check_weights(self.state_dict(), "it is not saved")
        arguments = self._get_constructor_parameters()
        del arguments["lr_schedule"]  # which only a training has
        content = {
            "format": _FORMAT,
            "arguments": arguments,
            "weights": self.state_dict(),
            "noise_scale": self.head.noise_scale,
        }
        save_plain(path, content)

    @classmethod
    def load(
        cls, path: str, device: th.device | str = "auto", trust_pickle: bool = False, backbone: str | None = None
    ) -> "VLAPolicy":
        """
        :param path: What :meth:`save` wrote
        :param device: Where the policy goes
        :param trust_pickle: Whether to load a file that SB3 or an earlier sb3-vla saved, too, which can run anything
        :param backbone: Where the checkpoint is that adapters were saved without, if not where it was
        :return: The policy; nothing that the file says is run
        :raises ValueError: If the file is truncated, damaged or something else, pickled and not trusted, or names a class that
            is not trusted (see :func:`sb3_vla.trust`), or PyTorch can't compute on the device; or if ``backbone`` is given to
            a policy that was saved whole, or missing, or not the one that adapters were trained beside
        """
        check_device(device)
        if zipfile.is_zipfile(path):  # as torch.save writes it
            if not trust_pickle:
                raise ValueError(
                    f"{os.fspath(path)!r} is a pickled file, which can run anything when it is read: only if you trust who "
                    "made it, give trust_pickle=True, and save the policy again"
                )
            return super().load(path, device)
        content = load_plain(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)!r} is no policy that VLAPolicy.save wrote")
        arguments = content["arguments"]
        if backbone is not None:
            if not needs_checkpoint(arguments):
                raise ValueError(f"{os.fspath(path)!r} holds a whole policy, which needs no checkpoint: leave out backbone")
            arguments["backbone"] = backbone
        check_checkpoint(arguments)
        policy = cls(**arguments, lr_schedule=FloatSchedule(0.0))
        policy.load_state_dict(content["weights"])
        if content.get("noise_scale") is not None:
            policy.head.noise_scale = content["noise_scale"]
        return policy.to(get_device(device))


class _NoFeaturesExtractor(BaseFeaturesExtractor):
    """Stands where SB3 wants a features extractor."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        raise RuntimeError("VLAPolicy has no features extractor: use VLAPolicy.encode")


def _bytes(obs: PyTorchObs, key: str) -> th.Tensor:
    values: th.Tensor = obs[key]  # type: ignore[index]
    if values.dtype != th.uint8:
        raise ValueError(
            f"VLAPolicy needs {key!r} as uint8, got {values.dtype}: if VecNormalize stands around the environment, name the "
            "keys that it may normalise, e.g. VecNormalize(env, norm_obs_keys=['state'])"
        )
    return values


def _absolute(value: Any) -> Any:
    """
    :param value: An argument
    :return: The whole path, if it is a folder
    """
    return os.fspath(Path(value).resolve()) if isinstance(value, str | Path) and Path(value).is_dir() else value


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

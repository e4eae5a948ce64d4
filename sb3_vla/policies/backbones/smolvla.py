"""
SmolVLA (Shukor et al. 2025, arXiv 2506.01844) in LeRobot's format: the first layers of a SmolVLM, and an expert that draws
the actions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from .base import ActionExpert, BackboneFeatures, Normalization
from .expert_backbone import ExpertBackbone
from .key_value_prefix import KeyValuePrefix
from .lerobot_checkpoint import LeRobotCheckpoint
from .pretrained import load_pretrained
from .time_embedding import embed_time
from .tokenizer_files import save_tokenizer

# LeRobot turns keys and queries by this one whatever the vision-language model's configuration says
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# What the checkpoint can be asked to do otherwise, and is not done here
_SETTINGS = {"n_obs_steps": 1, "attention_mode": "cross_attn", "add_image_special_tokens": False, "adapt_to_pi_aloha": False}
# Where LeRobot keeps the weights of the vision-language model and the expert's layers; what is before and after these, and
# the state's projection, is beside
_VLM, _EXPERT = "model.vlm_with_expert.vlm.", "model.vlm_with_expert.lm_expert."
# What is read of LeRobot's configuration
_READ = (
    "chunk_size",
    "expert_width_multiplier",
    "max_action_dim",
    "max_period",
    "max_state_dim",
    "min_period",
    "num_expert_layers",
    "num_vlm_layers",
    "resize_imgs_with_padding",
    "self_attn_every_n_layers",
    "tokenizer_max_length",
    "vlm_model_name",
)


class SmolVLALayer(LlamaDecoderLayer):
    """
    A layer of the expert, Llama's but for what it attends to: to the text model's keys and values in this layer, and to the
    actions before, or, crossing, to the former alone, through projections of its own.

    :param config: Of the expert
    :param index: Which layer it is
    :param prefix_width: Of a token's keys, all heads together, in the text model; 0 for a layer that does not cross
    """

    def __init__(self, config: LlamaConfig, index: int, prefix_width: int) -> None:
        super().__init__(config, index)
        self.crosses = prefix_width > 0
        if self.crosses:
            attention, out = self.self_attn, self.self_attn.k_proj.out_features
            attention.k_proj, attention.v_proj = (nn.Linear(prefix_width, out, bias=config.attention_bias) for _ in range(2))

    def forward(  # type: ignore[override]  # what it attends to comes from elsewhere
        self,
        x: th.Tensor,
        prefix: tuple[th.Tensor, th.Tensor],
        rotary: tuple[th.Tensor, th.Tensor],
        mask: th.Tensor,
    ) -> th.Tensor:
        """
        :param x: Hidden states, ``(batch, actions, width)``
        :param prefix: The text model's keys and values, ``(batch, heads, tokens, head_dim)`` each
        :param rotary: Cosines and sines of the actions' positions, ``(batch, actions, head_dim)`` each
        :param mask: Whom each action attends to, ``(batch, 1, actions, tokens)`` bool, of a layer that does not cross
            ``(batch, 1, actions, tokens + actions)``
        :return: Hidden states
        """
        attention, normed = self.self_attn, self.input_layernorm(x)
        queries, keys = self._heads(attention.q_proj(normed)), prefix[0]
        if self.crosses:
            queries, _ = apply_rotary_pos_emb(queries, queries, *rotary)
            # (batch, tokens, heads * head_dim)
            flat_keys, flat_values = (tensor.transpose(1, 2).flatten(2) for tensor in prefix)
            keys, values = self._heads(attention.k_proj(flat_keys)), self._heads(attention.v_proj(flat_values))
        else:
            queries, own = apply_rotary_pos_emb(queries, self._heads(attention.k_proj(normed)), *rotary)
            keys = th.cat([keys, own], dim=2)
            values = th.cat([prefix[1], self._heads(attention.v_proj(normed))], dim=2)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
        hidden: th.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return hidden

    def _heads(self, projected: th.Tensor) -> th.Tensor:
        """
        :param projected: ``(batch, length, heads * head_dim)``
        :return: ``(batch, heads, length, head_dim)``
        """
        return projected.unflatten(2, (-1, self.self_attn.head_dim)).transpose(1, 2)


class SmolVLAExpert(ActionExpert):
    """
    SmolVLA's action expert: a narrower transformer beside the text model, with as many layers. In every second one (or as the
    checkpoint says) an action attends to the text model's keys and values and to the actions before it, in the others to the
    former alone.

    :param text_config: Of the text model
    :param smolvla: LeRobot's configuration
    :param normalization: Of its actions
    """

    reads_prefix = True

    def __init__(self, text_config: LlamaConfig, smolvla: Mapping[str, Any], normalization: Normalization | None) -> None:
        super().__init__((smolvla["chunk_size"], smolvla["max_action_dim"]), normalization)
        n_heads, head_dim = text_config.num_key_value_heads, text_config.head_dim
        assert n_heads is not None and head_dim is not None
        self._shape = (text_config.num_hidden_layers, n_heads, 0)
        self._periods = (smolvla["min_period"], smolvla["max_period"])
        self.width = width = int(text_config.hidden_size * smolvla["expert_width_multiplier"])
        config = LlamaConfig(
            **{
                **text_config.to_dict(),
                "hidden_size": width,
                # Eight thirds of the width, rounded up to a multiple of 256
                "intermediate_size": -(-int(4 * int(2 * width / 3)) // 256) * 256,
            }
        )
        every = smolvla["self_attn_every_n_layers"]
        self.layers = nn.ModuleList(
            SmolVLALayer(config, index, n_heads * head_dim if every < 1 or index % every else 0)
            for index in range(text_config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config)
        action_dim = self.chunk_shape[1]
        self.action_in_proj, self.action_out_proj = nn.Linear(action_dim, width), nn.Linear(width, action_dim)
        self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * width, width), nn.Linear(width, width)

    def forward(self, features: BackboneFeatures, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        assert features.prefix is not None
        prefix = KeyValuePrefix.unpack(features.prefix, *self._shape)
        length = x.shape[1]
        time = embed_time(t, self.width, *self._periods).to(x.dtype).unsqueeze(1).expand(-1, length, -1)
        hidden = self.action_time_mlp_in(th.cat([self.action_in_proj(x), time], dim=2))
        hidden = self.action_time_mlp_out(F.silu(hidden))
        # (batch, 1, actions, tokens), then (batch, 1, actions, tokens + actions)
        sees_prefix = prefix.mask.bool()[:, None, None].expand(-1, 1, length, -1)
        order = th.ones(length, length, dtype=th.bool, device=x.device).tril()
        sees_all = th.cat([sees_prefix, order.expand(len(x), 1, -1, -1)], dim=3)
        # Positions count from the prefix's end, and from 0 where nothing but the prefix is seen
        positions = th.arange(length, device=x.device).unsqueeze(0)
        crossing, joint = self.rotary(hidden, positions), self.rotary(hidden, positions + prefix.mask.sum(dim=1, keepdim=True))
        for layer, layer_prefix in zip(self.layers, prefix.layers, strict=True):
            if layer.crosses:
                hidden = layer(hidden, layer_prefix, crossing, sees_prefix)
            else:
                hidden = layer(hidden, layer_prefix, joint, sees_all)
        velocity: th.Tensor = self.action_out_proj(self.norm(hidden))
        return velocity


class SmolVLABackbone(ExpertBackbone):
    """
    The vision-language half of a SmolVLA. Its other half is :class:`SmolVLAExpert`, which the flow head takes over:
    ``policy_kwargs=dict(backbone="lerobot/smolvla_base", head="flow")``. The checkpoint's cameras are the observation's, in
    this one's order. Images keep their proportions: what is missing to a square is black, on top or on the left.

    :param state_dim: Length of the state vector, at most the model's
    :param config: Of the vision-language model, with as many layers as SmolVLA takes, as a plain dictionary
    :param smolvla: LeRobot's configuration of the checkpoint
    :param kwargs: See :class:`ExpertBackbone`
    :raises ValueError: If the state is longer than SmolVLA's, or not as long as its statistics, or the checkpoint has settings
        that are not supported
    """

    def __init__(
        self,
        state_dim: int,
        config: dict[str, Any],
        *,
        smolvla: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        _check_settings(smolvla)
        if state_dim > smolvla["max_state_dim"]:
            raise ValueError(
                f"SmolVLA's state has at most {smolvla['max_state_dim']} numbers, the environment's has {state_dim}"
            )
        super().__init__(state_dim, config, **kwargs)
        self.smolvla = smolvla
        self.state_proj = nn.Linear(smolvla["max_state_dim"], self.features_dim)
        self._keep_expert(SmolVLAExpert(self.model.config.text_config, smolvla, self.normalization.get("action")))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # an image is normalised in one way only
        cls,
        name_or_path: str,
        state_dim: int,
        vlm: str | None = None,
        use_statistics: bool = True,
        image_size: int | None = None,
    ) -> "SmolVLABackbone":
        """
        Load a checkpoint.

        :param name_or_path: Name on the Hugging Face Hub or local folder
        :param state_dim: Length of the state vector
        :param vlm: Name or folder of the vision-language model, by default that which the checkpoint names; only its
            configuration and its tokenizer are read
        :param use_statistics: Whether states and actions are normalised by the checkpoint's statistics, if it has some.
            Otherwise states are by those of the demonstrations, and actions by the bounds of the action space
        :param image_size: Height and width in pixels to which images are resized, by default the checkpoint's
        :return: The backbone with the checkpoint's weights, in float32
        :raises ValueError: If a file is missing or broken, or does not fit the others
        """
        backbone = cls(state_dim, **cls.describe(name_or_path, vlm, use_statistics, image_size))
        backbone._load(LeRobotCheckpoint(name_or_path))
        return backbone

    @classmethod
    def describe(  # type: ignore[override]
        cls, name_or_path: str, vlm: str | None = None, use_statistics: bool = True, image_size: int | None = None
    ) -> dict[str, Any]:
        """
        :param name_or_path: See :meth:`from_pretrained`, and so for those below; the weights need not be there
        :param vlm: The vision-language model
        :param use_statistics: Whether states and actions are normalised by the checkpoint's statistics
        :param image_size: Height and width in pixels to which images are resized
        :return: Arguments of the constructor that make its architecture
        :raises ValueError: If a file is missing or broken, or does not fit the others
        """
        checkpoint = LeRobotCheckpoint(name_or_path)
        smolvla = checkpoint.config()
        if smolvla.get("type") != "smolvla":
            raise ValueError(
                f"config.json of {name_or_path!r} is of LeRobot's type {smolvla.get('type')!r}; of these only 'smolvla' is "
                "known: take another checkpoint"
            )
        _check_settings(smolvla)
        vlm = smolvla["vlm_model_name"] if vlm is None else str(vlm)
        try:
            config = load_pretrained(AutoConfig, vlm)
            tokenizer = load_pretrained(AutoTokenizer, vlm)
        except ValueError as error:
            raise ValueError(
                f"the SmolVLA {name_or_path!r} needs config.json and the tokenizer of {vlm!r}, which are not at hand: pass "
                f"backbone_kwargs=dict(vlm=FOLDER), a folder with both ({error.__cause__})"
            ) from error
        if config.model_type != "smolvlm":
            raise ValueError(
                f"config.json of {vlm!r}, the vision-language model of the SmolVLA {name_or_path!r}, is of model_type "
                f"{config.model_type!r}, not 'smolvlm': name the right one by backbone_kwargs=dict(vlm=FOLDER)"
            )
        config.text_config.rope_parameters = dict(_ROPE)
        if 0 < smolvla["num_vlm_layers"]:
            config.text_config.num_hidden_layers = smolvla["num_vlm_layers"]
        return {
            "config": config.to_dict(),
            "smolvla": smolvla,
            "normalization": _statistics(checkpoint) if use_statistics else {},
            "tokenizer_files": save_tokenizer(tokenizer),
            "image_mean": (0.5,) * 3,
            "image_std": (0.5,) * 3,
            "image_size": smolvla["resize_imgs_with_padding"][0] if image_size is None else image_size,
        }

    def _load(self, checkpoint: LeRobotCheckpoint) -> None:
        weights = checkpoint.weights()
        lm_head = weights.pop(f"{_VLM}lm_head.weight", None)
        if lm_head is not None:  # of no use, but where it is the embedding, too, safetensors holds the two once
            weights.setdefault(f"{_VLM}model.text_model.embed_tokens.weight", lm_head)
        ours: dict[str, th.Tensor] = {}
        experts: dict[str, th.Tensor] = {}
        for name, tensor in weights.items():
            is_ours = name.startswith((_VLM, "model.state_proj."))
            prefix = next(prefix for prefix in (_VLM, _EXPERT, "model.", "") if name.startswith(prefix))
            (ours if is_ours else experts)[name.removeprefix(prefix)] = tensor
        try:
            self.load_state_dict(ours)
            self._experts[0].load_state_dict(experts)
        except RuntimeError as error:
            raise ValueError(
                f"model.safetensors of {checkpoint.name_or_path!r} has not the weights that its config.json and that of its "
                "vision-language model describe: fetch the checkpoint again, or name the right model by "
                f"backbone_kwargs=dict(vlm=FOLDER) ({' '.join(str(error).split())})"
            ) from error

    def constructor_kwargs(self) -> dict[str, Any]:
        return {**super().constructor_kwargs(), "smolvla": self.smolvla}

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> BackboneFeatures:
        """
        :raises ValueError: If an instruction is too long
        """
        n_text = image_tokens.shape[1] + self.smolvla["tokenizer_max_length"]
        sequence = self._sequence(prompts, image_tokens.shape[1], 1, state.device, n_text)
        embeddings = self.model.get_input_embeddings()(sequence.ids)
        embeddings = embeddings.masked_scatter(sequence.is_image.unsqueeze(-1), image_tokens.to(embeddings.dtype))
        state_token = self.state_proj(F.pad(state, (0, self.smolvla["max_state_dim"] - state.shape[1])))
        embeddings = th.cat(
            [embeddings[:, :-1] * self.features_dim**0.5, state_token.unsqueeze(1).to(embeddings.dtype)], dim=1
        )
        # (batch, 1, tokens, tokens): images and text see each other, and the state, the last, sees all
        sees = sequence.mask.bool()[:, None, None].repeat(1, 1, sequence.mask.shape[1], 1)
        sees[:, :, :-1, -1] = False
        text_model: Any = self.model.text_model
        outputs = text_model(
            inputs_embeds=embeddings,
            attention_mask=sees,
            position_ids=self.family.positions(sequence),
            use_cache=True,
        )
        return self._read_out(outputs, sequence.mask, state.new_zeros(len(state), 0))

    def _resize(self, pixels: th.Tensor) -> th.Tensor:
        height, width = pixels.shape[-2:]
        ratio = max(height, width) / self.image_size
        size = (int(height / ratio), int(width / ratio))
        if size != (height, width):
            pixels = F.interpolate(pixels, size=size, mode="bilinear")
        return F.pad(pixels, (self.image_size - size[1], 0, self.image_size - size[0], 0))

    def _tokenize_uncached(self, prompt: str, *layout: int) -> tuple[int, ...]:
        n_images, tokens_per_image = layout
        text = prompt if prompt.endswith("\n") else f"{prompt}\n"
        images = (self.model.config.image_token_id,) * (n_images * tokens_per_image)
        return (*images, *self.tokenizer(text)["input_ids"])


def _check_settings(smolvla: Mapping[str, Any]) -> None:
    if missing := [name for name in _READ if name not in smolvla]:
        raise ValueError(f"this SmolVLA's config.json lacks {missing}: save it again with LeRobot 0.4 or later")
    other = {name: smolvla[name] for name, value in _SETTINGS.items() if smolvla.get(name, value) != value}
    if 0 < smolvla["num_expert_layers"] != smolvla["num_vlm_layers"]:
        other["num_expert_layers"] = smolvla["num_expert_layers"]
    size = smolvla["resize_imgs_with_padding"]
    if size is None or size[0] != size[1]:
        other["resize_imgs_with_padding"] = size
    if other:
        raise ValueError(
            f"this SmolVLA's config.json says {other}, which is not supported; needed are {_SETTINGS}, as many layers in the "
            "expert as in the text model, and images resized to a square: take another checkpoint"
        )


def _statistics(checkpoint: LeRobotCheckpoint) -> dict[str, dict[str, Any]]:
    found = {
        "state": checkpoint.normalization("policy_preprocessor", "normalizer_processor", "observation.state", "STATE"),
        "action": checkpoint.normalization("policy_postprocessor", "unnormalizer_processor", "action", "ACTION"),
    }
    return {name: each._asdict() for name, each in found.items() if each is not None}

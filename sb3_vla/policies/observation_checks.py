"""What VLAPolicy expects of spaces, and of observations that come in by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

REQUIRED_KEYS = ("image", "instruction", "state")
COLOUR_CHANNELS = 3
_HOW_TO_ADD_KEYS = (
    "add pictures with sb3_vla_envs.CameraObservation, or where there is no MuJoCo with "
    "gymnasium.wrappers.AddRenderObservation(env, render_only=False, render_key='image'), the prompt with "
    "sb3_vla_envs.InstructionObservation, and name what the robot feels of itself 'state'"
)


def has_channels_first(space: spaces.Space) -> bool:
    """
    :param space: Space of an observation
    :return: Whether it is of pictures with channels first
    """
    return isinstance(space, spaces.Box) and is_image_space(space) and is_image_space_channels_first(space)


def is_image_key(key: str) -> bool:
    """
    :param key: Name of an observation
    :return: Whether it is a camera's picture
    """
    return key == "image" or key.startswith("image_")


def holds_bytes(key: str) -> bool:
    """
    :param key: Name of an observation
    :return: Whether it is a picture or a prompt: bytes, which must be neither normalised nor scaled
    """
    return is_image_key(key) or key == "instruction"


def as_bytes(key: str, values: Any) -> np.ndarray:
    """
    :param key: Name of a picture or a prompt
    :param values: Its values, as somebody has made them by hand
    :return: The same as uint8; other integers are converted
    :raises ValueError: If they are no integers in 0..255
    """
    array = np.asarray(values)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.integer) or (array.size and (array.min() < 0 or array.max() > 255)):
        how = (
            "sb3_vla_envs.encode_instruction(text, max_bytes)" if key == "instruction" else "(255 * image).astype(numpy.uint8)"
        )
        span = f" from {array.min()} to {array.max()}" if np.issubdtype(array.dtype, np.number) and array.size else ""
        raise ValueError(f"{key!r} must be bytes, integers in 0..255, got {array.dtype}{span}: make them by {how}")
    return array.astype(np.uint8)


def checked_observation(observation: Any, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """
    :param observation: An observation, or a batch of them
    :param keys: What the policy reads
    :return: What it reads, pictures and prompts as uint8
    :raises ValueError: If something is missing, or a picture or a prompt is not made of bytes
    """
    if not isinstance(observation, Mapping):
        raise ValueError(f"VLAPolicy needs a dictionary with the keys {list(keys)}, got {type(observation).__name__}")
    missing = [key for key in keys if key not in observation]
    if missing:
        raise ValueError(f"the observation lacks {missing}: VLAPolicy reads {list(keys)}, got {sorted(observation)}")
    return {key: as_bytes(key, observation[key]) if holds_bytes(key) else observation[key] for key in keys}


def count_frames(observation_space: spaces.Dict) -> int:
    """
    :param observation_space: Observation space of the policy
    :return: How many frames ``VecFrameStack`` has stacked, 1 without it
    :raises ValueError: If images don't have three channels each, or keys are not all stacked alike
    """
    channels = {key: space.shape[0] for key, space in observation_space.items() if is_image_key(key)}  # type: ignore[index]
    n_frames = {number // COLOUR_CHANNELS for number in channels.values()}
    n_bytes = observation_space["instruction"].shape[0]  # type: ignore[index]
    if any(number % COLOUR_CHANNELS for number in channels.values()) or len(n_frames) > 1 or n_bytes % min(n_frames):
        raise ValueError(
            f"VLAPolicy needs images of {COLOUR_CHANNELS} channels, or n times as many where VecFrameStack has stacked n of "
            f"every observation, but the images have {channels} channels and the instruction {n_bytes} bytes: make pictures "
            "RGB (a grey one by numpy.repeat(image, 3, axis=-1)), and stack frames with "
            "stable_baselines3.common.vec_env.VecFrameStack"
        )
    return n_frames.pop()


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, chunk_size: int | None) -> None:
    """
    :param observation_space: Observation space of the policy
    :param action_space: Action space of the policy
    :param chunk_size: The h that the user expects, or ``None``
    :raises ValueError: If a space is not of the contract
    """
    _check_actions(action_space, chunk_size)
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
        if is_image_key(key):
            _check_image(key, space, observation_space)
        elif key == "instruction":
            _check_instruction(space, observation_space)
        elif key in ("state", "privileged") and not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            how = "flatten it" if isinstance(space, spaces.Box) else "make it a vector of numbers"
            raise ValueError(
                f"VLAPolicy needs {key!r} as a Box of one dimension, got {space}: {how}, e.g. with "
                "gymnasium.wrappers.TransformObservation"
            )


def _check_image(key: str, space: spaces.Space, observation_space: spaces.Dict) -> None:
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
        if len(space.shape or ()) == 4:
            how = (
                "stack frames with stable_baselines3.common.vec_env.VecFrameStack, around the vectorised environment, which "
                "stacks channels"
            )
        else:
            how = (
                f"{_rename_hint(key, observation_space)}if the pictures are floats in [0, 1], give "
                f"(255 * image).astype(numpy.uint8); {_normalize_hint(observation_space)}"
            )
        raise ValueError(f"VLAPolicy needs {key!r} as a Box(0, 255, (height, width, 3), uint8), got {space}: {how}")
    if (space.low != 0).any() or (space.high != 255).any():
        raise ValueError(
            f"VLAPolicy needs {key!r} with the bounds 0 and 255, by which SB3 knows a picture, got {space}: declare it as "
            f"Box(0, 255, {space.shape}, numpy.uint8)"
        )
    if is_image_space(space) and not has_channels_first(space):
        raise ValueError(
            f"VLAPolicy needs images with channels first, but {key!r} is {space}: SB3's algorithms turn them, elsewhere "
            "wrap the environment in stable_baselines3.common.vec_env.VecTransposeImage"
        )


def _rename_hint(key: str, observation_space: spaces.Dict) -> str:
    """What to do with a key that may be called after pictures by chance."""
    if key == "image":
        return ""
    names = {name: name.removeprefix("image_") if name == key else name for name in observation_space.spaces}
    return (
        "keys named image_... are read as pictures; if this is none, give it another name, e.g. by "
        f"sb3_vla_envs.ObservationKeys(env, {names}); "
    )


def _check_instruction(space: spaces.Space, observation_space: spaces.Dict) -> None:
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 1):
        raise ValueError(
            f"VLAPolicy needs 'instruction' as a Box(0, 255, (length,), uint8), UTF-8 bytes padded with zeros, got {space}: "
            f"let sb3_vla_envs.InstructionObservation make it; {_normalize_hint(observation_space)}"
        )


def _check_actions(space: spaces.Space, chunk_size: int | None) -> None:
    if not (isinstance(space, spaces.Box) and len(space.shape) == 2):
        if not isinstance(space, spaces.Box):
            how = "it has continuous actions alone; for others there are SB3's own policies, such as MultiInputPolicy"
        elif len(space.shape) > 2:
            how = "make each action a vector, e.g. with gymnasium.wrappers.TransformAction"
        else:
            how = "wrap the environment in sb3_vla_envs.ChunkedActionWrapper(env, chunk_size)"
        raise ValueError(
            f"VLAPolicy outputs chunks, a Box of shape (chunk_size, action_dim), but the action space is {space}: {how}"
        )
    if (space.low >= space.high).any():
        raise ValueError(
            f"VLAPolicy scales actions by their bounds, but one of them can't move, low = high: {space}: leave it out"
        )
    check_bounded(space)
    if chunk_size is not None and chunk_size != space.shape[0]:
        raise ValueError(
            f"the policy's chunk_size is {chunk_size}, but the environment's chunks have {space.shape[0]} actions: "
            "make them equal (n_action_steps executes fewer actions than are predicted)"
        )


def check_bounded(space: spaces.Space) -> None:
    """
    :param space: Action space
    :raises ValueError: If it has no bounds, by which SB3 clips actions and VLAPolicy scales them
    """
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise ValueError(
            f"actions need bounds, by which they are clipped or scaled, but the action space is {space}: give it those of the "
            "actuators, in the environment's Box or with gymnasium.wrappers.RescaleAction"
        )


def _normalize_hint(observation_space: spaces.Dict) -> str:
    return f"where VecNormalize stands around the environment, write {normalize_call(observation_space)}"


def normalize_call(observation_space: spaces.Dict) -> str:
    """
    :param observation_space: Observation space of an environment
    :return: The call of ``VecNormalize`` that leaves pictures and prompts as they are
    """
    keys = [key for key, space in observation_space.items() if not holds_bytes(key) and isinstance(space, spaces.Box)]
    return f"VecNormalize(env, norm_obs_keys={keys})"

"""Instructions in natural language as observations."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike, NDArray

from ..argument_checks import check_count
from .shallow_copy import NoShallowCopy


def encode_instruction(instruction: str, max_bytes: int) -> NDArray[np.uint8]:
    """
    Write an instruction as UTF-8 bytes, padded with zeros.

    :param instruction: The text
    :param max_bytes: Length of the result
    :return: The bytes, shape ``(max_bytes,)``, uint8
    :raises TypeError: If ``max_bytes`` is no integer
    :raises ValueError: If ``max_bytes`` is not positive, or the text longer, or with a zero byte in it
    """
    check_count("max_bytes", max_bytes)
    raw = instruction.encode("utf-8")
    if len(raw) > max_bytes:
        raise ValueError(
            f"The instruction {instruction!r} has {len(raw)} bytes, but only {max_bytes} fit: shorten it or raise max_bytes "
            "(max_instruction_bytes in make_vla_env)"
        )
    if 0 in raw:
        raise ValueError(f"The instruction {instruction!r} holds a zero byte, which marks the end of the text: remove it")
    encoded = np.zeros(max_bytes, dtype=np.uint8)
    encoded[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    return encoded


def decode_instruction(encoded: ArrayLike) -> str:
    """
    Read an instruction back from its bytes.

    :param encoded: Zero-padded UTF-8, shape ``(max_bytes,)``; bytes that are no UTF-8 (a random sample of the space) become
        replacement characters
    :return: The text
    """
    raw = np.asarray(encoded, dtype=np.uint8).tobytes()
    return raw.split(b"\0", 1)[0].decode("utf-8", errors="replace")


class InstructionObservation(NoShallowCopy, gym.ObservationWrapper, RecordConstructorArgs):
    """
    Adds ``instruction`` to a dictionary observation: the current instruction as UTF-8 bytes, padded with zeros.

    Example:
        >>> from sb3_vla_envs import InstructionObservation, decode_instruction, find_suite
        >>> env = InstructionObservation(find_suite("window-open-v3").make_simulation("window-open-v3"))
        >>> obs, info = env.reset(seed=0)
        >>> decode_instruction(obs["instruction"])
        'open the window'

    :param env: The environment to wrap
    :param max_bytes: Length of the observation
    :param instruction: The text; by default what is observed as ``instruction`` where that is a ``Text``, else the
        ``instruction`` attribute of the environment, read at every step
    :raises TypeError: If the environment's observation is not a dictionary
    :raises ValueError: If there is no instruction, or one too long, among all that the environment has (``instructions``)
    """

    def __init__(self, env: gym.Env, max_bytes: int = 64, instruction: str | None = None) -> None:
        RecordConstructorArgs.__init__(self, max_bytes=max_bytes, instruction=instruction)
        gym.ObservationWrapper.__init__(self, env)
        if not isinstance(env.observation_space, spaces.Dict):
            raise TypeError(f"InstructionObservation adds to a Dict observation space, got {env.observation_space}")
        check_count("max_bytes", max_bytes)
        self._is_observed = isinstance(env.observation_space.spaces.get("instruction"), spaces.Text)
        is_told = env.has_wrapper_attr("instruction") or env.has_wrapper_attr("instructions")
        if instruction is None and not self._is_observed and not is_told:
            raise ValueError(
                "The environment has no attribute 'instruction': pass the text as instruction=..., or, where it is known at a "
                "reset only, let the attribute 'instructions' hold all that there may be"
            )
        self.max_bytes = max_bytes
        self._fixed = instruction
        box = spaces.Box(0, 255, (max_bytes,), np.uint8)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "instruction": box})
        self._encoded: dict[str, NDArray[np.uint8]] = {}
        for text in self._all_texts():  # now, not in the middle of a training run
            self._encode(text)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """
        Add the instruction.

        :param observation: The wrapped environment's observation
        :return: The same with ``instruction``, shape ``(max_bytes,)``, uint8
        :raises ValueError: If the instruction is too long
        """
        if self._fixed is not None:
            text = self._fixed
        else:
            text = observation["instruction"] if self._is_observed else self.env.get_wrapper_attr("instruction")
        return {**observation, "instruction": self._encode(text).copy()}

    def _all_texts(self) -> tuple[str, ...]:
        if self._fixed is not None:
            return (self._fixed,)
        if self._is_observed:
            return ()
        if self.env.has_wrapper_attr("instructions"):
            return tuple(self.env.get_wrapper_attr("instructions"))
        text = self.env.get_wrapper_attr("instruction")
        if not isinstance(text, str):
            raise ValueError(
                f"The environment's attribute 'instruction' is {text!r}: set it to a text in the constructor already, or let "
                "the attribute 'instructions' hold all that there may be"
            )
        return (text,)

    def _encode(self, text: str) -> NDArray[np.uint8]:
        if text not in self._encoded:
            self._encoded[text] = encode_instruction(text, self.max_bytes)
        return self._encoded[text]

"""Pictures that say what one sees: instruction, primitive steps, success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from .episode_progress import EpisodeProgress
from .shallow_copy import NoShallowCopy

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Color = tuple[int, int, int]

BACKGROUND: Color = (24, 24, 28)
TEXT: Color = (235, 235, 235)
SUCCESS: Color = (110, 220, 120)
FAILURE: Color = (255, 140, 105)
LINE_HEIGHT = 16  # pixels
MARGIN = 4  # pixels
_FONT_SIZE = 12  # pixels
_INSTRUCTION_LINES = 2


class EpisodeCaption(NoShallowCopy, gym.Wrapper, RecordConstructorArgs):
    """
    Puts a caption strip below the pictures of ``render()``: the instruction (where the environment has an attribute of that
    name), the primitive steps taken, whether they have succeeded, and how the episode before ended. The latter because
    vectorised environments reset an environment before anyone can draw the end of its episode.

    Chunks count as the steps that they executed (``info["chunk_length"]``), success is ``info["is_success"]``.

    Example:
        >>> from sb3_vla_envs import EpisodeCaption, make_vla_env
        >>> env = EpisodeCaption(make_vla_env("window-open-v3", render_mode="rgb_array"))
        >>> obs, info = env.reset(seed=0)
        >>> env.render().shape  # doctest: +SKIP
        (308, 240, 3)

    :param env: The environment, which renders as ``"rgb_array"``
    :raises ValueError: If it renders in another way
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"EpisodeCaption draws on single pictures, but the environment's render_mode is {env.render_mode!r}: "
                "make it with render_mode='rgb_array'"
            )
        self._has_instruction = env.has_wrapper_attr("instruction")
        self._before: tuple[str, Color] = ("", TEXT)
        self._progress = EpisodeProgress()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin an episode, and keep how the last one ended for the caption.

        :param seed: Of the wrapped environment
        :param options: Of the wrapped environment
        :return: Observation and info
        """
        if self._progress.steps:
            status, color = self._status(final=True)
            self._before = f"before: {status}", color
        self._progress = EpisodeProgress()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step, and count it.

        :param action: As the wrapped environment takes it
        :return: Observation, reward, terminated, truncated, info
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._progress.add(info)
        return obs, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """
        Draw the scene with its caption (below it, as the zoo writes into the top of its films).

        :return: RGB picture, uint8, always of one shape
        :raises ImportError: If Pillow is not installed
        """
        picture: Any = self.env.render()
        instruction = str(self.env.get_wrapper_attr("instruction")) if self._has_instruction else ""
        # Films need pictures of one size, whatever the length of the instruction
        n_lines = _INSTRUCTION_LINES if self._has_instruction else 0
        strip = draw_caption(picture.shape[1], instruction, [self._status(final=False), self._before], n_lines)
        return np.vstack([picture, np.asarray(strip)])

    def _status(self, final: bool) -> tuple[str, Color]:
        """
        :param final: Whether the episode has ended
        :return: What to say of it, and in which colour
        """
        progress = self._progress
        if final and progress.success is None:
            return f"{progress.steps} steps", TEXT
        return episode_status(progress.steps, progress.steps_to_success, final)


def episode_status(step: int, steps_to_success: int | None, final: bool) -> tuple[str, Color]:
    """
    :param step: Primitive steps taken
    :param steps_to_success: Primitive steps until success, ``None`` if there is none in the whole episode
    :param final: Whether the episode has ended
    :return: What to say of it, and in which colour
    """
    if steps_to_success is not None and step >= steps_to_success:
        return f"success after {steps_to_success} steps", SUCCESS
    if final:
        return f"no success in {step} steps", FAILURE
    return f"step {step}", TEXT


def draw_caption(
    width: int, instruction: str, status: Sequence[tuple[str, Color]], instruction_lines: int | None = None
) -> Image.Image:
    """
    Draw a strip with text, to be put above or below a picture.

    :param width: Pixels
    :param instruction: What was asked for, wrapped to at most two lines; "" for nothing
    :param status: Lines below it, with their colours
    :param instruction_lines: Lines kept for the instruction, by default as many as it takes
    :return: The strip, RGB
    """
    image_module, draw_module, font_module = pillow()
    font = font_module.load_default(_FONT_SIZE)
    lines = [(text, TEXT) for text in _wrap(instruction, font, width - 2 * MARGIN)]
    if instruction_lines is not None:
        lines += [("", TEXT)] * (instruction_lines - len(lines))
    lines += status
    strip: Image.Image = image_module.new("RGB", (width, len(lines) * LINE_HEIGHT + MARGIN), BACKGROUND)
    draw = draw_module.Draw(strip)
    for number, (text, color) in enumerate(lines):
        draw.text((MARGIN, number * LINE_HEIGHT + 1), text, fill=color, font=font)
    return strip


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """
    :param text: What to write
    :param font: Pillow's font
    :param width: Pixels
    :return: At most two lines that fit, the second cut off if need be; none without a text
    """
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _INSTRUCTION_LINES:
        lines = [lines[0], f"{lines[1]} ..."]
    return lines


def pillow() -> tuple[Any, Any, Any]:
    """
    :return: Pillow's modules ``Image``, ``ImageDraw``, ``ImageFont``
    :raises ImportError: If Pillow isn't installed
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError('captions and GIFs need Pillow: pip install "sb3-vla[cli]"') from error
    return Image, ImageDraw, ImageFont

"""Short GIFs of what a policy does, with a caption that says what one sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from sb3_vla_envs import decode_instruction, make_vla_env, resolve_tasks
from sb3_vla_envs.wrappers.episode_caption import (
    BACKGROUND,
    FAILURE,
    LINE_HEIGHT,
    MARGIN,
    SUCCESS,
    draw_caption,
    episode_status,
    pillow,
)

from .evaluation import check_model_fits, episode_seed, metaworld_env_kwargs

if TYPE_CHECKING:
    from PIL import Image

_N_COLORS = 128
_LAST_FRAME_MS = 1500


@dataclass(frozen=True)
class Recording:
    """
    One recorded episode.

    :param frames: pictures, each uint8 of shape (height, width, 3)
    :param steps: the primitive step after which each was taken; the first is 0, the last the end of the episode
    :param instruction: what the policy was told, "" if nothing
    :param steps_to_success: primitive steps until success, ``None`` if there was none
    """

    frames: list[NDArray[np.uint8]]
    steps: list[int]
    instruction: str
    steps_to_success: int | None


def record_episode(
    model: PolicyPredictor,
    env: gym.Env[Any, Any],
    options: dict[str, Any] | None = None,
    seed: int | None = None,
    deterministic: bool = True,
    stride: int = 2,
) -> Recording:
    """
    Run one episode and keep its pictures.

    :param model: an SB3 model or policy, or anything with their ``predict``
    :param env: environment with ``render_mode="rgb_array_list"``, whose ``render`` returns the pictures of all primitive
        steps since it was last asked
    :param options: of the environment's reset, for example ``{"task": "window-open-v3", "goal_index": 0}``
    :param seed: of the environment's reset
    :param deterministic: take the policy's mode instead of sampling
    :param stride: keep each ``stride``-th picture (and the last), at least 1
    :return: the recording
    :raises ValueError: if the environment renders in another way, or ``stride`` is below 1
    """
    if env.render_mode != "rgb_array_list":
        raise ValueError(
            f"The environment's render_mode is {env.render_mode!r}, but recording needs the pictures of all steps of a "
            "chunk: make it with render_mode='rgb_array_list'."
        )
    if stride < 1:
        raise ValueError(f"stride is {stride}, but must be at least 1, which keeps every picture.")
    observation, _ = env.reset(seed=seed, options=options)
    instruction = _instruction(observation)
    pictures = _PictureCollector(stride)
    pictures.add(env.render())
    state, start, done, steps_to_success = None, np.ones(1, dtype=bool), False, None
    while not done:
        action, state = model.predict(observation, state=state, episode_start=start, deterministic=deterministic)
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        start = np.array([done])
        pictures.add(env.render())  # after each chunk, so that the pictures that aren't kept are freed
        if steps_to_success is None and info.get("is_success", False):
            steps_to_success = int(info.get("steps_to_success", pictures.step))
    pictures.keep_last()
    return Recording(pictures.frames, pictures.steps, instruction, steps_to_success)


def record_metaworld_episode(
    model: BaseAlgorithm,
    task: str,
    goal_index: int = 0,
    split: str = "test",
    seed: int = 0,
    deterministic: bool = True,
    **env_kwargs: Any,
) -> Recording:
    """
    Record one of the episodes that :func:`~sb3_vla.evaluation.evaluation.evaluate_on_metaworld` runs with the same arguments.

    :param model: a model trained on :func:`sb3_vla_envs.make_vla_env`'s environments
    :param task: name of the task
    :param goal_index: number of the goal
    :param split: which goals: ``"test"`` or ``"train"``
    :param seed: seed of the evaluation
    :param deterministic: take the policy's mode instead of sampling
    :param env_kwargs: further arguments of ``make_vla_env`` (``cameras``, ``quality``...), as in training
    :return: the recording
    :raises ValueError: if the task is unknown, the goal is negative, or the model and the environment disagree on actions or
        observations
    """
    if goal_index < 0:
        raise ValueError(f"goal_index must be at least 0, got {goal_index}")
    # Goals just enough, since a shorter list is a prefix of a longer one
    env_kwargs = {"n_goals": goal_index + 1, **env_kwargs}
    env_kwargs = metaworld_env_kwargs(model, goal_split=split, render_mode="rgb_array_list", **env_kwargs)
    env = make_vla_env(task, **env_kwargs)
    try:
        check_model_fits(model, env)
        options = {"task": task, "goal_index": goal_index}
        return record_episode(model, env, options, episode_seed(seed, task, goal_index), deterministic)
    finally:
        env.close()


def record_tasks(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    folder: str | Path,
    prefix: str,
    goal_index: int = 0,
    split: str = "test",
    seed: int = 0,
    deterministic: bool = True,
    **env_kwargs: Any,
) -> list[Path]:
    """
    Write a GIF of each task, ``<folder>/<prefix>_<task>.gif``. The arguments that aren't listed are those of
    :func:`record_metaworld_episode`.

    :param tasks: task, benchmark (``"MT10"``), comma-separated names or a sequence of them
    :param folder: where to write; made if it isn't there
    :param prefix: what the file names begin with, for example ``"sft"``
    :return: the files, in the order of the tasks
    :raises FileExistsError: if one of them is there already
    """
    paths = gif_paths(tasks, folder, prefix)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for task, path in paths.items():
        recording = record_metaworld_episode(model, task, goal_index, split, seed, deterministic, **env_kwargs)
        save_gif(recording, path)
    return list(paths.values())


def gif_paths(tasks: str | Sequence[str], folder: str | Path, prefix: str) -> dict[str, Path]:
    """
    :param tasks: task, benchmark, comma-separated names or a sequence of them
    :param folder: where the GIFs will go
    :param prefix: what the file names begin with
    :return: the file of each task
    :raises FileExistsError: if one of them is there already
    """
    paths = {task: Path(folder) / f"{prefix}_{task}.gif" for task in resolve_tasks(tasks)}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing:
        raise FileExistsError(f"{', '.join(existing)} exist already: give another folder, or remove them")
    return paths


def save_gif(recording: Recording, path: str | Path, fps: int = 20, max_size: int = 240) -> None:
    """
    Write an episode as a GIF with a caption strip above the pictures: instruction, step, success.

    :param recording: the episode
    :param path: the file; its folder must exist
    :param fps: pictures a second, 1..50 (browsers slow down faster GIFs)
    :param max_size: pictures are scaled down to at most so many pixels on the longer side
    :raises ValueError: if ``fps`` or ``max_size`` is out of range
    """
    _check_gif_arguments(fps, max_size)
    n_frames = len(recording.frames)
    _write_gif([_captioned(recording, index, "", max_size) for index in range(n_frames)], path, fps)


def save_comparison_gif(
    before: Recording,
    after: Recording,
    labels: tuple[str, str],
    path: str | Path,
    fps: int = 20,
    max_size: int = 240,
) -> None:
    """
    Write two episodes side by side, at the same speed; the shorter one waits on its last picture.

    :param before: the left episode
    :param after: the right episode, with pictures as often as the left one
    :param labels: what to call them, for example ``("SFT", "post-trained")``
    :param path: the file; its folder must exist
    :param fps: pictures a second, 1..50
    :param max_size: each side is scaled down to at most so many pixels on the longer side
    :raises ValueError: if ``fps`` or ``max_size`` is out of range
    """
    _check_gif_arguments(fps, max_size)
    sides = [
        [_captioned(recording, index, label, max_size) for index in range(len(recording.frames))]
        for recording, label in zip((before, after), labels, strict=True)
    ]
    n_frames = max(map(len, sides))
    _write_gif([_side_by_side([side[min(index, len(side) - 1)] for side in sides]) for index in range(n_frames)], path, fps)


class _PictureCollector:
    """
    Keeps each ``stride``-th picture and the last.

    :param stride: at least 1
    """

    def __init__(self, stride: int) -> None:
        self.frames: list[NDArray[np.uint8]] = []
        self.steps: list[int] = []
        self.step = -1
        self._stride = stride
        self._last: NDArray[np.uint8] | None = None

    def add(self, pictures: Any) -> None:
        for picture in pictures:
            self.step += 1
            self._last = picture
            if self.step % self._stride == 0:
                self._keep(picture)

    def keep_last(self) -> None:
        if self._last is not None and self.steps[-1] != self.step:
            self._keep(self._last)

    def _keep(self, picture: NDArray[np.uint8]) -> None:
        self.frames.append(picture)
        self.steps.append(self.step)


def _instruction(observation: Any) -> str:
    if not isinstance(observation, dict) or "instruction" not in observation:
        return ""
    return decode_instruction(observation["instruction"])


def _check_gif_arguments(fps: int, max_size: int) -> None:
    if not 1 <= fps <= 50:
        raise ValueError(f"fps is {fps}, but must be 1 to 50: browsers show faster GIFs in slow motion.")
    if max_size < 16:
        raise ValueError(f"max_size is {max_size}, but must be at least 16 pixels.")


def _captioned(recording: Recording, index: int, label: str, max_size: int) -> "Image.Image":
    """
    :param recording: the episode
    :param index: number of the picture
    :param label: what the episode is called, "" for nothing
    :param max_size: longer side of the picture, pixels
    :return: the picture below its caption strip: up to two lines of instruction and one of what happened
    """
    image_module, _, _ = pillow()
    picture = image_module.fromarray(recording.frames[index])
    picture.thumbnail((max_size, max_size))
    final = index == len(recording.frames) - 1
    status, color = episode_status(recording.steps[index], recording.steps_to_success, final)
    strip = draw_caption(picture.width, recording.instruction, [(f"{label}: {status}" if label else status, color)])
    canvas: Image.Image = image_module.new("RGB", (picture.width, strip.height + picture.height))
    canvas.paste(strip, (0, 0))
    canvas.paste(picture, (0, strip.height))
    return canvas


def _side_by_side(pictures: Sequence["Image.Image"]) -> "Image.Image":
    image_module, _, _ = pillow()
    gap = MARGIN
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    canvas = image_module.new("RGB", (width, max(picture.height for picture in pictures)), BACKGROUND)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, canvas.height - picture.height))
        left += picture.width + gap
    return canvas


def _write_gif(pictures: Sequence["Image.Image"], path: str | Path, fps: int) -> None:
    """
    :param pictures: at least one, all of one size
    :param path: the file
    :param fps: pictures a second; GIF counts in hundredths of a second
    """
    image_module, _, _ = pillow()
    # One palette for all pictures, from the first, the middle and the last, and no dithering: what doesn't move then
    # stays the same from picture to picture, which is what keeps a GIF small.
    height = pictures[0].height
    sample = image_module.new("RGB", (pictures[0].width, 3 * height + LINE_HEIGHT), FAILURE)
    # Captions are too small for the palette to notice their colours by itself.
    sample.paste(SUCCESS, (0, 3 * height, pictures[0].width // 2, sample.height))
    for number, index in enumerate((0, len(pictures) // 2, len(pictures) - 1)):
        sample.paste(pictures[index], (0, number * height))
    palette = sample.quantize(_N_COLORS)
    frames = [picture.quantize(palette=palette, dither=image_module.Dither.NONE) for picture in pictures]
    durations = [round(100 / fps) * 10] * (len(frames) - 1) + [_LAST_FRAME_MS]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)

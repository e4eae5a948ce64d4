"""GIFs of recorded episodes, with a caption that says what one sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_vla_envs import Suite, resolve_tasks
from sb3_vla_envs.durable_files import replacing
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

from .films import Recording, record_task_episode

if TYPE_CHECKING:
    from PIL import Image

_N_COLORS = 128
_LAST_FRAME_MS = 1500


def record_tasks(
    model: BaseAlgorithm,
    tasks: str | Sequence[str],
    folder: str | Path,
    prefix: str,
    goal_index: int = 0,
    split: str = "test",
    seed: int = 0,
    deterministic: bool = True,
    suite: str | Suite | None = None,
    **settings: Any,
) -> list[Path]:
    """
    Write a GIF of each task, ``<folder>/<prefix>_<task>.gif``, or none after an error. The arguments that aren't listed are
    those of :func:`~sb3_vla.evaluation.films.record_task_episode`.

    :param tasks: Task, group of tasks, comma-separated names or a sequence of them
    :param folder: Where to write; made if it isn't there
    :param prefix: What the file names begin with, for example ``"sft"``
    :return: The files, in the order of the tasks
    :raises FileExistsError: If one of them is there already
    """
    paths = gif_paths(tasks, folder, prefix, suite)
    try:
        for task, path in paths.items():
            save_gif(record_task_episode(model, task, goal_index, split, seed, deterministic, suite, **settings), path)
    except BaseException:
        for path in paths.values():  # so that the same call can be made again
            path.unlink(missing_ok=True)
        raise
    return list(paths.values())


def gif_paths(
    tasks: str | Sequence[str], folder: str | Path, prefix: str, suite: str | Suite | None = None
) -> dict[str, Path]:
    """
    :param tasks: Task, group of tasks, comma-separated names or a sequence of them
    :param folder: Where the GIFs will go
    :param prefix: What the file names begin with
    :param suite: Suite of the tasks, by default the one that knows them
    :return: The file of each task
    :raises FileExistsError: If one of them is there already
    """
    paths = {task: gif_path(folder, prefix, task) for task in resolve_tasks(tasks, suite)}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing:
        raise FileExistsError(f"{', '.join(existing)} exist already: give another folder, or remove them")
    return paths


def gif_path(folder: str | Path, prefix: str, task: str) -> Path:
    """
    :param folder: Where the GIF will go
    :param prefix: What its name begins with
    :param task: What it shows
    :return: The file
    """
    return Path(folder) / f"{prefix}_{task.replace('/', '_')}.gif"


def save_gif(recording: Recording, path: str | Path, fps: int = 20, max_size: int = 240) -> None:
    """
    Write an episode as a GIF with a caption strip above the pictures: instruction, step, success.

    :param recording: The episode
    :param path: The file
    :param fps: Pictures a second, 1..50 (browsers slow down faster GIFs)
    :param max_size: Pictures are scaled down to at most so many pixels on the longer side
    :raises ValueError: If ``fps`` or ``max_size`` is out of range
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

    :param before: The left episode
    :param after: The right episode, with pictures as often as the left one
    :param labels: What to call them, for example ``("SFT", "post-trained")``
    :param path: The file
    :param fps: Pictures a second, 1..50
    :param max_size: Each side is scaled down to at most so many pixels on the longer side
    :raises ValueError: If ``fps`` or ``max_size`` is out of range
    """
    _check_gif_arguments(fps, max_size)
    sides = [
        [_captioned(recording, index, label, max_size) for index in range(len(recording.frames))]
        for recording, label in zip((before, after), labels, strict=True)
    ]
    n_frames = max(map(len, sides))
    _write_gif([_side_by_side([side[min(index, len(side) - 1)] for side in sides]) for index in range(n_frames)], path, fps)


def _check_gif_arguments(fps: int, max_size: int) -> None:
    if not 1 <= fps <= 50:
        raise ValueError(f"fps is {fps}, but must be 1 to 50: browsers show faster GIFs in slow motion.")
    if max_size < 16:
        raise ValueError(f"max_size is {max_size}, but must be at least 16 pixels.")


def _captioned(recording: Recording, index: int, label: str, max_size: int) -> "Image.Image":
    """
    :param recording: The episode
    :param index: Number of the picture
    :param label: What the episode is called, "" for nothing
    :param max_size: Longer side of the picture, pixels
    :return: The picture below its caption strip: up to two lines of instruction and one of what happened
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
    :param pictures: At least one, all of one size
    :param path: The file
    :param fps: Pictures a second; GIF counts in hundredths of a second
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
    with replacing(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)

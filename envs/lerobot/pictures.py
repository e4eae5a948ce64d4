"""Frames of videos and single pictures, decoded and encoded by PyAV (FFmpeg)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .libraries import import_library

# How far a frame may be from where it should be, in frames: LeRobot's lists of times add up rounding errors
_TOLERANCE = 0.25
# A keyframe every two frames, as in LeRobot's own videos, so that single frames are found fast; B-frames would shift the first
# one away from time zero. Colours at the full resolution: at half of it (yuv420p, LeRobot's default) a goal marker of one red
# pixel becomes green, and the file is no smaller.
_CODEC = "libx264"
PIXEL_FORMAT = "yuv444p"
_OPTIONS = {"crf": "18", "g": "2", "bf": "0"}


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """
    :param shape: Of an array
    :return: Whether it is that of an RGB picture with channels first, as policies see it, and not last
    """
    return len(shape) == 3 and shape[0] == 3 != shape[2]


class VideoWriter:
    """
    Encodes frames to a video, H.264 in an mp4 file.

    :param path: The file
    :param fps: Frames a second
    :param size: Height and width
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        av = import_library("av")
        self.path = path
        #: Frames so far
        self.n_frames = 0
        #: Size of the encoded frames so far
        self.n_bytes = 0
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(_CODEC, rate=Fraction(fps).limit_denominator(1001), options=_OPTIONS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXEL_FORMAT

    def add(self, frames: NDArray[np.uint8]) -> None:
        """
        :param frames: ``(n, height, width, 3)``, RGB
        """
        av = import_library("av")
        for frame in frames:
            self._mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        self.n_frames += len(frames)

    def close(self) -> None:
        """Write what is left, and end the file."""
        self._mux(self._stream.encode())
        self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.n_bytes += packet.size
            self._container.mux(packet)


def decode_video(path: Path, times: Sequence[float], fps: float, size: tuple[int, int], resize: bool) -> NDArray[np.uint8]:
    """
    :param path: A video
    :param times: When the frames are, in seconds and in order
    :param fps: Frames a second that it should have
    :param size: Height and width of the result
    :param resize: Whether frames of another size are scaled
    :return: The frames, RGB, ``(n, height, width, 3)``
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is truncated or damaged, has another frame rate, or frames of another size
    """
    av = import_library("av")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download the dataset again, all of it")
    result = np.empty((len(times), *size, 3), np.uint8)
    found, last = 0, None
    try:
        with av.open(str(path)) as container:
            for time, frame in _frames_from(container, times[0]):
                last = time
                if time < times[found] - _TOLERANCE / fps:
                    continue
                if time > times[found] + _TOLERANCE / fps:
                    break
                result[found] = _as_array(frame, path, size, resize)
                found += 1
                if found == len(times):
                    return result
    except (av.error.FFmpegError, IndexError) as error:  # it has no stream of pictures
        raise ValueError(f"{path} is truncated, or no video ({error}): download it again") from error
    if last is None or last < times[found]:
        raise ValueError(
            f"{path} is truncated: a frame at {times[found]:.3f} s is missing, its last is "
            f"{'none' if last is None else f'at {last:.3f} s'}; download it again"
        )
    raise ValueError(
        f"{path} has no frame at {times[found]:.3f} s, but one at {last:.3f} s: its frame rate is not the {fps:g} a second "
        "that meta/info.json says; encode it again at that rate, or correct the file"
    )


def decode_picture(content: bytes, source: str, size: tuple[int, int], resize: bool) -> NDArray[np.uint8]:
    """
    :param content: A PNG or JPEG file
    :param source: Where it is from, for error messages
    :param size: Height and width of the result
    :param resize: Whether a picture of another size is scaled
    :return: The picture, RGB, ``(height, width, 3)``
    :raises ValueError: If it is damaged, or of another size
    """
    av = import_library("av")
    try:
        with av.open(io.BytesIO(content)) as container:
            frame = next(container.decode(video=0))
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(f"{source} holds a damaged picture ({error}): download it again") from error
    return _as_array(frame, source, size, resize)


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """
    :param picture: RGB, ``(height, width, 3)``
    :return: A PNG file, from which it is decoded unchanged
    """
    av = import_library("av")
    context = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def _frames_from(container: Any, start: float) -> Iterator[tuple[float, Any]]:
    """The frames from the last keyframe before a time on, each with its own time."""
    stream = container.streams.video[0]
    if start:
        container.seek(max(0, round(start / stream.time_base) - 1), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield float(frame.pts * stream.time_base), frame


def _as_array(frame: Any, source: Path | str, size: tuple[int, int], resize: bool) -> NDArray[np.uint8]:
    if (frame.height, frame.width) != size:
        if not resize:
            raise ValueError(
                f"{source} holds pictures of {frame.height}x{frame.width}, the environment's are of {size[0]}x{size[1]}: "
                "render the same, or scale them (resize_pictures)"
            )
        frame = frame.reformat(height=size[0], width=size[1], format="rgb24", interpolation="AREA")
    array: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return array

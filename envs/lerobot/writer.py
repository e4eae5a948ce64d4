"""Demonstrations as a LeRobot dataset of format v3.0."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..argument_checks import Limits
from ..demonstrations import Demonstration
from ..durable_files import name_folder
from ..wrappers.instruction_observation import decode_instruction
from .libraries import import_library
from .metadata import (
    ACTION,
    CHUNK_LENGTH,
    DATA_PATH,
    EPISODES,
    INFO,
    REWARD,
    SUCCESS,
    TASKS,
    VIDEO_PATH,
    feature_name,
    feature_names,
)
from .pictures import PIXEL_FORMAT, VideoWriter, encode_png, has_channels_first
from .statistics import Statistics, merged, picture_statistics, statistics

# LeRobot's own limits: files in a folder, and megabytes after which the next episode begins a new file
_CHUNKS_SIZE = 1000
_DATA_MEGABYTES = 100
_VIDEO_MEGABYTES = 200
_MEGABYTE = 1 << 20
# What every LeRobot dataset has, one number a frame
_COUNTERS = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}
_PICTURES = ("video", "image")


def write_lerobot(
    folder: str | os.PathLike[str],
    demonstrations: Iterable[Demonstration],
    *,
    fps: float,
    keys: Mapping[str, str] | None = None,
    use_videos: bool = True,
) -> int:
    """
    Write demonstrations, or episodes of any kind, as a LeRobot dataset of format v3.0 (see
    :mod:`sb3_vla_envs.lerobot.metadata`), an episode at a time. The folder is there once it is complete.

    Demonstrations of single steps become a usual dataset, with an ``action`` of shape ``(d,)`` for every frame. Those of
    chunks have an observation for every chunk only, and so has the dataset: an ``action`` of shape ``(h, d)``, and
    ``chunk_length``, how many of its actions were executed. Each frame has ``next.success``, true in the last one of a
    success, and ``next.reward`` where the rewards are known. The task's text is the ``instruction``, without one its name.
    Pictures may have channels first or last; in the dataset they are last.

    Example:
        >>> from sb3_vla_envs import collect_demonstrations, write_lerobot
        >>> demos = collect_demonstrations("window-open-v3", 2, every_step=True)  # doctest: +SKIP
        >>> write_lerobot("FOLDER", demos, fps=80)  # doctest: +SKIP

    :param folder: Where to write, new or empty
    :param demonstrations: All with the same observation keys, shapes and dtypes
    :param fps: Frames a second: steps of the environment, or chunks
    :param keys: Names of the dataset's features by key, where they are not to be the usual ones, see :func:`read_lerobot`
    :param use_videos: Whether pictures become videos (H.264), which are small, but not quite the same, or PNG pictures beside
        the numbers, unchanged
    :return: How many episodes it wrote
    :raises FileExistsError: If the folder exists and is not empty
    :raises TypeError: If ``fps`` is no number
    :raises ValueError: If there are no demonstrations, they don't fit together, the instruction of an episode changes, or
        ``keys`` names features for what there is not, or two alike
    :raises ImportError: If pyarrow or PyAV is not installed
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{str(folder)!r} exists already: give a new or empty folder")
    Limits(above=0).check("fps", fps)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        with _Writer(temporary, fps, keys, use_videos) as writer:
            for demo in demonstrations:
                writer.add(demo)
        if not writer.episodes:
            raise ValueError("There are no demonstrations: a LeRobot dataset has at least one episode")
        writer.write_metadata()
        if target.exists():
            target.rmdir()
        name_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # which may have its name by now
        raise
    return len(writer.episodes)


class _Writer(ExitStack):
    """
    Writes a dataset; what is being written is closed at the end of the context.

    :param folder: An empty folder
    :param fps: Frames a second
    :param keys: Names of features
    :param use_videos: Whether pictures become videos
    """

    def __init__(self, folder: Path, fps: float, keys: Mapping[str, str] | None, use_videos: bool) -> None:
        super().__init__()
        self.folder = folder
        self.fps = fps
        self.keys = keys
        self.use_videos = use_videos
        self.features: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Statistics]] = []
        self.n_frames = 0
        self.data = _DataFiles(folder)
        self.callback(self.data.close)
        self.videos: dict[str, _VideoFiles] = {}

    def add(self, demo: Demonstration) -> None:
        """
        :param demo: The next episode
        :raises ValueError: If it doesn't fit those before
        """
        frames = self._frames(demo)
        features = {name: self._feature(name, values) for name, values in frames.items()}
        if not self.episodes:
            self._begin(features)
        if features != self.features:
            raise ValueError(
                f"All demonstrations must have the same features, the first one has {_in_short(self.features)}, one of task "
                f"{demo.task!r} {_in_short(features)}"
            )
        task = self._text(demo)
        frames |= self._counters(len(demo), self.tasks.setdefault(task, len(self.tasks)))
        episode = {
            "episode_index": len(self.episodes),
            "tasks": [task],
            "length": len(demo),
            "dataset_from_index": self.n_frames,
            "dataset_to_index": self.n_frames + len(demo),
        }
        pictures = {name: frames[name] for name, feature in features.items() if feature["dtype"] in _PICTURES}
        for name, videos in self.videos.items():
            episode |= {f"videos/{name}/{part}": value for part, value in videos.add(frames[name]).items()}
        columns = {name: values for name, values in frames.items() if name not in self.videos}
        episode |= {f"data/{part}": value for part, value in self.data.add(columns, pictures.keys()).items()}
        self.statistics.append(
            {name: (picture_statistics if name in pictures else statistics)(values) for name, values in frames.items()}
            | {feature_name(ACTION, self.keys): statistics(demo.executed_actions())}  # without what fills up chunks
        )
        self.episodes.append(episode)
        self.n_frames += len(demo)

    def write_metadata(self) -> None:
        """Write what stands in ``meta``: the rest is there."""
        parquet, arrow = import_library("pyarrow.parquet"), import_library("pyarrow")
        rows = [
            {**episode, **_flat(of_episode), "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            for episode, of_episode in zip(self.episodes, self.statistics, strict=True)
        ]
        path = self.folder / EPISODES / "chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path)
        parquet.write_table(_task_table(self.tasks), self.folder / TASKS)
        whole = {name: merged([each[name] for each in self.statistics]) for name in self.statistics[0]}
        plain = {name: {part: value.tolist() for part, value in each.items()} for name, each in whole.items()}
        (self.folder / "meta/stats.json").write_text(json.dumps(plain, indent=4), encoding="utf-8")
        (self.folder / INFO).write_text(json.dumps(self._info(), indent=4), encoding="utf-8")

    def _text(self, demo: Demonstration) -> str:
        seen = demo.observations.get("instruction")
        if seen is None:
            return demo.task
        if (changed := np.flatnonzero((seen != seen[0]).any(axis=1))).size:
            raise ValueError(
                f"the instruction of episode {len(self.episodes)} changes from {decode_instruction(seen[0])!r} to "
                f"{decode_instruction(seen[changed[0]])!r} in frame {changed[0]}, but an episode is of one task: split it"
            )
        return decode_instruction(seen[0])

    def _frames(self, demo: Demonstration) -> dict[str, NDArray[Any]]:
        """What each frame has, by feature: ``(frames, ...)``."""
        n_frames, chunk_size = demo.actions.shape[:2]
        seen = {key: values for key, values in demo.observations.items() if key != "instruction"}
        names = feature_names([*seen, ACTION], self.keys)
        _check_distinct(list(names.values()))
        frames = {names[key]: _channels_last(values) for key, values in seen.items()}
        frames[names[ACTION]] = demo.actions[:, 0] if chunk_size == 1 else demo.actions
        if chunk_size > 1:
            frames[CHUNK_LENGTH] = demo.chunk_lengths
        frames[SUCCESS] = np.arange(n_frames) == (n_frames - 1 if demo.success else n_frames)
        if demo.rewards is not None:
            frames[REWARD] = np.asarray(demo.rewards, np.float32)
        # One number a frame has the shape (1,)
        return {name: values if values.ndim > 1 else values[:, None] for name, values in frames.items()}

    def _feature(self, name: str, values: NDArray[Any]) -> dict[str, Any]:
        """How ``meta/info.json`` describes a feature."""
        shape = values.shape[1:]
        if values.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            return {"dtype": values.dtype.name, "shape": list(shape), "names": None}
        feature = {"dtype": "image", "shape": list(shape), "names": ["height", "width", "channels"]}
        if not self.use_videos:
            return feature
        about = {"video.height": shape[0], "video.width": shape[1], "video.channels": 3, "video.fps": _plain(self.fps)}
        about |= {"video.codec": "h264", "video.pix_fmt": PIXEL_FORMAT, "has_audio": False, "is_depth_map": False}
        return {**feature, "dtype": "video", "info": about}

    def _begin(self, features: dict[str, dict[str, Any]]) -> None:
        self.features = features
        for name, feature in features.items():
            if feature["dtype"] == "video":
                self.videos[name] = _VideoFiles(self.folder, name, self.fps)
                self.callback(self.videos[name].close)

    def _counters(self, n_frames: int, task: int) -> dict[str, NDArray[Any]]:
        numbers = np.arange(n_frames)
        values = {
            "timestamp": numbers / self.fps,
            "frame_index": numbers,
            "episode_index": np.full(n_frames, len(self.episodes)),
            "index": self.n_frames + numbers,
            "task_index": np.full(n_frames, task),
        }
        return {name: values[name].astype(dtype)[:, None] for name, dtype in _COUNTERS.items()}

    def _info(self) -> dict[str, Any]:
        counters = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _COUNTERS.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.n_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _CHUNKS_SIZE,
            "data_files_size_in_mb": _DATA_MEGABYTES,
            "video_files_size_in_mb": _VIDEO_MEGABYTES,
            "fps": _plain(self.fps),
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": {**self.features, **counters},
        }


class _DataFiles:
    """
    Parquet files, of which each holds whole episodes, as row groups.

    :param folder: The dataset
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = -1
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def add(self, columns: Mapping[str, NDArray[Any]], pictures: Iterable[str]) -> dict[str, int]:
        """
        :param columns: Of an episode, ``(frames, ...)``
        :param pictures: Names of those that are pictures
        :return: Numbers that say in which file it is
        """
        arrow, parquet = import_library("pyarrow"), import_library("pyarrow.parquet")
        table = arrow.table(
            {name: (_picture_column if name in pictures else _number_column)(values) for name, values in columns.items()}
        )
        if self._file is None or self._file.tell() >= _DATA_MEGABYTES * _MEGABYTE:
            self.close()
            self._number += 1
            path = self._folder / DATA_PATH.format(**_place(self._number))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb")  # closed by close()
            self._writer = parquet.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table)
        return _place(self._number)

    def close(self) -> None:
        """End the file that is being written."""
        if self._file is not None:
            self._writer.close()
            self._file.close()


class _VideoFiles:
    """
    Videos of a camera, of which each holds whole episodes.

    :param folder: The dataset
    :param name: The feature
    :param fps: Frames a second
    """

    def __init__(self, folder: Path, name: str, fps: float) -> None:
        self._folder = folder
        self._name = name
        self._fps = fps
        self._number = -1
        self._video: VideoWriter | None = None

    def add(self, frames: NDArray[np.uint8]) -> dict[str, float]:
        """
        :param frames: Of an episode, ``(frames, height, width, 3)``
        :return: Numbers that say in which file it is, and when
        """
        if self._video is None or self._video.n_bytes >= _VIDEO_MEGABYTES * _MEGABYTE:
            self.close()
            self._number += 1
            path = self._folder / VIDEO_PATH.format(video_key=self._name, **_place(self._number))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._video = VideoWriter(path, self._fps, frames.shape[1:3])
        start = self._video.n_frames / self._fps
        self._video.add(frames)
        return {**_place(self._number), "from_timestamp": start, "to_timestamp": self._video.n_frames / self._fps}

    def close(self) -> None:
        """End the video that is being written."""
        if self._video is not None:
            self._video.close()


def _check_distinct(names: list[str]) -> None:
    own = {*_COUNTERS, SUCCESS, REWARD, CHUNK_LENGTH}
    if taken := sorted({name for name in names if name in own or names.count(name) > 1}):
        raise ValueError(f"keys: each needs a feature of its own that is none of {', '.join(sorted(own))}, got {taken}")


def _channels_last(values: NDArray[Any]) -> NDArray[Any]:
    is_transposed = values.dtype == np.uint8 and has_channels_first(values.shape[1:])
    return np.moveaxis(values, 1, -1) if is_transposed else values


def _place(number: int) -> dict[str, int]:
    chunk, file = divmod(number, _CHUNKS_SIZE)
    return {"chunk_index": chunk, "file_index": file}


def _number_column(values: NDArray[Any]) -> Any:
    """Nested lists of fixed sizes; single numbers where the shape is ``(frames, 1)``."""
    arrow = import_library("pyarrow")
    column = arrow.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:] if values.shape[1:] != (1,) else ()):
        column = arrow.FixedSizeListArray.from_arrays(column, size)
    return column


def _picture_column(values: NDArray[np.uint8]) -> Any:
    arrow = import_library("pyarrow")
    pictures = [{"bytes": encode_png(picture), "path": f"frame-{number:06d}.png"} for number, picture in enumerate(values)]
    return arrow.array(pictures, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}))


def _task_table(tasks: Mapping[str, int]) -> Any:
    """A table of tasks that pandas, with which LeRobot reads it, indexes by the texts."""
    arrow = import_library("pyarrow")
    kinds = {"task_index": "int64", "task": "unicode"}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": kind if name == "task_index" else "object"}
        for name, kind in kinds.items()
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = arrow.table({"task_index": list(tasks.values()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _flat(of_episode: Mapping[str, Statistics]) -> dict[str, Any]:
    return {f"stats/{name}/{part}": value.tolist() for name, each in of_episode.items() for part, value in each.items()}


def _in_short(features: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {feature['dtype']}{feature['shape']}" for name, feature in features.items())


def _plain(fps: float) -> int | float:
    """The number as LeRobot writes it: an integer if it is one."""
    return int(fps) if fps == int(fps) else float(fps)

"""
What a LeRobot dataset says of itself, and where its episodes lie.

A dataset is a folder. These are the files of the two formats that are read
(https://huggingface.co/docs/lerobot/lerobot-dataset-v3; 3.0 is what LeRobot writes since version 0.4):

=================  ==============================================  ==================================================
what               v3.0                                            v2.1
=================  ==============================================  ==================================================
description        ``meta/info.json``                              ``meta/info.json``
texts of tasks     ``meta/tasks.parquet``                          ``meta/tasks.jsonl``
episodes           ``meta/episodes/chunk-000/file-000.parquet``    ``meta/episodes.jsonl``
numbers, pictures  ``data/chunk-000/file-000.parquet``             ``data/chunk-000/episode_000000.parquet``
videos             ``videos/<camera>/chunk-000/file-000.mp4``      ``videos/chunk-000/<camera>/episode_000000.mp4``
=================  ==============================================  ==================================================

In v3.0 a file holds many episodes, one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .libraries import import_library

INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
READABLE = ("v2.1", "v3.0")

ACTION = "action"
SUCCESS = "next.success"
REWARD = "next.reward"
#: Not LeRobot's: in datasets of action chunks, how many actions of each were executed
CHUNK_LENGTH = "chunk_length"
# LeRobot's names for what we call otherwise; a picture `image_wrist` is its `observation.images.wrist`
_NAMES = {ACTION: ACTION, "image": "observation.image", "privileged": "observation.environment_state"}
_COLUMNS = ("episode_index", "length", "tasks", "data/chunk_index", "data/file_index")
_VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")


def feature_name(key: str, keys: Mapping[str, str] | None = None) -> str:
    """
    :param key: ``"action"``, or key of an observation
    :param keys: Names that differ from the usual ones, by key
    :return: Name of the feature in a LeRobot dataset
    """
    if keys is not None and key in keys:
        return keys[key]
    if key.startswith("image_"):
        return f"observation.images.{key.removeprefix('image_')}"
    return _NAMES.get(key, f"observation.{key}")


def feature_names(known: Iterable[str], keys: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    :param known: ``"action"``, and keys of observations
    :param keys: Names that differ from the usual ones, by key
    :return: Names of their features by key
    :raises ValueError: If ``keys`` has others
    """
    names = {key: feature_name(key, keys) for key in known}
    if unknown := sorted(set(keys or ()) - names.keys()):
        raise ValueError(f"keys names features for {unknown}, but there are only {', '.join(names)}")
    return names


@dataclass(frozen=True)
class VideoPart:
    """
    An episode in a video.

    :param path: The video
    :param start: Where the episode begins, in seconds
    """

    path: Path
    start: float


@dataclass(frozen=True)
class Episode:
    """
    Where an episode lies.

    :param index: Its number in the dataset
    :param length: How many frames it has
    :param texts: What was to be done; one text, unless that changed on the way
    :param data: File with its numbers
    :param videos: Its videos, by feature
    """

    index: int
    length: int
    texts: tuple[str, ...]
    data: Path
    videos: Mapping[str, VideoPart]


@dataclass(frozen=True)
class Metadata:
    """
    What a dataset says of itself.

    :param folder: Where it is
    :param fps: Frames a second
    :param features: By name, what each frame has: a dictionary with ``dtype`` (``"video"``, ``"image"`` or that of numbers)
        and ``shape``
    :param episodes: All episodes
    """

    folder: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    episodes: tuple[Episode, ...]

    @property
    def info(self) -> Path:
        """The file that describes the dataset, for error messages."""
        return self.folder / INFO

    def cameras(self) -> list[str]:
        """:return: Names of the features that are pictures"""
        return [name for name, feature in self.features.items() if feature["dtype"] in ("video", "image")]


def read_metadata(folder: str | os.PathLike[str]) -> Metadata:
    """
    :param folder: A LeRobot dataset of format v3.0 or v2.1
    :return: What it says of itself
    :raises FileNotFoundError: If a file is missing
    :raises ValueError: If the dataset is of another format, or one of the files is damaged
    """
    root = Path(folder)
    path = root / INFO
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the folder of a LeRobot dataset, the one that holds meta/ and data/")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, fps, features = info["codebase_version"], float(info["fps"]), info["features"]
        n_episodes = int(info["total_episodes"])
        videos = [name for name, feature in features.items() if feature["dtype"] == "video"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no description of a LeRobot dataset ({error}): download it again") from error
    if version not in READABLE:
        raise ValueError(
            f"{path} is of format {version}, this sb3-vla reads {' and '.join(READABLE)}: convert the dataset with the "
            "release of LeRobot that is for its format"
        )
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    try:
        episodes = tuple(sorted(read(root, info, videos), key=lambda episode: episode.index))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{root / 'meta'} lacks {error}, which format {version} has: download it again") from error
    if len(episodes) != n_episodes:
        raise ValueError(
            f"{root / 'meta'} lists {len(episodes)} episodes, {path} counts {n_episodes}: a file is missing or truncated; "
            "download it again"
        )
    return Metadata(root, fps, features, episodes)


def read_table(path: Path, columns: Iterable[str] | None = None) -> Any:
    """
    :param path: A parquet file
    :param columns: Those to read, by default all
    :return: A ``pyarrow.Table``
    :raises FileNotFoundError: If it is missing
    :raises ValueError: If it is damaged, or lacks a column
    """
    file = open_parquet(path)
    try:
        return file.read(columns=_present(path, file, columns))
    except (OSError, ValueError) as error:  # pyarrow's errors are such, too
        raise ValueError(f"{path} is damaged ({error}): download it again") from error


def open_parquet(path: Path, columns: Iterable[str] | None = None) -> Any:
    """
    :param path: A parquet file
    :param columns: What it must have
    :return: A ``pyarrow.parquet.ParquetFile``
    :raises FileNotFoundError: If it is missing
    :raises ValueError: If it is damaged, or lacks a column
    """
    parquet = import_library("pyarrow.parquet")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download the dataset again, all of it")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): download it again") from error
    _present(path, file, columns)
    return file


def _present(path: Path, file: Any, columns: Iterable[str] | None) -> list[str] | None:
    if columns is None:
        return None
    names = list(columns)
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing} (it has {file.schema_arrow.names}): download it again")
    return names


def _episodes_v3(root: Path, info: Mapping[str, Any], videos: Iterable[str]) -> Iterable[Episode]:
    files = sorted((root / EPISODES).glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root / EPISODES} holds no parquet file: download the dataset again, all of it")
    columns = [*_COLUMNS, *(f"videos/{name}/{part}" for name in videos for part in _VIDEO_COLUMNS)]
    for file in files:  # without statistics, which are most of it
        for row in read_table(file, columns).to_pylist():
            data = _file(root, info, "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            parts = {}
            for name in videos:
                chunk, number, start = (row[f"videos/{name}/{part}"] for part in _VIDEO_COLUMNS)
                video = _file(root, info, "video_path", video_key=name, chunk_index=chunk, file_index=number)
                parts[name] = VideoPart(video, start)
            yield Episode(row["episode_index"], row["length"], tuple(row["tasks"]), data, parts)


def _episodes_v2(root: Path, info: Mapping[str, Any], videos: Iterable[str]) -> Iterable[Episode]:
    path = root / "meta/episodes.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download the dataset again, all of it")
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): download it again") from error
        index = row["episode_index"]
        numbers = {"episode_index": index, "episode_chunk": index // info["chunks_size"]}
        data = _file(root, info, "data_path", **numbers)
        parts = {name: VideoPart(_file(root, info, "video_path", video_key=name, **numbers), 0.0) for name in videos}
        yield Episode(index, row["length"], tuple(row["tasks"]), data, parts)


def _file(root: Path, info: Mapping[str, Any], kind: str, **names: Any) -> Path:
    """
    :param root: Folder of the dataset
    :param info: What its ``info.json`` says
    :param kind: ``data_path`` or ``video_path``
    :param names: What the file's name is made of
    :return: The file
    :raises ValueError: If it is made of something else, or lies elsewhere
    """
    try:
        path = Path(info[kind].format(**names))
    except (AttributeError, LookupError, ValueError) as error:
        raise ValueError(f"{root / INFO}: {kind} {info[kind]!r} can't be read ({error}): download it again") from error
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{root / INFO}: {kind} {info[kind]!r} leads out of the dataset: such a file is not read")
    return root / path

"""LeRobot datasets as demonstrations, an episode at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..demonstrations import Demonstration
from ..wrappers.instruction_observation import encode_instruction
from .libraries import import_library
from .metadata import ACTION, CHUNK_LENGTH, SUCCESS, Episode, Metadata, feature_names, open_parquet, read_metadata
from .pictures import decode_picture, decode_video, has_channels_first

_INSTRUCTION = "instruction"


def read_lerobot(
    folder: str | os.PathLike[str],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    keys: Mapping[str, str] | None = None,
    tasks: Mapping[str, str] | None = None,
    instructions: Mapping[str, str] | None = None,
    fps: float | None = None,
    every_step: bool = False,
    resize_pictures: bool = False,
) -> Iterator[Demonstration]:
    """
    Read a LeRobot dataset (format v3.0 or v2.1, see :mod:`sb3_vla_envs.lerobot.metadata`) from a local folder, as
    demonstrations for a policy with given spaces.

    Only what the spaces ask for is read and decoded, and one episode at a time is in memory: :func:`save_demonstrations` takes
    the result as it is. Episodes end with their first success where the dataset has ``next.success``; those without count as
    successes. Rewards are not read, as they may be of another kind than those of the environment.

    Example:
        >>> from sb3_vla_envs import make_vla_env, read_lerobot, save_demonstrations
        >>> env = make_vla_env("window-open-v3", privileged=False)
        >>> episodes = read_lerobot(
        ...     "FOLDER", env.observation_space, env.action_space, tasks={"Open the window": "window-open-v3"}, fps=80
        ... )  # doctest: +SKIP
        >>> save_demonstrations("demos.npz", episodes)  # doctest: +SKIP

    :param folder: The dataset: the folder that holds ``meta`` and ``data``
    :param observation_space: What the policy sees: pictures ``(height, width, 3)`` or ``(3, height, width)`` of uint8,
        vectors, and ``instruction``
    :param action_space: Its action chunks, ``(h, d)``
    :param keys: Names of the dataset's features by key of the observation (and ``"action"``), where they are not the usual
        ones: ``observation.image`` for ``image``, ``observation.images.wrist`` for ``image_wrist``,
        ``observation.environment_state`` for ``privileged``, ``observation.state`` for ``state``, and so on
    :param tasks: Names of tasks by the dataset's texts; episodes of other texts are left out. By default all are read, and
        the texts are the names
    :param instructions: What the policy is told, by name of the task; by default the dataset's text
    :param fps: Primitive steps a second of the environment, which the dataset's frames must have; by default any will do
    :param every_step: Give demonstrations of single steps, from which a policy learns chunks of any size that begin at each of
        them (:meth:`Demonstration.chunk`), and not of chunks that follow one another
    :param resize_pictures: Whether to scale pictures that are not of the size in ``observation_space``
    :return: The demonstrations, in the dataset's order
    :raises TypeError: If the spaces are not such
    :raises FileNotFoundError: If a file is missing
    :raises ValueError: If the dataset lacks a feature or has it in another shape, has another frame rate or none of the tasks,
        an instruction is for none of them, or a file is damaged; what the dataset's metadata tell is checked at once, the rest
        as it is read
    :raises ImportError: If pyarrow or PyAV is not installed
    """
    import_library("av")
    metadata = read_metadata(folder)
    reader = _Reader(metadata, observation_space, action_space, keys, every_step, resize_pictures)
    if fps is not None and not reader.has_chunks and abs(metadata.fps - fps) > 0.01 * fps:  # frames of chunks are far apart
        raise ValueError(
            f"{metadata.info} says {metadata.fps:g} frames a second, the environment takes {fps:g} steps: resample the "
            f"dataset, or, if an action means the same at both, say fps={metadata.fps:g}"
        )
    chosen = _chosen(metadata, tasks)
    names = _texts(chosen) if tasks is None else {*tasks.values()}
    if unknown := sorted(set(instructions or ()) - names):
        raise ValueError(f"instructions are given for the tasks {unknown}, but those read are {_listed(names)}")
    return reader.read(chosen, tasks, instructions or {})


def _chosen(metadata: Metadata, tasks: Mapping[str, str] | None) -> list[Episode]:
    """The episodes of the tasks."""
    chosen = [episode for episode in metadata.episodes if tasks is None or set(episode.texts) & tasks.keys()]
    if not chosen:
        raise ValueError(
            f"{metadata.folder} has no episode of these tasks; name them by its texts (tasks), which are "
            f"{_listed(_texts(metadata.episodes))}"
        )
    for episode in chosen:
        if len(episode.texts) != 1:
            raise ValueError(
                f"{metadata.folder}: episode {episode.index} is of {len(episode.texts)} tasks, {', '.join(episode.texts)}; a "
                "demonstration is of one: split it, or leave its texts out of tasks"
            )
    return chosen


def _texts(episodes: Iterable[Episode]) -> set[str]:
    return {text for episode in episodes for text in episode.texts}


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(repr, ordered[:10])) + (" and others" if len(ordered) > 10 else "")


class _Reader:
    """
    Reads episodes of a dataset.

    :param metadata: What the dataset says of itself
    :param observation_space: What to read
    :param action_space: Action chunks
    :param keys: See :func:`read_lerobot`
    :param every_step: See :func:`read_lerobot`
    :param resize: Whether to scale pictures
    :raises TypeError: If the spaces are of other kinds
    :raises ValueError: If they don't fit together
    """

    def __init__(
        self,
        metadata: Metadata,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        keys: Mapping[str, str] | None,
        every_step: bool,
        resize: bool,
    ) -> None:
        self.metadata = metadata
        self.resize = resize
        self.every_step = every_step
        if not isinstance(observation_space, spaces.Dict):
            raise TypeError(f"observation_space must be a Dict, as that of make_vla_env, got {observation_space}")
        self.spaces = {key: _box(key, space) for key, space in observation_space.spaces.items() if key != _INSTRUCTION}
        instruction = observation_space.spaces.get(_INSTRUCTION)
        self.max_bytes = None if instruction is None else prod(instruction.shape or ())
        self.chunk_shape = _box(ACTION, action_space).shape
        if len(self.chunk_shape) != 2:
            raise ValueError(f"action_space must be of chunks, (h, d), as that of make_vla_env, got {action_space}")
        self.names = feature_names((*self.spaces, ACTION), keys)
        for key, name in self.names.items():
            self._check_present(key, name)
        self.pictures = {key for key in self.spaces if self.names[key] in metadata.cameras()}
        for key, space in self.spaces.items():
            if key in self.pictures:
                _check_picture(key, space)
            else:
                self._check_shape(key, space.shape)
        action_shape = tuple(metadata.features[self.names[ACTION]]["shape"])
        #: Whether the dataset's actions are chunks: then the demonstrations are of the same
        self.has_chunks = len(action_shape) == len(self.chunk_shape)
        self._check_shape(ACTION, self.chunk_shape if self.has_chunks else self.chunk_shape[1:])
        if self.has_chunks and every_step:
            raise ValueError(f"{metadata.info}: the dataset has a frame for every chunk only, read it with every_step=False")

    def read(
        self, episodes: list[Episode], tasks: Mapping[str, str] | None, instructions: Mapping[str, str]
    ) -> Iterator[Demonstration]:
        """
        :param episodes: Which ones
        :param tasks: See :func:`read_lerobot`
        :param instructions: See :func:`read_lerobot`
        :return: The demonstrations
        """
        for path, group in groupby(episodes, key=lambda episode: episode.data):
            wanted = {episode.index: episode for episode in group}
            for index, table in self._tables(path):
                episode = wanted.pop(index, None)
                if episode is None:
                    continue
                if table.num_rows != episode.length:
                    raise ValueError(
                        f"{path} has {table.num_rows} frames of episode {index}, meta says {episode.length}: it is "
                        "truncated or of another version; download it again"
                    )
                text = episode.texts[0]
                task = text if tasks is None else tasks[text]
                yield self._demonstration(episode, table, task, instructions.get(task, text))
                if not wanted:
                    break
            if wanted:
                raise ValueError(f"{path} lacks episode {min(wanted)}: it is truncated; download it again")

    def _tables(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The episodes of a file, one after the other, as tables of the columns that are needed."""
        arrow = import_library("pyarrow")
        in_file = [self.names[key] for key in self.names if self.metadata.features[self.names[key]]["dtype"] != "video"]
        optional = [name for name in (SUCCESS, CHUNK_LENGTH) if name in self.metadata.features]
        columns = list(dict.fromkeys(["episode_index", *in_file, *optional]))
        file = open_parquet(path, columns)
        held: list[Any] = []  # parts of the episode that is being read
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                indices = batch["episode_index"].to_numpy(zero_copy_only=False)
                ends = [*(np.flatnonzero(np.diff(indices)) + 1), len(indices)]
                for start, end in zip([0, *ends[:-1]], ends, strict=True):
                    if held and held[0]["episode_index"][0].as_py() != indices[start]:
                        yield held[0]["episode_index"][0].as_py(), arrow.Table.from_batches(held)
                        held = []
                    held.append(batch.slice(start, end - start))
        except (OSError, ValueError) as error:  # pyarrow's errors are such, too
            raise ValueError(f"{path} is damaged ({error}): download it again") from error
        if held:
            yield held[0]["episode_index"][0].as_py(), arrow.Table.from_batches(held)

    def _demonstration(self, episode: Episode, table: Any, task: str, instruction: str) -> Demonstration:
        success, n_frames = self._outcome(episode, table)
        frames, chunks, lengths = self._chunks(episode, table, n_frames)
        observations = {key: self._observation(key, episode, table, frames) for key in self.spaces}
        if self.max_bytes is not None:
            encoded = encode_instruction(instruction, self.max_bytes)
            observations[_INSTRUCTION] = np.broadcast_to(encoded, (len(frames), self.max_bytes))
        try:
            return Demonstration(task, observations, chunks, lengths, success)
        except ValueError as error:
            raise ValueError(f"{episode.data}, episode {episode.index}: {error}") from error

    def _outcome(self, episode: Episode, table: Any) -> tuple[bool, int]:
        """Whether it succeeded, and its number of frames up to then."""
        if SUCCESS not in table.column_names:
            return True, episode.length
        succeeded = np.flatnonzero(self._numbers(SUCCESS, episode, table, (1,)))
        return (True, int(succeeded[0]) + 1) if len(succeeded) else (False, episode.length)

    def _chunks(self, episode: Episode, table: Any, n_frames: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Frames that a policy sees, the chunks after them and the chunks' lengths."""
        shape = self.chunk_shape if self.has_chunks else self.chunk_shape[1:]
        actions = self._numbers(self.names[ACTION], episode, table, shape)[:n_frames].astype(np.float32, copy=False)
        if self.has_chunks:
            full = np.full((n_frames, 1), self.chunk_shape[0])
            stored = self._numbers(CHUNK_LENGTH, episode, table, (1,)) if CHUNK_LENGTH in table.column_names else full
            return np.arange(n_frames), actions, stored[:n_frames, 0].astype(np.int64, copy=False)
        size = 1 if self.every_step else self.chunk_shape[0]
        frames = np.arange(0, n_frames, size)
        padded = np.zeros((len(frames) * size, *shape), np.float32)
        padded[:n_frames] = actions
        return frames, padded.reshape(len(frames), size, *shape), np.minimum(size, n_frames - frames)

    def _observation(self, key: str, episode: Episode, table: Any, frames: NDArray[Any]) -> NDArray[Any]:
        name, space = self.names[key], self.spaces[key]
        if key not in self.pictures:
            values = self._numbers(name, episode, table, space.shape)[frames]
            return values.astype(space.dtype, copy=False)
        is_transposed = has_channels_first(space.shape)
        height, width = space.shape[1:] if is_transposed else space.shape[:2]
        if name in episode.videos:
            part = episode.videos[name]
            times = [part.start + int(frame) / self.metadata.fps for frame in frames]
            pictures = decode_video(part.path, times, self.metadata.fps, (height, width), self.resize)
        else:
            source = f"{episode.data}, column {name!r}"
            column = table.column(name)
            encoded = (column[int(frame)].as_py()["bytes"] for frame in frames)
            pictures = np.stack([decode_picture(each, source, (height, width), self.resize) for each in encoded])
        return np.moveaxis(pictures, -1, 1) if is_transposed else pictures

    def _numbers(self, name: str, episode: Episode, table: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A column as an array ``(frames, *shape)``."""
        values = table.column(name).combine_chunks()
        while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
            values = values.flatten()
        array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        if array.size != table.num_rows * prod(shape):
            raise ValueError(
                f"{episode.data}: column {name!r} holds {array.size} numbers in the {table.num_rows} frames of episode "
                f"{episode.index}, the environment's shape is {shape}: give the feature that has it (keys)"
            )
        return array.reshape(table.num_rows, *shape)

    def _check_present(self, key: str, name: str) -> None:
        if name in self.metadata.features:
            return
        shape = self.chunk_shape if key == ACTION else self.spaces[key].shape
        is_picture = key != ACTION and len(shape) == 3
        names = self.metadata.cameras() if is_picture else sorted(self.metadata.features.keys() - {*self.metadata.cameras()})
        raise ValueError(
            f"{self.metadata.info} has no {'camera' if is_picture else 'feature'} {name!r} for {key!r}, only "
            f"{', '.join(names) or 'none'}: say which it is (keys), or leave it out of the environment's observation"
        )

    def _check_shape(self, key: str, shape: tuple[int, ...]) -> None:
        name = self.names[key]
        given = tuple(self.metadata.features[name]["shape"])
        if given != (shape or (1,)):
            raise ValueError(
                f"{self.metadata.info}: {name!r} is of shape {given}, the environment's {key!r} of {shape}: give another "
                "feature (keys), or an environment with as many numbers"
            )


def _box(key: str, space: spaces.Space[Any]) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise TypeError(f"LeRobot datasets hold arrays, but {key!r} is of the space {space}")
    return space


def _check_picture(key: str, space: spaces.Box) -> None:
    if len(space.shape) != 3 or 3 not in (space.shape[0], space.shape[2]) or space.dtype != np.uint8:
        raise ValueError(
            f"The dataset's {key!r} is pictures, which are (height, width, 3) or (3, height, width) of uint8, but its space "
            f"is {space}: give the spaces of the environment itself, or another feature (keys)"
        )

"""Datasets as LeRobot lays them out, written by hand: with pandas, Pillow and PyAV, and not with what is tested."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

FPS = 10
LENGTHS = (5, 6, 7)
TEXTS = ("push the cube", "pick up the ball")
SIZE = (64, 80)


@dataclass
class Dataset:
    """A dataset, and what is in it, by episode."""

    folder: Path
    video: list[np.ndarray]
    pictures: list[np.ndarray]
    states: list[np.ndarray]
    actions: list[np.ndarray]


def smooth_frames(n_frames, seed):
    """Pictures that videos hardly change, each 10 brighter than the one before."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    channels = np.stack([x, y, np.full_like(x, 20 * seed)], axis=-1)
    return np.stack([channels + 10 * number + 20 for number in range(n_frames)]).astype(np.uint8)


def write_video(path, frames, fps=FPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "g": "2"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def as_png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_table(path, frame):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)


def info_of(version, n_episodes, succeeds_at):
    numbers = {"dtype": "float32", "names": None}
    picture = {"shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.images.top": {"dtype": "video", **picture, "info": {"video.fps": FPS}},
        "observation.images.wrist": {"dtype": "image", **picture},
        "observation.state": {"shape": [4], **numbers},
        "action": {"shape": [3], **numbers},
        "timestamp": {"shape": [1], **numbers},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    if succeeds_at is not None:
        features["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
    if version == "v3.0":
        place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        paths = {"data_path": f"data/{place}.parquet", "video_path": "videos/{video_key}/" + place + ".mp4"}
    else:
        paths = {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }
    counts = {"total_episodes": n_episodes, "total_tasks": 2, "chunks_size": 2}
    return {"codebase_version": version, "fps": FPS, "features": features, **paths, **counts}


@pytest.fixture
def make_dataset(tmp_path):
    def make(version="v3.0", lengths=LENGTHS, succeeds_at=None):
        folder, rng = tmp_path / version, np.random.default_rng(0)
        made = Dataset(folder, [], [], [], [])
        tables, rows, start = [], [], 0
        for episode, length in enumerate(lengths):
            made.video.append(smooth_frames(length, episode))
            made.pictures.append(rng.integers(0, 256, (length, *SIZE, 3), dtype=np.uint8))
            made.states.append(rng.normal(size=(length, 4)).astype(np.float32))
            made.actions.append(rng.normal(size=(length, 3)).astype(np.float32))
            columns = {
                "observation.images.wrist": [{"bytes": as_png(each), "path": ""} for each in made.pictures[-1]],
                "observation.state": list(made.states[-1]),
                "action": list(made.actions[-1]),
                "timestamp": (np.arange(length) / FPS).astype(np.float32),
                "frame_index": np.arange(length),
                "episode_index": episode,
                "index": start + np.arange(length),
                "task_index": episode % 2,
            }
            if succeeds_at is not None:
                columns["next.success"] = np.arange(length) == succeeds_at
            tables.append(pd.DataFrame(columns))
            rows.append({"episode_index": episode, "tasks": [TEXTS[episode % 2]], "length": length})
            start += length
        (folder / "meta").mkdir(parents=True)
        (folder / "meta/info.json").write_text(json.dumps(info_of(version, len(lengths), succeeds_at)))
        (_lay_out_v3 if version == "v3.0" else _lay_out_v2)(made, tables, rows)
        return made

    return make


def _lay_out_v3(made, tables, rows):
    """The first two episodes in one file, the others in another; all in one video."""
    times = np.cumsum([0, *map(len, tables)]) / FPS
    for number, (row, table) in enumerate(zip(rows, tables, strict=True)):
        video = {"chunk_index": 0, "file_index": 0, "from_timestamp": times[number], "to_timestamp": times[number + 1]}
        row |= {f"videos/observation.images.top/{name}": value for name, value in video.items()}
        row |= {"data/chunk_index": 0, "data/file_index": int(number >= 2), "stats/action/mean": [0.0, 0.0, 0.0]}
        row |= {"dataset_from_index": int(table["index"].iloc[0]), "dataset_to_index": int(table["index"].iloc[-1]) + 1}
    for file, of_file in enumerate((tables[:2], tables[2:])):
        if of_file:
            write_table(made.folder / f"data/chunk-000/file-{file:03d}.parquet", pd.concat(of_file))
    write_table(made.folder / "meta/episodes/chunk-000/file-000.parquet", pd.DataFrame(rows))
    write_table(made.folder / "meta/tasks.parquet", pd.DataFrame({"task_index": [0, 1]}, index=pd.Index(TEXTS, name="task")))
    write_video(made.folder / "videos/observation.images.top/chunk-000/file-000.mp4", np.concatenate(made.video))


def _lay_out_v2(made, tables, rows):
    """Each episode in files of its own, two in a folder."""
    for number, table in enumerate(tables):
        chunk = f"chunk-{number // 2:03d}"
        write_table(made.folder / f"data/{chunk}/episode_{number:06d}.parquet", table)
        write_video(made.folder / f"videos/{chunk}/observation.images.top/episode_{number:06d}.mp4", made.video[number])
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(TEXTS)]
    for name, lines in (("episodes", rows), ("tasks", tasks)):
        (made.folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

"""
LeRobot's part of ``check_datasets.py``, which runs it with the Python that has LeRobot: reads or writes a dataset.

    python lerobot_datasets.py read  DATASET ARRAYS   # every frame of a dataset, as arrays in an .npz file
    python lerobot_datasets.py write DATASET ARRAYS   # the reverse
"""

import json
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def read(folder: str, arrays: str) -> None:
    """
    :param folder: A dataset
    :param arrays: Where to write its frames: an array ``(frames, ...)`` by feature, and ``task``
    """
    dataset = LeRobotDataset("local/dataset", root=folder, video_backend="pyav")
    frames = [dataset[number] for number in range(len(dataset))]
    columns = {name: np.stack([np.asarray(frame[name]) for frame in frames]) for name in dataset.features}
    for name in dataset.meta.camera_keys:  # (frames, 3, height, width) in [0, 1]
        columns[name] = np.rint(columns[name] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(arrays, task=np.array([frame["task"] for frame in frames]), **columns)


def write(folder: str, arrays: str) -> None:
    """
    :param folder: Where to write a dataset
    :param arrays: Its frames, and ``info``, what a dataset's ``meta/info.json`` says of their features
    """
    columns = dict(np.load(arrays))
    info = json.loads(str(columns.pop("info")))
    features = {
        name: {"dtype": feature["dtype"], "shape": tuple(feature["shape"]), "names": feature["names"]}
        for name, feature in info["features"].items()
        if name in columns and name not in COUNTERS
    }
    use_videos = any(feature["dtype"] == "video" for feature in features.values())
    dataset = LeRobotDataset.create("local/dataset", info["fps"], features, folder, use_videos=use_videos)
    ends = np.flatnonzero(np.diff(columns["episode_index"], append=-1))
    for number, task in enumerate(columns["task"]):
        values = {name: np.atleast_1d(columns[name][number]) for name in features}
        dataset.add_frame({**values, "task": str(task)})
        if number in ends:
            dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])

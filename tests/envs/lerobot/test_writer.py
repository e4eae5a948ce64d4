import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces

from sb3_vla_envs import Demonstration, encode_instruction, read_lerobot, write_lerobot
from sb3_vla_envs.lerobot import writer

SIZE = (15, 32)
OBSERVATIONS = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (*SIZE, 3), np.uint8),
        "image_wrist": spaces.Box(0, 255, (*SIZE, 3), np.uint8),
        "state": spaces.Box(-np.inf, np.inf, (4,), np.float32),
        "instruction": spaces.Box(0, 255, (16,), np.uint8),
    }
)
CHUNKS = spaces.Box(-1, 1, (4, 3), np.float32)


def demonstration(n_chunks, chunk_size=1, seed=0, success=True):
    """Pictures that videos hardly change, each 12 brighter than the one before."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = np.stack([2 * x, 3 * y, np.full_like(x, 30 * seed)], axis=-1) + 20
    frames = np.stack([picture + 12 * number for number in range(n_chunks)]).astype(np.uint8)
    instruction = encode_instruction(("push", "pick")[seed % 2], 16)
    lengths = np.full(n_chunks, chunk_size)
    lengths[-1] = max(1, chunk_size - 1)
    return Demonstration(
        task=f"task {seed % 2}",
        observations={
            "image": frames,
            "image_wrist": frames[:, ::-1],
            "state": rng.normal(size=(n_chunks, 4)).astype(np.float32),
            "instruction": np.tile(instruction, (n_chunks, 1)),
        },
        actions=rng.normal(size=(n_chunks, chunk_size, 3)).astype(np.float32),
        chunk_lengths=lengths,
        success=success,
        rewards=np.arange(n_chunks, dtype=np.float32),
    )


def read(folder, **options):
    return list(read_lerobot(folder, OBSERVATIONS, CHUNKS, **options))


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("use_videos", [True, False])
def test_what_was_written_is_read_again(tmp_path, chunk_size, use_videos):
    demos = [demonstration(5 + seed, chunk_size, seed, success=seed != 1) for seed in range(3)]
    assert write_lerobot(tmp_path / "set", iter(demos), fps=12.5, use_videos=use_videos) == 3
    tasks = {"push": "task 0", "pick": "task 1"}
    again = read(tmp_path / "set", tasks=tasks, every_step=chunk_size == 1)
    for ours, theirs in zip(demos, again, strict=True):
        assert (ours.task, ours.success, ours.n_steps) == (theirs.task, theirs.success, theirs.n_steps)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.chunk_lengths, theirs.chunk_lengths)
        for key in OBSERVATIONS:
            a, b = ours.observations[key], theirs.observations[key]
            assert a.dtype == b.dtype and a.shape == b.shape
            # Videos are lossy: 4 of 255 at most on average
            tolerance = 4 if use_videos and key.startswith("image") else 0
            assert np.abs(a.astype(float) - b).mean(axis=tuple(range(1, a.ndim))).max() <= tolerance, key
    assert (tmp_path / "set/videos").exists() is use_videos
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_pixel_keeps_its_colour_in_a_video(tmp_path):
    demo = demonstration(3)
    demo.observations["image"][:] = (60, 120, 60)
    demo.observations["image"][:, 7, 9] = (255, 0, 0)
    write_lerobot(tmp_path / "set", [demo], fps=10)
    pixel = read(tmp_path / "set", every_step=True)[0].observations["image"][:, 7, 9].astype(int)
    assert np.abs(pixel - (255, 0, 0)).max() < 60


def test_metadata_say_what_is_there(tmp_path):
    demos = [demonstration(5, seed=0), demonstration(7, seed=1, success=False)]
    write_lerobot(tmp_path / "set", demos, fps=10)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 10)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 12, 2)
    assert {name: (feature["dtype"], feature["shape"]) for name, feature in info["features"].items()} == {
        "observation.image": ("video", [15, 32, 3]),
        "observation.images.wrist": ("video", [15, 32, 3]),
        "observation.state": ("float32", [4]),
        "action": ("float32", [3]),
        "next.success": ("bool", [1]),
        "next.reward": ("float32", [1]),
        "timestamp": ("float32", [1]),
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), ("int64", [1])),
    }
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    assert table["index"] == [*range(12)] and table["frame_index"] == [*range(5), *range(7)]
    assert table["next.success"] == [False] * 4 + [True] + [False] * 7
    assert table["next.reward"] == [*range(5), *range(7)]
    np.testing.assert_allclose(table["timestamp"], np.array(table["frame_index"]) / 10, rtol=1e-6)
    episodes = pq.read_table(tmp_path / "set/meta/episodes").to_pylist()
    assert [(row["tasks"], row["length"], row["dataset_from_index"]) for row in episodes] == [
        (["push"], 5, 0),
        (["pick"], 7, 5),
    ]
    assert episodes[1]["videos/observation.image/from_timestamp"] == 0.5
    assert pq.read_table(tmp_path / "set/meta/tasks.parquet").to_pylist() == [
        {"task_index": 0, "task": "push"},
        {"task_index": 1, "task": "pick"},
    ]


def test_statistics_are_those_of_all_frames(tmp_path):
    demos = [demonstration(5, seed=0), demonstration(7, seed=1), demonstration(6, seed=2)]
    write_lerobot(tmp_path / "set", demos, fps=10)
    statistics = json.loads((tmp_path / "set/meta/stats.json").read_text())
    states = np.concatenate([demo.observations["state"] for demo in demos])
    pictures = np.concatenate([demo.observations["image"] for demo in demos]) / 255
    for name, values, axes in (("state", states, 0), ("image", pictures, (0, 1, 2))):
        found = statistics[f"observation.{name}"]
        for kind in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(np.ravel(found[kind]), getattr(np, kind)(values, axis=axes), rtol=1e-5)
        assert found["count"] == [18] and all(
            a <= b for a, b in zip(np.ravel(found["q01"]), np.ravel(found["q99"]), strict=True)
        )
    assert np.shape(statistics["observation.image"]["mean"]) == (3, 1, 1)
    episodes = pq.read_table(tmp_path / "set/meta/episodes").to_pylist()
    np.testing.assert_allclose(episodes[1]["stats/action/mean"], demos[1].actions[:, 0].mean(axis=0), rtol=1e-5)


def test_statistics_of_chunks_are_those_of_executed_actions(tmp_path):
    demo = demonstration(3, chunk_size=4)  # of the last chunk three are executed
    write_lerobot(tmp_path / "set", [demo], fps=10)
    found = json.loads((tmp_path / "set/meta/stats.json").read_text())["action"]
    executed = np.concatenate([demo.actions[0], demo.actions[1], demo.actions[2, :3]])
    np.testing.assert_allclose(found["mean"], executed.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["max"], executed.max(axis=0), rtol=1e-5)


def test_large_datasets_are_spread_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_DATA_MEGABYTES", 0)
    monkeypatch.setattr(writer, "_VIDEO_MEGABYTES", 0)
    monkeypatch.setattr(writer, "_CHUNKS_SIZE", 2)
    demos = [demonstration(5 + seed, seed=seed) for seed in range(3)]
    write_lerobot(tmp_path / "set", demos, fps=10)
    for suffix, folder in (("parquet", "data"), ("mp4", "videos/observation.images.wrist")):
        files = sorted(
            path.relative_to(tmp_path / "set" / folder).as_posix() for path in (tmp_path / "set" / folder).glob("*/*")
        )
        assert files == [f"chunk-00{chunk}/file-00{file}.{suffix}" for chunk, file in ((0, 0), (0, 1), (1, 0))]
    for ours, theirs in zip(demos, read(tmp_path / "set", every_step=True), strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        assert np.abs(ours.observations["image"].astype(int) - theirs.observations["image"]).mean() < 4


def test_features_can_have_other_names(tmp_path):
    keys = {"image": "observation.images.front", "action": "actions"}
    write_lerobot(tmp_path / "set", [demonstration(5)], fps=10, keys=keys)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert {"observation.images.front", "actions"} < info["features"].keys()
    assert len(read(tmp_path / "set", keys=keys, every_step=True)[0]) == 5


def test_a_dataset_of_chunks_has_no_single_steps_and_no_other_chunks(tmp_path):
    write_lerobot(tmp_path / "set", [demonstration(5, chunk_size=4)], fps=2)
    with pytest.raises(ValueError, match="the dataset has a frame for every chunk only, read it with every_step=False"):
        read_lerobot(tmp_path / "set", OBSERVATIONS, CHUNKS, every_step=True)
    with pytest.raises(ValueError, match=r"'action' is of shape \(4, 3\), the environment's 'action' of \(8, 3\)"):
        read_lerobot(tmp_path / "set", OBSERVATIONS, spaces.Box(-1, 1, (8, 3)))
    assert len(read(tmp_path / "set", fps=80)) == 1, "steps and chunks are not held against each other"


def test_refusals_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="There are no demonstrations"):
        write_lerobot(tmp_path / "set", [], fps=10)
    with pytest.raises(ValueError, match="fps must be above 0, got 0"):
        write_lerobot(tmp_path / "set", [demonstration(3)], fps=0)
    with pytest.raises(ValueError, match=r"must have the same features, .*action float32\[3\].*action float32\[4, 3\]"):
        write_lerobot(tmp_path / "set", [demonstration(3), demonstration(3, chunk_size=4)], fps=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image": "observation.images.wrist"}, r"each needs a feature of its own .*, got \['observation.images.wrist'\]"),
        ({"state": "action"}, r"a feature of its own .*, got \['action'\]"),
        ({"state": "timestamp"}, r"a feature of its own that is none of .*timestamp, got \['timestamp'\]"),
        (
            {"imag": "observation.images.top"},
            r"keys names features for \['imag'\], but there are only image, image_wrist, state",
        ),
    ],
)
def test_names_of_features_lose_nothing(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        write_lerobot(tmp_path / "set", [demonstration(3)], fps=10, keys=keys)
    assert list(tmp_path.iterdir()) == []


def test_an_instruction_that_changes_is_refused(tmp_path):
    demo = demonstration(3)
    demo.observations["instruction"][2] = encode_instruction("pull", 16)
    with pytest.raises(ValueError, match="instruction of episode 0 changes from 'push' to 'pull' in frame 2"):
        write_lerobot(tmp_path / "set", [demo], fps=10)


def test_pictures_may_have_channels_first(tmp_path):
    last, first = demonstration(3), demonstration(3)
    for key in ("image", "image_wrist"):
        first.observations[key] = np.moveaxis(first.observations[key], -1, 1)
    write_lerobot(tmp_path / "set", [first, last], fps=10, use_videos=False)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"]["observation.image"]["dtype"] == "image"
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, *SIZE), np.uint8)})
    for demo in read_lerobot(tmp_path / "set", space, CHUNKS, every_step=True):
        np.testing.assert_array_equal(demo.observations["image"], first.observations["image"])


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="full' exists already: give a new or empty folder"):
        write_lerobot(tmp_path / "full", [demonstration(3)], fps=10)
    assert write_lerobot(tmp_path / "empty", [demonstration(3)], fps=10) == 1
    assert len(read(tmp_path / "empty")) == 1

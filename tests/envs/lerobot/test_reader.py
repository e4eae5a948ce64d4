import json
import shutil
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces

from sb3_vla_envs import decode_instruction, load_demonstrations, read_lerobot, save_demonstrations

PICTURE = spaces.Box(0, 255, (64, 80, 3), np.uint8)
STATE = spaces.Box(-np.inf, np.inf, (4,), np.float32)
INSTRUCTION = spaces.Box(0, 255, (24,), np.uint8)
OBSERVATIONS = spaces.Dict({"image_top": PICTURE, "image_wrist": PICTURE, "state": STATE, "instruction": INSTRUCTION})
CHUNKS = spaces.Box(-1, 1, (4, 3), np.float32)
NAMES = {"push the cube": "push", "pick up the ball": "pick"}
V3_VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


def read(dataset, observations=OBSERVATIONS, chunks=CHUNKS, **options):
    return list(read_lerobot(dataset.folder, observations, chunks, **options))


def only(*keys):
    return spaces.Dict({key: OBSERVATIONS[key] for key in keys})


def assert_same_up_to_the_codec(decoded, frames):
    """Videos are lossy: 4 of 255 at most on average, while the next frame is 10 away."""
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - frames).mean(axis=(1, 2, 3)).max() < 4


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_single_steps_hold_what_each_frame_of_the_dataset_holds(make_dataset, version):
    dataset = make_dataset(version)
    demos = read(dataset, tasks=NAMES, every_step=True, fps=10)
    assert [(demo.task, len(demo), demo.success) for demo in demos] == [
        ("push", 5, True),
        ("pick", 6, True),
        ("push", 7, True),
    ]
    for number, demo in enumerate(demos):
        assert demo.observations.keys() == OBSERVATIONS.spaces.keys()
        assert_same_up_to_the_codec(demo.observations["image_top"], dataset.video[number])
        np.testing.assert_array_equal(demo.observations["image_wrist"], dataset.pictures[number])
        np.testing.assert_array_equal(demo.observations["state"], dataset.states[number])
        np.testing.assert_array_equal(demo.actions, dataset.actions[number][:, None])
        assert demo.actions.dtype == demo.observations["state"].dtype == np.float32
        assert list(demo.chunk_lengths) == [1] * len(demo)
    assert decode_instruction(demos[1].observations["instruction"][0]) == "pick up the ball"


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_chunks_follow_one_another_and_the_last_one_is_padded(make_dataset, version):
    dataset = make_dataset(version)
    demo = read(dataset)[1]
    assert list(demo.chunk_lengths) == [4, 2] and demo.actions.shape == (2, 4, 3)
    np.testing.assert_array_equal(demo.actions[0], dataset.actions[1][:4])
    np.testing.assert_array_equal(demo.actions[1], np.concatenate([dataset.actions[1][4:], np.zeros((2, 3))]))
    np.testing.assert_array_equal(demo.observations["state"], dataset.states[1][[0, 4]])
    np.testing.assert_array_equal(demo.observations["image_wrist"], dataset.pictures[1][[0, 4]])
    assert_same_up_to_the_codec(demo.observations["image_top"], dataset.video[1][[0, 4]])


def test_without_names_of_tasks_the_texts_are_the_names(make_dataset):
    assert [demo.task for demo in read(make_dataset(), only("state"))] == [
        "push the cube",
        "pick up the ball",
        "push the cube",
    ]


def test_episodes_of_other_tasks_are_left_out_and_the_instruction_can_be_another(make_dataset):
    dataset = make_dataset()
    (demo,) = read(dataset, tasks={"pick up the ball": "pick"}, instructions={"pick": "grasp it"})
    np.testing.assert_array_equal(demo.observations["state"], dataset.states[1][[0, 4]])
    assert decode_instruction(demo.observations["instruction"][1]) == "grasp it"


def test_instructions_for_tasks_that_are_not_read_are_refused(make_dataset):
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"for the tasks \['push'\], but those read are 'pick up the ball', 'push the cube'"):
        read(dataset, instructions={"push": "shove it"})
    with pytest.raises(ValueError, match=r"for the tasks \['pcik'\], but those read are 'pick'"):
        read(dataset, tasks={"pick up the ball": "pick"}, instructions={"pcik": "grasp it"})


def test_keys_say_where_an_observation_is(make_dataset):
    dataset = make_dataset()
    demo = read(dataset, spaces.Dict({"image": PICTURE}), keys={"image": "observation.images.wrist"})[0]
    np.testing.assert_array_equal(demo.observations["image"], dataset.pictures[0][[0, 4]])


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_an_episode_ends_with_its_first_success_and_fails_without_one(make_dataset, version):
    dataset = make_dataset(version, succeeds_at=5)
    demos = read(dataset, every_step=True)
    assert [(len(demo), demo.success) for demo in demos] == [(5, False), (6, True), (6, True)]
    np.testing.assert_array_equal(demos[2].actions[:, 0], dataset.actions[2][:6])
    assert_same_up_to_the_codec(demos[2].observations["image_top"], dataset.video[2][:6])


def test_what_is_not_asked_for_is_not_opened(make_dataset):
    dataset = make_dataset()
    (dataset.folder / V3_VIDEO).write_bytes(b"")
    assert len(read(dataset, only("state", "image_wrist"))) == 3
    (dataset.folder / "data/chunk-000/file-001.parquet").unlink()
    assert len(read(dataset, only("state"), tasks={"pick up the ball": "pick"})) == 1


def test_pictures_are_scaled_if_that_is_wanted(make_dataset):
    small = spaces.Dict({key: spaces.Box(0, 255, (32, 40, 3), np.uint8) for key in ("image_top", "image_wrist")})
    dataset = make_dataset()
    demo = read(dataset, small, resize_pictures=True)[0]
    averages = dataset.video[0][[0, 4]].reshape(2, 32, 2, 40, 2, 3).mean(axis=(2, 4))
    assert np.abs(demo.observations["image_top"] - averages).mean() < 4
    assert demo.observations["image_wrist"].shape == (2, 32, 40, 3)


def test_a_file_takes_a_dataset_as_it_is_read_an_episode_at_a_time(make_dataset, tmp_path):
    dataset = make_dataset(lengths=(20,) * 16)
    read(dataset)  # what libraries load once
    n_bytes = sum(episode.nbytes for episode in dataset.video) * 2  # two cameras
    tracemalloc.start()
    try:
        save_demonstrations(tmp_path / "demos.npz", read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS, every_step=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * n_bytes
    loaded = load_demonstrations(tmp_path / "demos.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos.npz", "v3.0"]
    for ours, theirs in zip(read(dataset, every_step=True), loaded, strict=True):
        for key in OBSERVATIONS:
            np.testing.assert_array_equal(ours.observations[key], theirs.observations[key])


def test_a_needed_camera_that_is_missing(make_dataset):
    dataset = make_dataset()
    with pytest.raises(
        ValueError,
        match=r"info\.json has no camera 'observation\.image' for 'image', only observation\.images\.top, "
        r"observation\.images\.wrist: say which it is \(keys\)",
    ):
        read_lerobot(dataset.folder, spaces.Dict({"image": PICTURE}), CHUNKS)
    with pytest.raises(ValueError, match=r"info\.json has no feature 'observation\.environment_state' for 'privileged'"):
        read_lerobot(dataset.folder, spaces.Dict({"privileged": STATE}), CHUNKS)
    with pytest.raises(ValueError, match=r"keys names features for \['gripper'\], but there are only state, action"):
        read_lerobot(dataset.folder, only("state"), CHUNKS, keys={"gripper": "observation.state"})


def test_another_frame_rate(make_dataset):
    with pytest.raises(ValueError, match=r"info\.json says 10 frames a second, the environment takes 80 steps.*say fps=10"):
        read_lerobot(make_dataset().folder, OBSERVATIONS, CHUNKS, fps=80)


def test_a_video_of_another_frame_rate(make_dataset):
    dataset = make_dataset()
    info = dataset.folder / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fps": 15}))
    with pytest.raises(ValueError, match=r"file-000\.mp4 has no frame at 0\.067 s, .*not the 15 a second"):
        read(dataset, every_step=True)


@pytest.mark.parametrize(
    ("observations", "chunks", "message"),
    [
        (
            {"state": spaces.Box(-1, 1, (5,))},
            CHUNKS,
            r"'observation\.state' is of shape \(4,\), the environment's 'state' of \(5,\)",
        ),
        ({"state": STATE}, spaces.Box(-1, 1, (4, 7)), r"'action' is of shape \(3,\), the environment's 'action' of \(7,\)"),
        ({"image_top": STATE}, CHUNKS, r"'image_top' is pictures, .*give the spaces of the environment itself"),
    ],
)
def test_wrong_dimensions_are_seen_at_once(make_dataset, observations, chunks, message):
    with pytest.raises(ValueError, match=message):
        read_lerobot(make_dataset().folder, spaces.Dict(observations), chunks)


@pytest.mark.parametrize(
    ("observations", "chunks", "error", "message"),
    [
        (PICTURE, CHUNKS, TypeError, "observation_space must be a Dict, as that of make_vla_env"),
        (
            only("state"),
            spaces.Discrete(3),
            TypeError,
            r"datasets hold arrays, but 'action' is of the space Discrete\(3\)",
        ),
        (only("state"), spaces.Box(-1, 1, (3,)), ValueError, r"action_space must be of chunks, \(h, d\)"),
    ],
)
def test_spaces_of_other_kinds(make_dataset, observations, chunks, error, message):
    with pytest.raises(error, match=message):
        read_lerobot(make_dataset().folder, observations, chunks)


def test_one_feature_can_be_two_observations(make_dataset):
    demo = read(make_dataset(), spaces.Dict({"a": STATE, "b": STATE}), keys={key: "observation.state" for key in "ab"})[0]
    np.testing.assert_array_equal(demo.observations["a"], demo.observations["b"])


def test_pictures_of_another_size(make_dataset):
    dataset, other = make_dataset(), spaces.Box(0, 255, (32, 32, 3), np.uint8)
    for key, place in (
        ("image_top", r"file-000\.mp4"),
        ("image_wrist", r"file-000\.parquet, column 'observation\.images\.wrist'"),
    ):
        with pytest.raises(ValueError, match=rf"{place} holds pictures of 64x80, the environment's are of 32x32: .*resize"):
            read(dataset, spaces.Dict({key: other}))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_truncated_video(make_dataset, kept):
    dataset = make_dataset()
    path = dataset.folder / V3_VIDEO
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"file-000\.mp4 is truncated, or no video"):
        read(dataset)


def test_a_video_that_ends_too_early(make_dataset):
    dataset = make_dataset("v2.1")
    folder = dataset.folder / "videos/chunk-000/observation.images.top"
    shutil.copy(folder / "episode_000000.mp4", folder / "episode_000001.mp4")
    with pytest.raises(ValueError, match=r"000001\.mp4 is truncated: a frame at 0\.500 s is missing, its last is at 0\.4"):
        read(dataset, every_step=True)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_missing_files_are_named(make_dataset, version):
    dataset = make_dataset(version)
    for pattern in ("videos/**/*.mp4", "data/**/*.parquet", "meta/episodes*", "meta/info.json"):
        path = min(dataset.folder.glob(pattern))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{path.name} (is missing|holds no parquet file): "):
            read(dataset)


def test_damaged_and_incomplete_files_are_named(make_dataset):
    dataset = make_dataset()
    path = dataset.folder / "data/chunk-000/file-000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"file-000\.parquet is truncated or damaged"):
        read(dataset)
    path.write_bytes(whole)
    pd.read_parquet(path).iloc[:8].to_parquet(path)
    with pytest.raises(ValueError, match=r"file-000\.parquet has 3 frames of episode 1, meta says 6"):
        read(dataset)
    pd.read_parquet(path).iloc[:5].to_parquet(path)
    with pytest.raises(ValueError, match=r"file-000\.parquet lacks episode 1"):
        read(dataset)
    pd.read_parquet(path).drop(columns="action").to_parquet(path)
    with pytest.raises(ValueError, match=r"file-000\.parquet lacks the columns \['action'\]"):
        read(dataset)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_episodes_that_are_not_listed_are_noticed(make_dataset, version):
    dataset = make_dataset(version)
    if version == "v3.0":
        path = dataset.folder / "meta/episodes/chunk-000/file-000.parquet"
        pd.read_parquet(path).iloc[:2].to_parquet(path)
    else:
        path = dataset.folder / "meta/episodes.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match=r"meta lists 2 episodes, .*info\.json counts 3: a file is missing or truncated"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS)


def test_a_number_that_is_none_is_named_with_its_file(make_dataset):
    dataset = make_dataset()
    path = dataset.folder / "data/chunk-000/file-001.parquet"
    table = pd.read_parquet(path)
    table.at[2, "observation.state"] = np.array([0, np.nan, 0, 0], np.float32)
    table.to_parquet(path)
    with pytest.raises(ValueError, match=r"file-001\.parquet, episode 2: 'state' .* must be finite"):
        read(dataset, every_step=True)


def test_other_formats_and_tasks_that_are_not_there(make_dataset, tmp_path):
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"v3\.0 has no episode of these tasks; .*'pick up the ball', 'push the cube'"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS, tasks={"open the door": "door"})
    info = dataset.folder / "meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    with pytest.raises(ValueError, match=r"info\.json is of format v1\.6, this sb3-vla reads v2\.1 and v3\.0"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS)
    info.write_text("{")
    with pytest.raises(ValueError, match=r"info\.json is damaged, or no description of a LeRobot dataset"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS)
    with pytest.raises(FileNotFoundError, match=r"info\.json is missing: give the folder of a LeRobot dataset"):
        read_lerobot(tmp_path, OBSERVATIONS, CHUNKS)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize(
    ("path", "message"),
    [("/etc/{0}.parquet", "can't be read"), ("{", "can't be read"), ("/etc/x", "leads out"), ("../x.parquet", "leads out")],
)
def test_names_of_files_that_lead_elsewhere_or_nowhere(make_dataset, version, path, message):
    dataset = make_dataset(version)
    info = dataset.folder / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "data_path": path}))
    with pytest.raises(ValueError, match=rf"info\.json: data_path .*{message}"):
        read(dataset, every_step=True)


def test_an_episode_of_several_tasks_is_refused(make_dataset):
    dataset = make_dataset()
    path = dataset.folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pd.read_parquet(path)
    table.at[1, "tasks"] = ["push the cube", "pick up the ball"]
    table.to_parquet(path)
    with pytest.raises(ValueError, match="episode 1 is of 2 tasks, push the cube, pick up the ball"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS)


@pytest.mark.parametrize("library", ["pyarrow.parquet", "av"])
def test_missing_libraries_name_the_extra(make_dataset, monkeypatch, library):
    dataset = make_dataset()
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=rf"LeRobot datasets need {library.split('.')[0]}: pip install 'sb3-vla\[lerobot\]'"):
        read_lerobot(dataset.folder, OBSERVATIONS, CHUNKS)

import numpy as np
import pytest

from sb3_vla_envs import Camera, FetchEnv, SceneRenderer
from sb3_vla_envs.fetch.tasks import TASKS

CAMERAS = [Camera("scene", 96, 96), Camera("side", 96, 96)]


def is_red(picture):
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return (red > 90) & (green < 60) & (blue < 60)


def is_black(picture):
    return (picture.astype(int).max(axis=2) < 70) & (picture.min(axis=2) > 10)  # nothing at all is 0


def place_in_picture(env, camera, point):
    """Row and column at which a point of the scene shall appear, by the camera's geometry."""
    camera_id = env.model.camera(camera.name).id
    right, up, back = (point - env.data.cam_xpos[camera_id]) @ env.data.cam_xmat[camera_id].reshape(3, 3)
    scale = camera.height / 2 / np.tan(np.radians(env.model.cam_fovy[camera_id]) / 2) / -back
    return camera.height / 2 - up * scale, camera.width / 2 + right * scale


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quality", ["fast", "plain"])
def test_goal_marker_shows_where_the_goal_is_in_one_view_at_least(task, quality):
    env = FetchEnv(task, n_goals=30, goal_order="sequential")
    env.reset()
    renderer = SceneRenderer(env.model, CAMERAS, quality)
    visible = []
    for _ in range(30):
        seen = env.reset()[0]["privileged"]
        shown = []
        for index, camera in enumerate(CAMERAS):
            rows, columns = np.nonzero(is_red(renderer.render(env.data, index)))
            row, column = place_in_picture(env, camera, seen[28:31])
            assert 2 < row < 94 and 2 < column < 94  # whole and inside both pictures
            near = (np.abs(rows - row) < 7) & (np.abs(columns - column) < 7)
            shown.append(near.sum())
        visible.append(shown)
    visible = np.array(visible)
    # A ball of 7 cm covers some 80 pixels (30 in slide's wider view), unless the arm or the block stands before it.
    assert (visible.max(axis=1) >= 20).mean() >= 0.95
    assert np.median(visible) >= 25


@pytest.mark.parametrize("task", [task for task, facts in TASKS.items() if facts.has_object])
def test_block_shows_where_it_is(task):
    env = FetchEnv(task, n_goals=30, goal_order="sequential")
    env.reset()
    renderer = SceneRenderer(env.model, CAMERAS, "fast")
    visible = []
    for _ in range(30):
        seen = env.reset()[0]["privileged"]
        shown = []
        for index, camera in enumerate(CAMERAS):
            row, column = place_in_picture(env, camera, seen[3:6])
            assert 3 < row < 93 and 3 < column < 93
            black = is_black(renderer.render(env.data, index))
            shown.append(black[int(row) - 3 : int(row) + 4, int(column) - 3 : int(column) + 4].sum())
        visible.append(shown)
    assert (np.max(visible, axis=1) >= 9).mean() >= 0.95


def test_marker_moves_with_the_goal_alone():
    env = FetchEnv("FetchReach-v4", n_goals=2)
    env.reset(options={"goal_index": 0})
    renderer = SceneRenderer(env.model, CAMERAS)
    first = renderer.render(env.data)
    env.reset(options={"goal_index": 1})
    changed = (renderer.render(env.data) != first).any(axis=2)
    assert 0 < changed.sum() < 100
    env.reset(options={"goal_index": 0})
    np.testing.assert_array_equal(renderer.render(env.data), first)


def test_drawing_changes_nothing_in_the_simulation():
    env = FetchEnv("FetchPush-v4")
    env.reset(seed=0)
    before = [array.copy() for array in (env.data.qpos, env.data.qvel, env.data.qacc_warmstart)]
    SceneRenderer(env.model, CAMERAS).render(env.data)
    np.testing.assert_equal([env.data.qpos, env.data.qvel, env.data.qacc_warmstart], before)


def test_film_frames_are_pictures_of_the_scene():
    env = FetchEnv("FetchReach-v4,FetchSlide-v4", render_mode="rgb_array", task_order="round_robin")
    for _ in range(2):
        env.reset(options={"goal_index": 0})  # some others are behind the arm, seen from here
        frame = env.render()
        assert frame.shape == (240, 240, 3) and frame.dtype == np.uint8 and is_red(frame).sum() > 30
    assert env.metadata["render_fps"] == 25

import gc
import random
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from sb3_vla_envs import Camera, MetaWorldEnv, SceneRenderer, make_vla_env
from sb3_vla_envs.mujoco import rendering
from sb3_vla_envs.mujoco.gl_context import SharedGLContext, shared_gl_context

# A camera before a red ball on the left, a green one on the right, a blue one above, each a third of the picture away.
SCENE = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/><global offwidth="32" offheight="32"/></visual>
  <worldbody>
    <geom type="sphere" size=".2" pos="-1 3 0" rgba="1 0 0 1"/>
    <geom type="sphere" size=".2" pos="1 3 0" rgba="0 1 0 1"/>
    <geom type="sphere" size=".2" pos="0 3 1" rgba="0 0 1 1"/>
    <camera name="upright" pos="0 0 0" xyaxes="1 0 0 0 0 1" fovy="60"/>
    <camera name="hanging" pos="0 0 0" xyaxes="-1 0 0 0 0 -1" fovy="60"/>
  </worldbody>
</mujoco>
"""

# Freeing an OSMesa context corrupts every other of the process, so what a test creates beside ours must outlive the tests.
_ALIVE: list[SharedGLContext] = []


@pytest.fixture
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def where(picture, channel):
    """Mean row and column, in -1 (top, left) .. 1, of the pixels of one pure colour."""
    others = [other for other in range(3) if other != channel]
    rows, columns = np.nonzero((picture[..., channel] > 150) & (picture[..., others].max(axis=-1) < 60))
    height, width, _ = picture.shape
    return 2 * rows.mean() / (height - 1) - 1, 2 * columns.mean() / (width - 1) - 1


@pytest.mark.parametrize("camera", ["upright", "hanging"])
@pytest.mark.parametrize("quality", ["fast", "plain", "full"])
def test_pictures_are_upright_and_not_mirrored(scene, camera, quality):
    model, data = scene
    picture = SceneRenderer(model, [Camera(camera, 65, 65)], quality).render(data)
    assert picture.shape == (65, 65, 3) and picture.dtype == np.uint8
    # 1 / 3 of the tangent, of which the picture shows tan(30 degrees).
    offset = 1 / 3 / np.tan(np.radians(30))
    np.testing.assert_allclose(where(picture, 0), [0, -offset], atol=0.05)
    np.testing.assert_allclose(where(picture, 1), [0, offset], atol=0.05)
    np.testing.assert_allclose(where(picture, 2), [-offset, 0], atol=0.05)


def test_field_of_view_and_size_are_the_cameras_and_the_model_stays_as_it_was(scene):
    model, data = scene
    renderer = SceneRenderer(model, [Camera("upright", 40, 80, fovy=90.0), Camera("upright", 300, 200)])
    picture = renderer.render(data, 0)
    assert picture.shape == (40, 80, 3)
    np.testing.assert_allclose(where(picture, 2), [-1 / 3, 0], atol=0.06)
    np.testing.assert_allclose(where(picture, 1), [0, 1 / 3 / 2], atol=0.06)  # twice as wide as high
    assert renderer.render(data, 1).shape == (300, 200, 3)  # larger than the model's off-screen buffer
    assert list(model.cam_fovy) == [60, 60]
    assert set(model.geom_group) == {0}


def test_unknown_camera_and_quality_are_named_with_what_there_is(scene):
    model, _ = scene
    with pytest.raises(ValueError, match="Unknown camera 'side', this scene has 'upright', 'hanging'"):
        SceneRenderer(model, [Camera("side")])
    with pytest.raises(ValueError, match="quality must be 'fast' or 'plain' or 'full', got 'best'"):
        SceneRenderer(model, [Camera("upright")], "best")


@pytest.mark.parametrize("task", ["window-open-v3", "drawer-close-v3"])
@pytest.mark.parametrize(
    "camera", [Camera("corner4", 96, 96, fovy=42.0), Camera("gripperPOV", 64, 64), Camera("gripperPOV", 30, 90)]
)
def test_leaving_out_what_is_not_in_view_changes_no_pixel(task, camera, monkeypatch):
    env = MetaWorldEnv(task, n_goals=1)
    env.reset(seed=0)
    renderer = SceneRenderer(env.model, [camera])
    n_left_out = 0

    def count(*arguments):
        nonlocal n_left_out
        hidden = original(*arguments)
        n_left_out += hidden.sum()
        return hidden

    original = rendering.outside_view
    monkeypatch.setattr(rendering, "outside_view", count)
    for _ in range(3):
        for _ in range(10):
            env.step(env.expert_action())
        picture = renderer.render(env.data)
        with monkeypatch.context() as patch:
            patch.setattr(rendering, "outside_view", lambda model, *_: np.zeros(model.ngeom, dtype=bool))
            np.testing.assert_array_equal(picture, renderer.render(env.data))
    assert n_left_out > 0


# In a process of its own: MetaWorld's renderer frees its OpenGL context at the end, which would spoil the pictures of others.
METAWORLD_AGAINST_FULL_QUALITY = """
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from sb3_vla_envs import Camera, SceneRenderer
for task, camera in [
    ("window-open-v3", Camera("corner4", 96, 96)),
    ("push-v3", Camera("gripperPOV", 64, 64)),
    ("soccer-v3", Camera("topview", 60, 120)),
]:
    arguments = {"camera_name": camera.name, "height": camera.height, "width": camera.width}
    env = ALL_V3_ENVIRONMENTS[task](render_mode="rgb_array", **arguments)
    globals()["kept_" + camera.name] = env
    env._set_task_called, env._freeze_rand_vec = True, False
    env.seed(0)
    env.reset()
    for _ in range(5):
        env.step(np.array([1, 1, -1, 1], dtype=np.float32))
    theirs = env.render()
    assert theirs.shape == (camera.height, camera.width, 3) and theirs.std() > 20
    ours = SceneRenderer(env.model, [camera], "full").render(env.data)
    print(camera.name, np.array_equal(ours, theirs), np.array_equal(ours, theirs[::-1, ::-1]))
"""


def test_full_quality_is_the_picture_of_metaworld_turned_upright():
    run = subprocess.run([sys.executable, "-c", METAWORLD_AGAINST_FULL_QUALITY], capture_output=True, text=True)
    # Equal as it is, or turned by 180 degrees where MetaWorld mounts the camera upside down.
    expected = ["corner4 False True", "gripperPOV True False", "topview True False"]
    assert run.stdout.splitlines() == expected, run.stderr


def picture_of(env, seed):
    return env.reset(seed=seed)[0]["image"]


def test_many_environments_in_any_order_of_life_each_draw_their_own_picture():
    gc.collect()
    gc.freeze()  # what else has been made: the collections below are to be quick
    try:
        draw_in_any_order_of_life()
    finally:
        gc.unfreeze()


def draw_in_any_order_of_life():
    tasks = ["window-open-v3", "drawer-close-v3", "button-press-topdown-v3", "push-v3", "door-open-v3", "window-close-v3"]
    arguments = {"n_goals": 5, "cameras": ["corner4"]}
    fresh = {}
    for task in tasks:
        env = make_vla_env(task, **arguments)
        fresh[task] = picture_of(env, seed=1)
        env.close()
        del env
        gc.collect()
    assert all(np.abs(fresh[a].astype(int) - fresh[b]).mean() > 1 for a in tasks for b in tasks if a < b)

    rng = random.Random(0)
    alive = []
    for _ in range(40):
        task = rng.choice(tasks)
        alive.append((task, make_vla_env(task, quality=rng.choice(["fast", "fast", "full"]), **arguments)))
        if len(alive) > 6:
            _, env = alive.pop(rng.randrange(len(alive)))
            if rng.random() < 0.5:
                env.close()
            del env
            gc.collect()
        task, env = rng.choice(alive)
        if env.get_wrapper_attr("quality") == "fast":
            np.testing.assert_allclose(picture_of(env, seed=1), fresh[task], atol=2)


def picture_in(content, camera="<camera name='a' pos='0 -3 1' xyaxes='1 0 0 0 .3 1'/>", quality="plain", **view):
    """What a camera sees of a scene."""
    world = f"<mujoco><worldbody><light pos='0 -2 3'/>{camera}</worldbody>{content}</mujoco>"
    model = mujoco.MjModel.from_xml_string(world)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return SceneRenderer(model, [Camera("a", 64, 64, **view)], quality).render(data)


BALL = "<worldbody><geom size='.1'/></worldbody>"
CLOTH = """<worldbody><flexcomp name="cloth" type="grid" count="{0} {0} 1" spacing=".2 .2 .2" dim="2" mass="1" radius=".01"
    pos="0 0 .5" rgba="1 0 0 1"><contact selfcollide="none"/></flexcomp></worldbody>"""
HILL = """<asset><hfield name="hill" nrow="3" ncol="3" elevation="0 0 0 0 1 0 0 0 0" size="{0} {0} .5 .1"/></asset>
    <worldbody><geom type="hfield" hfield="hill" rgba="1 0 0 1"/></worldbody>"""


@pytest.mark.parametrize("contents", [[BALL, CLOTH.format(3), CLOTH.format(12)], [HILL.format(0.9), HILL.format(0.3)]])
def test_a_scene_with_cloth_or_terrain_is_drawn_as_it_is_alone(contents, monkeypatch):
    pictures = [picture_in(content) for content in contents]
    for content, picture in zip(contents, pictures, strict=True):
        _ALIVE.append(SharedGLContext())
        with monkeypatch.context() as alone:
            alone.setattr(rendering, "shared_gl_context", lambda: _ALIVE[-1])
            np.testing.assert_array_equal(picture, picture_in(content))
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("lens", ["orthographic='true' fovy='2'", "sensorsize='.02 .02' focal='.02 .02' principal='.005 0'"])
def test_views_that_are_not_centred_cones_lose_nothing(lens):
    camera = f"<camera name='a' pos='0 -3 0' xyaxes='1 0 0 0 0 1' resolution='64 64' {lens}/>"
    balls = "".join(f"<geom size='.1' pos='{x} 0 0' rgba='1 0 0 1'/>" for x in (-0.8, 0.8))
    content = f"<worldbody>{balls}</worldbody>"
    plain, full = (picture_in(content, camera, quality)[..., 0] > 80 for quality in ("plain", "full"))
    assert full.sum() > 10 and abs(int(plain.sum()) - int(full.sum())) <= 4


def test_a_field_of_view_overrules_the_sensor_of_the_model():
    lens = "resolution='64 64' sensorsize='.02 .02' focal='.02 .02'"
    camera = f"<camera name='a' pos='0 -3 0' xyaxes='1 0 0 0 0 1' {lens}/>"
    wide, narrow = (int((picture_in(BALL, camera, fovy=fovy)[..., 0] > 40).sum()) for fovy in (None, 10))
    assert narrow > 4 * wide > 0


def test_environments_with_the_same_scene_share_what_opengl_holds():
    count = len(shared_gl_context()._render_contexts)
    envs = [make_vla_env("plate-slide-v3", n_goals=1) for _ in range(3)]
    for env in envs:
        env.reset(seed=0)
    assert len(shared_gl_context()._render_contexts) == count + 1


def test_another_opengl_context_in_the_process_does_no_harm():
    env = make_vla_env("window-open-v3", n_goals=1, cameras=["corner4"])
    before = picture_of(env, seed=0)
    other = SharedGLContext()
    _ALIVE.append(other)
    other.render_context(env.unwrapped.model, "full").make_current(50, 50)
    np.testing.assert_array_equal(picture_of(env, seed=0), before)

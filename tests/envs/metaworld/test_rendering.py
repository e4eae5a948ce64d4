"""What the fast pictures of all 50 tasks leave out, compared with pictures of MetaWorld's own meshes."""

from collections import Counter

import mujoco
import numpy as np
import pytest

from sb3_vla_envs import Camera, MetaWorldEnv, SceneRenderer, resolve_tasks
from sb3_vla_envs.mujoco.gl_context import shared_gl_context

CAMERAS = [Camera("corner4", 96, 96, fovy=42.0), Camera("gripperPOV", 96, 96)]


@pytest.fixture(autouse=True)
def forget_scenes():
    """What OpenGL holds of 50 scenes takes gigabytes."""
    scenes = shared_gl_context()._render_contexts
    kept = dict(scenes)
    yield
    scenes.clear()
    scenes.update(kept)


def everything(model):
    """A model as the bytes of its file."""
    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content.tobytes()


def pixels_of_each_thing(renderer, data, index):
    """Numbers of pixels by kind and number of geom or site."""
    scene = renderer._context.scene
    flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
    scene.flags[flags] = 1
    picture = renderer.render(data, index).astype(int)
    scene.flags[flags] = 0
    counts = Counter((picture @ [1, 256, 65536] - 1).ravel().tolist())
    things = (scene.geoms[i] for i in range(scene.ngeom))
    return {(thing.objtype, thing.objid): counts[thing.segid] for thing in things if counts[thing.segid]}


def is_robot(model, kind, number):
    body = (model.geom_bodyid if kind == mujoco.mjtObj.mjOBJ_GEOM else model.site_bodyid)[number]
    return model.body_rootid[body] == model.body("base").id


@pytest.mark.parametrize("task", resolve_tasks("MT50"))
def test_fast_picture_shows_what_plain_shows(task):
    env = MetaWorldEnv(task, n_goals=1)
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.expert_action())
    before = everything(env.model)
    fast, plain = SceneRenderer(env.model, CAMERAS), SceneRenderer(env.model, CAMERAS, "plain")
    # Measured: at most 1.30 and 0.37 of 255, 0.88 and 0.04 on average.
    for index, bound in enumerate([1.6, 0.6]):
        difference = np.abs(fast.render(env.data, index).astype(int) - plain.render(env.data, index))
        assert difference.mean() < bound
        in_fast, in_plain = (pixels_of_each_thing(renderer, env.data, index) for renderer in (fast, plain))
        # Whether one or two pixels are covered is a matter of rounding.
        things = [thing for thing, n in in_plain.items() if n > 2 and not is_robot(env.model, *thing)]
        assert things
        assert not {thing: in_plain[thing] for thing in things if in_fast.get(thing, 0) < 0.7 * in_plain[thing]}
    assert everything(env.model) == before


def test_goal_marker_is_seen_in_the_scene_camera():
    """That the test above sees sites at all: push's goal is one."""
    env = MetaWorldEnv("push-v3", n_goals=1)
    env.reset(seed=0)
    in_fast = pixels_of_each_thing(SceneRenderer(env.model, CAMERAS), env.data, 0)
    assert in_fast[mujoco.mjtObj.mjOBJ_SITE, env.model.site("goal").id] >= 2


@pytest.mark.parametrize("quality", ["fast", "plain", "full"])
def test_rendering_leaves_the_physics_untouched(quality):
    def states(render):
        env = MetaWorldEnv("push-v3", n_goals=1)
        env.reset(seed=0)
        renderer = SceneRenderer(env.model, CAMERAS, quality)
        for step in range(20):
            env.step(env.expert_action())
            if render and step % 10 == 0:
                renderer.render(env.data, step // 10)
            yield np.concatenate([env.data.qpos, env.data.qvel, env.data.qacc, env.data.xpos.ravel()]).tobytes()

    assert list(states(render=True)) == list(states(render=False))

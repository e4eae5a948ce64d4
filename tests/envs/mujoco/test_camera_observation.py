import gymnasium as gym
import numpy as np
import pytest

from sb3_vla_envs import Camera, CameraObservation, ChunkedActionWrapper, MetaWorldEnv
from sb3_vla_envs.mujoco.rendering import SceneRenderer


def test_first_camera_is_image_and_the_others_are_named():
    env = CameraObservation(
        MetaWorldEnv("window-open-v3", n_goals=1),
        ["corner4", {"name": "gripperPOV", "height": 32, "width": 48}, Camera("topview")],
    )
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        "image": (96, 96, 3),
        "image_gripperPOV": (32, 48, 3),
        "image_topview": (96, 96, 3),
        "state": (4,),
        "privileged": (40,),
    }
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert all(observation[key].std() > 10 for key in ("image", "image_gripperPOV", "image_topview"))


def test_one_rendering_a_camera_and_chunk(monkeypatch):
    calls = []
    original = SceneRenderer.render
    monkeypatch.setattr(SceneRenderer, "render", lambda self, *args: calls.append(args) or original(self, *args))
    env = CameraObservation(ChunkedActionWrapper(MetaWorldEnv("window-open-v3", n_goals=1), 8), ["corner4", "gripperPOV"])
    env.reset(seed=0)
    assert len(calls) == 2
    for chunk in (1, 2, 3):
        *_, info = env.step(np.zeros((8, 4), dtype=np.float32))
        assert info["chunk_length"] == 8
        assert len(calls) == 2 + 2 * chunk


def test_picture_follows_the_simulation_and_the_task():
    env = CameraObservation(MetaWorldEnv("window-open-v3,drawer-close-v3", n_goals=2), [Camera("corner4", fovy=42)])
    window, _ = env.reset(options={"task": "window-open-v3", "goal_index": 0})
    moved = [env.step(np.array([1, 1, -1, 1]))[0] for _ in range(10)][-1]
    other_goal, _ = env.reset(options={"task": "window-open-v3", "goal_index": 1})
    drawer, _ = env.reset(options={"task": "drawer-close-v3", "goal_index": 0})
    again, _ = env.reset(options={"task": "window-open-v3", "goal_index": 0})
    np.testing.assert_array_equal(window["image"], again["image"])
    for different in (moved, other_goal, drawer):
        assert np.abs(window["image"].astype(int) - different["image"]).mean() > 0.5


def test_unknown_camera_lists_those_of_the_scene():
    with pytest.raises(ValueError, match=r"Unknown camera 'corner5', this scene has 'topview', 'corner',.*'gripperPOV'"):
        CameraObservation(MetaWorldEnv("window-open-v3"), ["corner5"])


def test_observation_that_is_no_dictionary_is_refused():
    with pytest.raises(TypeError, match="Dict observation space, got Box"):
        CameraObservation(gym.make("CartPole-v1"))


def test_models_that_come_and_go_are_not_all_kept(monkeypatch):
    monkeypatch.setattr("sb3_vla_envs.mujoco.camera_observation._MOST_MODELS", 2)
    tasks = ["window-open-v3", "drawer-close-v3", "reach-v3"]
    env = CameraObservation(MetaWorldEnv(tasks, n_goals=1), [Camera("corner4", height=16, width=16)])
    pictures = [env.reset(seed=0, options={"task": task})[0]["image"] for task in tasks * 2]
    assert len(env._renderers) == 2
    for first, again in zip(pictures[:3], pictures[3:], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(pictures[0], pictures[1])
    env.close()

import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla_envs import Camera, Outcome, get_suite
from sb3_vla_envs.mujoco.task_env import MujocoTaskEnv

# MuJoCo puts the scene back to where everything began, which these take for success
SUCCEED_WHEN_RESET = [
    *("door-close-v3", "door-unlock-v3", "drawer-close-v3", "handle-pull-side-v3", "handle-pull-v3"),
    *("plate-slide-back-v3", "window-close-v3"),
]


class Simulator:
    """Stands in for a simulator: notes that it is there, and whether it is closed."""

    def __init__(self, task, built):
        self.model, self.data, self.is_open = f"model of {task}", f"state of {task}", True
        built.append(self)

    def close(self):
        self.is_open = False


class Stub(MujocoTaskEnv[Simulator]):
    video_camera = Camera("corner4")

    def __init__(self):
        box = spaces.Box(-1, 1, (1,))
        super().__init__(get_suite("metaworld"), "push-v3,reach-v3", {"state": box}, box, 0, None, {})
        self.built = []

    def _build_simulator(self):
        return Simulator(self.task, self.built)

    def _begin(self):
        assert self._simulator.is_open

    def _simulate(self, action):
        return Outcome(False, 0.0)

    def _observe(self):
        return {"state": [0]}


def test_one_simulator_a_task_is_built_when_first_drawn_and_kept():
    env = Stub()
    assert not env.built
    for task, n_built in (("push-v3", 1), ("reach-v3", 2), ("push-v3", 2)):
        env.reset(options={"task": task})
        assert (env.model, env.data, len(env.built)) == (f"model of {task}", f"state of {task}", n_built)


def test_closing_lets_go_of_all_simulators_and_a_reset_begins_with_new_ones():
    env = Stub()
    for task in ("push-v3", "reach-v3"):
        env.reset(options={"task": task})
    env.close()
    assert [simulator.is_open for simulator in env.built] == [False, False]
    env.reset(options={"task": "push-v3"})
    assert len(env.built) == 3


@pytest.mark.parametrize("make_task", ["metaworld", "fetch"])
def test_suites_environments_are_such(make_task):
    env = get_suite(make_task).make_simulation(get_suite(make_task).default_tasks)
    assert isinstance(env, MujocoTaskEnv)
    env.reset(seed=0)
    assert env.model.camera(env.video_camera.name).id >= 0


@pytest.mark.parametrize(
    ("suite", "task"),
    [*(("metaworld", task) for task in SUCCEED_WHEN_RESET), ("fetch", "FetchReach-v4"), ("fetch", "FetchPush-v4")],
)
@pytest.mark.parametrize("value", [1e12, np.nan])
def test_an_unstable_simulation_ends_the_episode_as_failed(suite, task, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    env = get_suite(suite).make_simulation([task], reward="dense")
    nothing = np.zeros(4, np.float32)
    env.reset(seed=0)
    assert not env.step(nothing)[2]
    env.data.qvel[:] = value
    observation, reward, terminated, truncated, info = env.step(nothing)
    assert terminated and not truncated and reward == 0 and not info["is_success"] and "steps_to_success" not in info
    assert np.isfinite(observation["state"]).all()
    # The next episode is none of its business
    env.reset()
    assert not env.step(nothing)[2]

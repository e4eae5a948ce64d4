import sys
from types import FunctionType

import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from sb3_vla_envs import MT50, sample_goals
from sb3_vla_envs.metaworld import simulator
from sb3_vla_envs.metaworld.simulator import build_expert, build_simulator

pytestmark = pytest.mark.filterwarnings("ignore:Constant.*may be too high")  # the experts' actions


def build_original(task):
    """MetaWorld's own environment, nothing overridden, with the goal visible."""
    original = ALL_V3_ENVIRONMENTS[task]()
    original._partially_observable = False
    del original.sawyer_observation_space
    original._set_task_called = True
    return original


def reset_to(environment, goal):
    environment._last_rand_vec = goal.copy()
    return environment.reset()[0]


def play_expert(environment, expert, n_steps):
    observation = environment._get_obs()
    for _ in range(n_steps):
        observation, *_ = environment.step(np.clip(expert.get_action(observation), -1, 1))


@pytest.mark.parametrize("task", MT50)
def test_simulator_is_metaworlds_to_the_last_bit(task):
    original, ours = build_original(task), build_simulator(task)
    expert, rng = build_expert(task), np.random.default_rng(0)
    goals = sample_goals(task, "train", 2)
    # The last episode begins like the first, whose beginning is remembered, after the objects were pushed about.
    for goal, noise in ((goals[0], 0.0), (goals[1], 1.0), (goals[0], 0.2)):
        np.testing.assert_array_equal(reset_to(ours, goal), reset_to(original, goal))
        observation = ours._get_obs()
        np.testing.assert_array_equal(observation, original._get_obs())
        for _ in range(28):
            action = np.clip((1 - noise) * expert.get_action(observation) + noise * rng.uniform(-1, 1, 4), -1, 1)
            observation, reward, _, _, info = ours.step(action)
            their_observation, their_reward, _, _, their_info = original.step(action)
            assert observation.dtype == np.float64
            np.testing.assert_array_equal(observation, their_observation)
            assert reward == their_reward
            assert info == their_info
        np.testing.assert_array_equal(ours.data.xpos, original.data.xpos)
        np.testing.assert_array_equal(ours.data.qvel, original.data.qvel)
        np.testing.assert_array_equal(ours.model.body_pos, original.model.body_pos)
    np.testing.assert_array_equal(observation[-3:], original._target_pos)


def test_grasp_is_felt_as_by_metaworld():
    ours = build_simulator("pick-place-v3")
    reset_to(ours, sample_goals("pick-place-v3", "train")[0])
    geoms = range(ours.model.ngeom)
    felt = {}
    for moment, n_steps in (("before", 1), ("grasping", 45)):
        play_expert(ours, build_expert("pick-place-v3"), n_steps)
        felt[moment] = [ours.touching_object(geom) for geom in geoms]
        assert felt[moment] == [SawyerXYZEnv.touching_object(ours, geom) for geom in geoms]
    puck = ours._get_id_main_object()
    assert felt["grasping"][puck] and not felt["before"][puck]


def count_steps(monkeypatch):
    """A list that grows by one with every call of MuJoCo's step function."""
    calls = []
    step = mujoco.mj_step
    monkeypatch.setattr(mujoco, "mj_step", lambda *args, **kwargs: calls.append(1) or step(*args, **kwargs))
    return calls


def test_hand_is_moved_to_its_start_once_for_each_place_of_the_objects(monkeypatch):
    drawer, goals = build_simulator("drawer-close-v3"), sample_goals("drawer-close-v3", "train", 3)
    calls = count_steps(monkeypatch)
    n_steps = []
    for goal in goals[[0, 1, 0, 1, 2]]:
        calls.clear()
        reset_to(drawer, goal)
        n_steps.append(len(calls))
    # MetaWorld resets twice, with the drawer where it was and where it will be; 50 steps each.
    assert n_steps == [50 + 50, 1 + 50, 2, 2, 1 + 50]


def test_memory_for_starts_is_bounded(monkeypatch):
    monkeypatch.setattr(simulator, "_MAX_REMEMBERED", 2)
    bounded, unbounded = build_simulator("drawer-close-v3"), build_original("drawer-close-v3")
    for goal in sample_goals("drawer-close-v3", "train", 4):
        np.testing.assert_array_equal(reset_to(bounded, goal), reset_to(unbounded, goal))
        assert len(bounded._remembered) <= 2


class OldRotation:
    """Of SciPy before 1.17."""

    @staticmethod
    def from_matrix(matrix):
        return matrix


@pytest.mark.parametrize("names", [{}, {"Rotation": OldRotation}])
def test_method_that_cannot_leave_out_checks_is_left_as_it_is(names):
    method = FunctionType((lambda self: None).__code__, names)
    assert simulator._without_checks(method) is method


def test_simulators_of_a_task_do_not_share_their_model():
    first, second = build_simulator("door-open-v3"), build_simulator("door-open-v3")
    first.model.body("door").pos = [1.0, 2.0, 3.0]
    assert list(second.model.body("door").pos) != [1.0, 2.0, 3.0]
    assert list(build_simulator("door-open-v3").model.body("door").pos) != [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("build", "module"), [(build_simulator, "metaworld.env_dict"), (build_expert, "metaworld.policies")])
def test_missing_metaworld_names_the_extra(monkeypatch, build, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-vla\[metaworld\]'"):
        build("push-v3")


def _more_damping(model):
    model.dof_damping[:] *= 3


def _no_gravity(model):
    model.opt.gravity[:] = 0


@pytest.mark.parametrize("change", [_more_damping, _no_gravity])
def test_a_changed_model_is_simulated_anew(change):
    goal = sample_goals("push-v3", "train", 1)[0]
    ours, original = build_simulator("push-v3"), build_original("push-v3")
    for environment in (ours, original):
        reset_to(environment, goal)
        before = environment.data.qpos.copy()
        change(environment.model)
        reset_to(environment, goal)
        assert not np.array_equal(environment.data.qpos, before)
    np.testing.assert_array_equal(ours.data.qpos, original.data.qpos)

import sys

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from sb3_vla_envs import sample_goals
from sb3_vla_envs.simulator import build_expert, build_simulator


@pytest.mark.filterwarnings("ignore:Constant.*may be too high")
@pytest.mark.parametrize("task", ["door-open-v3", "pick-place-v3"])
def test_simulator_is_metaworlds_with_the_goal_visible(task):
    original = ALL_V3_ENVIRONMENTS[task]()
    original._partially_observable = False
    del original.sawyer_observation_space
    original._set_task_called = True
    ours = build_simulator(task)
    expert = build_expert(task)
    for simulator in (original, ours):
        simulator._last_rand_vec = sample_goals(task, "train")[0].copy()
    np.testing.assert_array_equal(original.reset()[0], ours.reset()[0])
    observation = ours._get_obs()
    for _ in range(20):
        action = np.clip(expert.get_action(observation), -1, 1)
        observation, reward, *_ = ours.step(action)
        theirs, their_reward, *_ = original.step(action)
        np.testing.assert_array_equal(observation, theirs)
        assert reward == their_reward
    np.testing.assert_array_equal(observation[-3:], original._target_pos)


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

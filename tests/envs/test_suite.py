import sys

import gymnasium as gym
import numpy as np
import pytest

from sb3_vla_envs import (
    MT10,
    GymSuite,
    GymTask,
    MetaWorldEnv,
    find_suite,
    get_suite,
    make_vla_env,
    register_suite,
    resolve_tasks,
)
from sb3_vla_envs import suite as suite_module


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(suite_module, "_SUITES", dict(suite_module._SUITES))


def cars(name="cars", tasks=("hill",)):
    return GymSuite(name, {task: GymTask("MountainCarContinuous-v0", f"drive: {task}") for task in tasks})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("window-open-v3", ("window-open-v3",)),
        ("MT10", MT10),
        ("push-v3, reach-v3", ("push-v3", "reach-v3")),
        (["push-v3,reach-v3", "push-v3"], ("push-v3", "reach-v3")),
        (("push-v3", "MT10"), ("push-v3", *(task for task in MT10 if task != "push-v3"))),
    ],
)
def test_every_way_of_naming_tasks(given, expected):
    assert resolve_tasks(given) == expected
    assert find_suite(given).name == "metaworld"


def test_misspelt_task_is_named_with_close_matches():
    with pytest.raises(ValueError, match=r"Unknown task 'windw-open-v3'; did you mean 'window-open-v3'"):
        resolve_tasks("push-v3,windw-open-v3")
    with pytest.raises(ValueError, match=r"Unknown task 'qqq'; The suite 'cars' has 1 tasks such as 'hill', 'cars'$"):
        resolve_tasks("qqq", suite=cars())


@pytest.mark.parametrize("empty", ["", " , ", []])
def test_no_task_is_an_error(empty):
    with pytest.raises(ValueError, match="No task given"):
        resolve_tasks(empty)


def test_task_that_is_no_string_is_an_error():
    with pytest.raises(TypeError, match="3 of type int"):
        resolve_tasks(["push-v3", 3])


def test_group_name_is_that_of_exactly_these_tasks():
    metaworld = get_suite("metaworld")
    assert metaworld.group_name(reversed(MT10)) == "MT10"
    assert metaworld.group_name("push-v3") == "push-v3"
    assert metaworld.group_name("push-v3,reach-v3") is None


def test_the_suite_is_found_by_its_tasks(registry):
    suite = cars()
    register_suite(suite)
    assert find_suite("hill") is find_suite("cars") is get_suite("cars") is suite
    assert resolve_tasks("cars") == ("hill",)
    with pytest.raises(ValueError, match=r"No suite has all .*: hill \('cars'\), push-v3 \('metaworld'\). Name tasks of one"):
        find_suite("hill,push-v3")
    register_suite(cars("lorries"))
    with pytest.raises(ValueError, match="More than one suite has hill: say which, suite='cars' or 'lorries'"):
        find_suite("hill")
    assert find_suite("hill", "lorries").name == "lorries"
    assert find_suite("hill", suite) is suite


def test_a_module_that_registers_a_suite_is_imported(registry, tmp_path, monkeypatch):
    (tmp_path / "my_cars.py").write_text(
        "from sb3_vla_envs import GymSuite, GymTask, register_suite\n"
        "register_suite(GymSuite('mine', {'hill': GymTask('MountainCarContinuous-v0', 'drive')}))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_cars", raising=False)
    suite = get_suite("my_cars:mine")
    assert (suite.name, suite.address) == ("mine", "my_cars:mine")
    env = make_vla_env("hill", suite="my_cars:mine", privileged=False)
    assert env.unwrapped.spec.kwargs["suite"] == "my_cars:mine"
    assert env.unwrapped.spec.kwargs["privileged"] is False


def test_an_environment_can_be_made_again_from_its_spec_whether_or_not_its_suite_is_registered(registry):
    suite = cars()
    spec = make_vla_env("hill", suite=suite, chunk_size=3).unwrapped.spec
    assert gym.make(spec).action_space.shape == (3, 1)
    register_suite(suite)
    spec = make_vla_env("hill", suite=suite, chunk_size=3).unwrapped.spec
    assert spec.kwargs["suite"] == "cars" and gym.make(spec).action_space.shape == (3, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metawrld", "There is no suite 'metawrld', only 'metaworld'.*give 'module:name'"),
        ("no_such_module:cars", "There is no module 'no_such_module', which 'no_such_module:cars' says"),
        ("json:cars", "There is no suite 'cars'"),
    ],
)
def test_unknown_suites(name, message):
    with pytest.raises(ValueError, match=message):
        get_suite(name)


def test_what_is_no_suite_is_not_registered():
    with pytest.raises(TypeError, match=r"register_suite takes a Suite.*got 'cars' of type str"):
        register_suite("cars")


@pytest.mark.parametrize("name", ["", "a:b", "a,b"])
def test_names_that_no_one_could_give(name):
    with pytest.raises(ValueError, match="must not be empty and hold no colon or comma"):
        register_suite(cars(name))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_goal": 3}, TypeError, "The suite 'metaworld' has no setting 'n_goal'; did you mean 'n_goals'"),
        ({"n_goals": 0}, ValueError, "n_goals must be at least 1, got 0"),
        ({"n_goals": "two"}, TypeError, "n_goals must be an integer, got 'two'"),
        ({"goal_seed": -1}, ValueError, "goal_seed must be at least 0, got -1"),
        ({"privileged": "no"}, ValueError, "privileged must be True or False, got 'no'"),
        ({"chunk_size": 2, "n_action_steps": 3}, ValueError, "n_action_steps=3 exceeds chunk_size=2"),
        ({"gamma": 2}, ValueError, "gamma must be at most 1, got 2"),
        ({"quality": "best"}, ValueError, "quality must be 'fast' or 'plain' or 'full', got 'best'"),
        ({"cameras": []}, ValueError, "At least one camera is needed"),
    ],
)
def test_every_setting_is_checked_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        make_vla_env("push-v3", **settings)


def test_settings_of_training_alone_do_not_count_for_a_model_in_use():
    settings = {
        "n_goals": 3,
        "horizon": 9,
        "chunk_size": 2,
        **{"gamma": 0.9, "privileged": True, "task_ids": MT10, "goal_order": "uniform", "task_order": "uniform"},
    }
    assert get_suite("metaworld").acting_settings(settings) == {"n_goals": 3, "horizon": 9, "chunk_size": 2}


def test_no_cameras_means_the_suites_own():
    env = make_vla_env("push-v3", cameras=None)
    assert {"image", "image_gripperPOV"} <= set(env.observation_space.spaces)


def test_expert_of_a_suite_is_that_of_the_environment():
    suite = get_suite("metaworld")
    env = suite.wrap(suite.make_simulation("push-v3", n_goals=1))
    env.reset(seed=0)
    assert isinstance(env.unwrapped, MetaWorldEnv) and suite.has_expert("push-v3")
    np.testing.assert_array_equal(suite.expert_action(env), env.unwrapped.expert_action())

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

from sb3_vla_envs import MT10, MT50, resolve_tasks


def test_lists_are_those_of_metaworld():
    assert MT10 == tuple(MT10_V3)
    assert set(MT50) == set(ALL_V3_ENVIRONMENTS)
    assert len(MT50) == 50


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("window-open-v3", ("window-open-v3",)),
        ("MT10", MT10),
        ("MT50", MT50),
        ("push-v3, reach-v3", ("push-v3", "reach-v3")),
        (["push-v3", "reach-v3"], ("push-v3", "reach-v3")),
        (["push-v3,reach-v3", "push-v3"], ("push-v3", "reach-v3")),
        (("push-v3", "MT10"), ("push-v3", *(task for task in MT10 if task != "push-v3"))),
    ],
)
def test_every_way_of_naming_tasks(given, expected):
    assert resolve_tasks(given) == expected


def test_misspelt_task_is_named_with_close_matches():
    with pytest.raises(ValueError, match=r"'windw-open-v3'; did you mean 'window-open-v3'"):
        resolve_tasks("push-v3,windw-open-v3")


@pytest.mark.parametrize("empty", ["", " , ", []])
def test_no_task_is_an_error(empty):
    with pytest.raises(ValueError, match="No task given"):
        resolve_tasks(empty)


def test_task_that_is_no_string_is_an_error():
    with pytest.raises(TypeError, match="3 of type int"):
        resolve_tasks(["push-v3", 3])  # type: ignore[list-item]

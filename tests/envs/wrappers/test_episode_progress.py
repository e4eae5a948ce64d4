import pytest

from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress, task_name

OPEN, DONE = {"is_success": False}, {"is_success": True}


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ([{}, {}], (2, None, None)),
        ([OPEN, {"chunk_length": 4, **OPEN}], (5, False, None)),
        ([OPEN, DONE], (2, True, 2)),
        # The environment knows better in which step of a chunk it was
        ([{"chunk_length": 8, "steps_to_success": 3, **DONE}], (8, True, 3)),
        # But not of more steps than there were
        ([{"chunk_length": 8, "steps_to_success": 30, **DONE}], (8, True, 8)),
        ([{"steps_to_success": 0, **DONE}], (1, True, 1)),
        # A success stays one, and the first counts
        ([DONE, OPEN, DONE], (3, True, 1)),
    ],
)
def test_steps_and_success(infos, expected):
    progress = EpisodeProgress()
    for info in infos:
        progress.add(info)
    assert (progress.steps, progress.success, progress.steps_to_success) == expected


@pytest.mark.parametrize(
    ("info", "name"),
    [({}, ""), ({"task": None}, ""), ({"task": "push"}, "push"), ({"task": 3}, "3"), ({"task": (1, "a")}, "(1, 'a')")],
)
def test_task_of_any_type_becomes_text(info, name):
    assert task_name(info) == name

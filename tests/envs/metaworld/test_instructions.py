import pytest

from sb3_vla_envs import INSTRUCTIONS, MT50


def test_all_tasks_and_no_others_have_instructions():
    assert set(INSTRUCTIONS) == set(MT50)


@pytest.mark.parametrize("task", MT50)
def test_wordings_are_several_and_short(task):
    wordings = INSTRUCTIONS[task]
    assert len(set(wordings)) == len(wordings) >= 3
    assert len(wordings[0].encode()) <= 30
    assert all(0 < len(wording.encode()) <= 64 for wording in wordings)


def test_no_wording_means_two_tasks():
    # The prompt is all that tells a policy what to do where the scene is the same (drawer-open, drawer-close).
    every = [wording for wordings in INSTRUCTIONS.values() for wording in wordings]
    assert len(set(every)) == len(every)

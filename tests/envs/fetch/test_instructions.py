from sb3_vla_envs.fetch.instructions import INSTRUCTIONS
from sb3_vla_envs.fetch.tasks import TASKS


def test_every_task_has_several_short_wordings_of_its_own():
    assert list(INSTRUCTIONS) == list(TASKS)
    every = [text for wordings in INSTRUCTIONS.values() for text in wordings]
    assert len(set(every)) == len(every) and all(len(wordings) >= 3 for wordings in INSTRUCTIONS.values())
    assert all(len(text.encode()) <= 64 and text == text.strip().lower() for text in every)

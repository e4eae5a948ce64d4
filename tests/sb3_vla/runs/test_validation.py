"""What a validation ranks models by; that it does is tested with the rest of a run, in test_pipeline.py."""

import pytest

from sb3_vla.evaluation.result import EpisodeRecord, EvaluationResult
from sb3_vla.runs.validation import mean_episode_steps


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_failure_takes_the_whole_horizon_and_a_success_until_then(goes_on):
    episodes = [
        EpisodeRecord("push", 0, True, 30, 100 if goes_on else 30, 1.0),
        EpisodeRecord("push", 1, False, None, 5, 0.0),  # ended by the failure
        EpisodeRecord("pull", 0, True, 20, 20, 1.0),
    ]
    assert mean_episode_steps(EvaluationResult(episodes, {"horizon": 100})) == ((30 + 100) / 2 + 20) / 2

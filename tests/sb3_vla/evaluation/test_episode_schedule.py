from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces

from sb3_vla.evaluation.episode_schedule import EpisodeSchedule, episode_jobs


def test_jobs_are_every_pair_once_with_a_seed_of_their_own() -> None:
    jobs = episode_jobs(["near", "far"], n_goals=3, seed=1)
    assert [(job.task, job.goal_index) for job in jobs] == [(t, g) for t in ("near", "far") for g in range(3)]
    assert len({job.seed for job in jobs}) == 6
    assert episode_jobs(["far"], n_goals=1, seed=1)[0] == jobs[3]  # whatever else is evaluated
    assert episode_jobs(["far"], n_goals=1, seed=2)[0].seed != jobs[3].seed
    assert episode_jobs([""], n_goals=1)[0].options is None


@pytest.mark.parametrize(
    ("tasks", "n_goals", "seed", "message"),
    [
        (["near", "near"], 1, 0, "twice"),
        ([], 1, 0, "There are no tasks"),
        (["near"], 0, 0, "n_goals must be at least 1, got 0"),
        (["near"], 1, -1, "seed .* at least 0, got -1"),
    ],
)
def test_impossible_jobs_are_refused(tasks: list[str], n_goals: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        episode_jobs(tasks, n_goals, seed)


class Diary(gym.Env[int, int]):
    """Notes what it is asked for; an episode lasts two steps."""

    observation_space = spaces.Discrete(100)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.resets: list[tuple[int | None, dict[str, Any] | None]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        self.resets.append((seed, options))
        self.time = 0
        return len(self.resets), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return 10 * self.time, 1.0, self.time == 2, False, {"is_success": True}


def test_each_reset_plays_the_next_job_and_after_the_last_nothing_moves() -> None:
    diary = Diary()
    env = EpisodeSchedule(diary)
    jobs = episode_jobs(["near"], 2)
    env.set_jobs(jobs)
    for job in jobs:
        env.reset(seed=99, options={"task": "far"})
        assert diary.resets[-1] == (job.seed, {"task": "near", "goal_index": job.goal_index})
        assert [env.step(0)[2] for _ in range(2)] == [False, True]
    assert env.reset() == (20, {})
    assert env.step(0) == (20, 0.0, False, False, {})
    assert len(diary.resets) == 2

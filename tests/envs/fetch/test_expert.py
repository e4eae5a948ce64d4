import numpy as np
import pytest

from sb3_vla_envs import FetchEnv, find_suite


@pytest.mark.parametrize("task", ["FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_expert_succeeds_within_the_benchmark_s_horizon(task, noise):
    env = FetchEnv(task, goal_split="test", goal_order="sequential", n_goals=50)
    rng = np.random.default_rng(0)
    successes = 0
    for _ in range(50):
        _, info = env.reset()
        done = False
        while not done:
            action = env.expert_action()
            assert env.action_space.contains(action)
            _, _, terminated, truncated, info = env.step(action + rng.normal(0, noise, 4))
            done = terminated or truncated
        successes += info["is_success"]
    assert successes >= 0.95 * 50


def test_slide_has_none():
    env = FetchEnv("FetchSlide-v4")
    env.reset(seed=0)
    assert not find_suite("FetchSlide-v4").has_expert("FetchSlide-v4")
    with pytest.raises(NotImplementedError, match="no expert for 'FetchSlide-v4'"):
        env.expert_action()

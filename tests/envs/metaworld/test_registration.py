import gymnasium as gym
import numpy as np
import pytest

import sb3_vla_envs


@pytest.mark.parametrize("tasks", ["MT10", "MT50", *sb3_vla_envs.MT50])
def test_every_task_and_benchmark_has_both_ids(tasks):
    assert {f"MetaWorldVLA/{tasks}", f"MetaWorldState/{tasks}"} <= set(gym.registry)


def test_state_environment_and_its_spec():
    env = gym.make("MetaWorldState/MT10", task_order="round_robin", n_goals=2)
    again = gym.make(env.spec)
    assert env.unwrapped.tasks == again.unwrapped.tasks == sb3_vla_envs.MT10
    assert again.unwrapped.task_order == "round_robin" and again.unwrapped.n_goals == 2
    np.testing.assert_array_equal(env.reset(seed=0)[0]["privileged"], again.reset(seed=0)[0]["privileged"])


@pytest.mark.parametrize("through_json", [False, True])
def test_spec_of_the_full_stack_makes_the_same_environment(through_json):
    env = gym.make(
        "MetaWorldVLA/window-open-v3",
        chunk_size=4,
        n_action_steps=2,
        gamma=0.9,
        cameras=[{"name": "corner4", "height": 30, "width": 40, "fovy": 50.0}, "gripperPOV"],
        max_instruction_bytes=20,
        n_goals=2,
    )
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json()) if through_json else env.spec
    again = gym.make(spec)
    assert str(again) == str(env)
    assert again.observation_space == env.observation_space
    assert again.action_space == env.action_space
    assert (again.get_wrapper_attr("n_action_steps"), again.get_wrapper_attr("chunk_gamma")) == (2, 0.9)
    action = env.action_space.sample()
    for ours, theirs in zip((env.reset(seed=3), env.step(action)), (again.reset(seed=3), again.step(action)), strict=True):
        assert ours[-1] == theirs[-1]
        for key in ours[0]:
            np.testing.assert_array_equal(ours[0][key], theirs[0][key])


def test_spec_with_a_frame_list_survives():
    env = gym.make("MetaWorldVLA/window-open-v3", render_mode="rgb_array_list", n_goals=1, cameras=["corner4"])
    again = gym.make(env.spec)
    for made in (env, again):
        made.reset(seed=0)
        made.step(np.zeros((8, 4), dtype=np.float32))
        assert len(made.render()) == 9

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from sb3_vla.imitation.stacked_frames import stack_frames


def around(env):
    return VecFrameStack(env, 3)


def around_turned_images(env):
    return VecFrameStack(VecTransposeImage(env), 3)


def inside_normalisation(env):
    return VecNormalize(VecFrameStack(env, 3), norm_obs_keys=["state"])


@pytest.mark.parametrize("wrap", [around, around_turned_images, inside_normalisation])
def test_frames_are_those_that_the_wrapper_shows(wrap, make_vec_env, make_demonstrations):
    # Chunks of one step, so that there are more of them than frames in a stack
    single = make_demonstrations(1, chunk_size=1)
    (stacked,) = stack_frames(single, env := wrap(make_vec_env(1, chunk_size=1)))
    seen = [env.reset()]
    for chunk in single[0].actions[:-1]:
        seen.append(env.step(chunk[np.newaxis])[0])
    assert len(stacked) == len(seen) == 4
    for key in ("image", "instruction", "state", "privileged"):
        if key == "state" and isinstance(env, VecNormalize):
            continue
        assert np.array_equal(stacked.observations[key], [step[key][0] for step in seen])
        assert stacked.observations[key].dtype == single[0].observations[key].dtype
    assert np.array_equal(stacked.actions, single[0].actions) and single[0].observations["state"].shape == (4, 3)


def test_what_is_stacked_or_needs_no_stacking_stays(make_vec_env, make_demonstrations):
    single = make_demonstrations(2)
    assert stack_frames(single, make_vec_env()) == single
    env = around(make_vec_env())
    once = stack_frames(single, env)
    for one, two in zip(once, stack_frames(once, env), strict=True):
        assert all(np.array_equal(two.observations[key], value) for key, value in one.observations.items())

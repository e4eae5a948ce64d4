import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla_envs import GymSuite, GymTask, PictureObservation
from sb3_vla_envs.wrappers.picture_observation import shrink


def test_each_pixel_is_the_mean_of_those_it_stands_for():
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    blocks = picture.reshape(2, 2, 3, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(shrink(picture, 2, 3), np.rint(blocks))
    np.testing.assert_array_equal(shrink(picture, 4, 6), picture)


def test_sizes_that_do_not_divide_each_other():
    picture = np.arange(5, dtype=np.uint8).reshape(5, 1, 1) * np.ones((1, 1, 3), np.uint8)
    # 5 rows into 2: rows 0 and 1, rows 2 to 4
    np.testing.assert_array_equal(shrink(picture, 2, 1)[:, 0, 0], [np.rint(0.5), 3])


@pytest.mark.parametrize("size", [(6, 6), (4, 7)])
def test_pictures_are_not_made_larger(size):
    with pytest.raises(ValueError, match=f"4 x 6 pixels, fewer than the {size[0]} x {size[1]} asked for"):
        shrink(np.zeros((4, 6, 3), np.uint8), *size)


def test_picture_of_an_environment_is_observed():
    suite = GymSuite(
        "cars", {"hill": GymTask("MountainCar-v0", "up")}, success=lambda obs, reward, terminated, info: terminated
    )
    env = PictureObservation(suite.make_simulation("hill"), 20, 30)
    observation, _ = env.reset(seed=0)
    assert env.observation_space["image"] == spaces.Box(0, 255, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(observation["image"], shrink(env.unwrapped.picture(), 20, 30))
    assert observation["image"].std() > 5

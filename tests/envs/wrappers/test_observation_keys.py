import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla_envs import ObservationKeys

IMAGE = spaces.Box(0, 255, (4, 5, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float64)


class Observes(gym.Env):
    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


@pytest.mark.parametrize(("space", "key", "dtype"), [(IMAGE, "image", np.uint8), (VECTOR, "state", np.float32)])
def test_a_single_array_gets_a_name(space, key, dtype):
    env = ObservationKeys(Observes(space))
    observation, _ = env.reset()
    assert set(observation) == {key} and env.observation_space.contains(observation)
    assert observation[key].dtype == dtype


def test_nested_keys_are_renamed_or_left_out():
    nested = spaces.Dict(pixels=spaces.Dict(top=IMAGE, side=IMAGE), agent_pos=VECTOR, n=spaces.Discrete(3))
    env = ObservationKeys(Observes(nested), {"agent_pos": "state", "pixels/top": "image"})
    observation, _ = env.reset()
    assert set(observation) == {"state", "image"} and env.observation_space.contains(observation)
    joined = ObservationKeys(Observes(spaces.Dict(pixels=spaces.Dict(top=IMAGE), x=VECTOR)))
    assert set(joined.observation_space) == {"pixels/top", "x"}


@pytest.mark.parametrize(
    ("space", "keys", "error", "message"),
    [
        (spaces.Dict(x=VECTOR), {"y": "state"}, ValueError, "observes no 'y', only 'x'"),
        (spaces.Dict(x=VECTOR, y=VECTOR), {"x": "state", "y": "state"}, ValueError, "can be given once"),
        (spaces.Discrete(3), None, TypeError, r"observes a Discrete\(3\), but what a policy observes must be a Box"),
        (spaces.Dict(n=spaces.Discrete(3)), None, TypeError, r"observes n Discrete\(3\)"),
    ],
)
def test_what_cannot_be_renamed(space, keys, error, message):
    with pytest.raises(error, match=message):
        ObservationKeys(Observes(space), keys)

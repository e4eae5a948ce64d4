"""What goes to the device that learns, and what stays; the device "meta" stands for a GPU."""

import warnings

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC


def devices(observations) -> dict[str, str]:
    return {key: tensor.device.type for key, tensor in observations.items()}


def sampled(model, demonstrations):
    """A batch of demonstrations and one of a rollout."""
    model.replay_buffer.extend(demonstrations)
    model.learn(16)
    model.replay_buffer.device = model.rollout_buffer.device = "meta"
    return model.replay_buffer.sample(4, host_keys=model.adapter.host_keys), next(model.rollout_buffer.get(4))


def test_vla_policys_prompt_stays_where_it_is_decoded(make_model, make_demonstrations):
    """It would wait for a GPU to give it back."""
    for batch in sampled(make_model(), make_demonstrations()):
        expected = {"image": "meta", "state": "meta", "privileged": "meta", "instruction": "cpu"}
        assert devices(batch.observations) == expected
        assert batch.actions.device.type == batch.chunk_lengths.device.type == "meta"


def test_another_policys_observation_of_that_name_goes_with_the_others(make_env, make_demonstrations):
    env = FilterObservation(make_env(), ["state", "instruction"])
    model = PPOSelfBC("MultiInputPolicy", env, n_steps=16, batch_size=8, n_epochs=1, gamma=0.9, seed=0, device="cpu")
    for batch in sampled(model, make_demonstrations()):
        assert devices(batch.observations) == {"state": "meta", "instruction": "meta"}


def test_in_rollouts_a_policy_gets_what_it_reads(make_env, make_model):
    class Talkative(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Dict({**env.observation_space.spaces, "map": spaces.Box(0, 1, (50,), np.float32)})

        def observation(self, observation):
            return {**observation, "map": np.zeros(50, np.float32)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not read
        model = make_model(DummyVecEnv([lambda: Talkative(make_env())]))
    act, seen = model.adapter.act, []
    model.adapter.act = lambda obs, *rest: seen.append(set(obs)) or act(obs, *rest)
    model.learn(8)
    assert seen and all(keys == {"image", "state", "instruction", "privileged"} for keys in seen)

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_vla_envs import InstructionObservation, MetaWorldEnv, decode_instruction, encode_instruction


def test_bytes_are_utf8_padded_with_zeros():
    np.testing.assert_array_equal(encode_instruction("öab", 6), [0xC3, 0xB6, 97, 98, 0, 0])


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=16))
def test_decoding_gives_back_what_was_encoded(text):
    encoded = encode_instruction(text, 64)
    assert encoded.shape == (64,) and encoded.dtype == np.uint8
    assert decode_instruction(encoded) == text


def test_text_that_fills_the_space_survives():
    assert decode_instruction(encode_instruction("abcd", 4)) == "abcd"


def test_random_bytes_decode_to_something():
    assert decode_instruction(np.array([255, 97, 0, 98])) == "�a"


def test_too_long_a_prompt_names_itself_its_bytes_the_limit_and_the_fix():
    with pytest.raises(ValueError, match="'öffne' has 6 bytes, but only 5 fit: shorten it or raise max_bytes"):
        encode_instruction("öffne", 5)


def test_zero_byte_inside_is_refused():
    with pytest.raises(ValueError, match="zero byte"):
        encode_instruction("a\0b", 5)


def test_instruction_of_the_episode_is_observed():
    env = InstructionObservation(MetaWorldEnv("window-open-v3,push-v3", n_goals=1), max_bytes=32)
    for task, text in (("window-open-v3", "open the window"), ("push-v3", "push the puck to the goal")):
        observation, _ = env.reset(options={"task": task})
        assert env.observation_space.contains(observation)
        assert decode_instruction(observation["instruction"]) == text
        observation, *_ = env.step(np.zeros(4))
        assert decode_instruction(observation["instruction"]) == text


def test_fixed_instruction_overrules_the_environments():
    env = InstructionObservation(MetaWorldEnv("window-open-v3", n_goals=1), instruction="wave")
    assert decode_instruction(env.reset(seed=0)[0]["instruction"]) == "wave"


def test_any_prompt_that_does_not_fit_shows_at_once():
    env = MetaWorldEnv("window-open-v3,push-v3")
    with pytest.raises(ValueError, match="'push the puck to the goal' has 25 bytes, but only 20 fit"):
        InstructionObservation(env, max_bytes=20)  # "open the window", the current one, would fit


class Blank(gym.Env):
    observation_space = gym.spaces.Dict(x=gym.spaces.Discrete(2))
    action_space = gym.spaces.Discrete(2)


def test_environment_without_instructions_needs_one():
    with pytest.raises(ValueError, match="no attribute 'instruction': pass the text"):
        InstructionObservation(Blank())
    assert "instruction" in InstructionObservation(Blank(), instruction="go").observation_space.spaces


class ToldAtReset(Blank):
    instruction = None

    def reset(self, *, seed=None, options=None):
        self.instruction = "go left"
        return {"x": 0}, {}


def test_an_instruction_that_is_known_at_a_reset_only_needs_all_that_there_may_be():
    with pytest.raises(ValueError, match=r"attribute 'instruction' is None: set it to a text.*'instructions' hold all"):
        InstructionObservation(ToldAtReset())
    told = ToldAtReset()
    told.instructions = ["go left", "go right"]
    assert decode_instruction(InstructionObservation(told).reset()[0]["instruction"]) == "go left"


class Spoken(gym.Env):
    """Observes what it is told, another thing each episode."""

    observation_space = gym.spaces.Dict(x=gym.spaces.Discrete(2), instruction=gym.spaces.Text(20))
    action_space = gym.spaces.Discrete(2)
    texts = iter(["go left", "go right", "go nowhere"])

    def reset(self, *, seed=None, options=None):
        return {"x": 0, "instruction": next(self.texts)}, {}


def test_text_that_is_observed_is_encoded():
    env = InstructionObservation(Spoken(), max_bytes=8)
    assert env.observation_space["instruction"] == gym.spaces.Box(0, 255, (8,), np.uint8)
    assert [decode_instruction(env.reset()[0]["instruction"]) for _ in range(2)] == ["go left", "go right"]
    with pytest.raises(ValueError, match="'go nowhere' has 10 bytes, but only 8 fit"):
        env.reset()


def test_bad_arguments():
    with pytest.raises(TypeError, match="Dict observation space, got Box"):
        InstructionObservation(gym.make("CartPole-v1"), instruction="balance")
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        InstructionObservation(Blank(), 0, "go")

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla_envs import ChunkedActionWrapper, EpisodeCaption
from sb3_vla_envs.wrappers.episode_caption import BACKGROUND, FAILURE, LINE_HEIGHT, MARGIN, SUCCESS, TEXT


class Pictured(gym.Env):
    """Succeeds at its third step, or never; grey pictures."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, instruction=None, succeeds=True, reports=True):
        self.render_mode = "rgb_array"
        self.succeeds, self.reports = succeeds, reports
        if instruction is not None:
            self.instruction = instruction

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        success = self.succeeds and self.t >= 3
        info = {"is_success": success} if self.reports else {}
        return np.zeros(1, np.float32), 0.0, success, self.t >= 6, info

    def render(self):
        return np.full((80, 200, 3), 128, np.uint8)


def lines(env):
    """The colours of the lines below the picture, ``None`` for an empty one."""
    picture = env.render()
    assert (picture[:80] == 128).all()
    strip = picture[80:-MARGIN].reshape(-1, LINE_HEIGHT, 200, 3)
    result = []
    for line in strip:
        # Small letters are thinner than a pixel: the brightest is near the colour
        brightest = max(line.reshape(-1, 3).tolist(), key=sum)
        distances = {color: np.abs(np.subtract(brightest, color)).max() for color in (TEXT, SUCCESS, FAILURE, BACKGROUND)}
        color = min(distances, key=distances.get)
        result.append(None if color == BACKGROUND else color)
    return result


def test_status_and_how_the_episode_before_ended():
    env = EpisodeCaption(Pictured())
    env.reset()
    assert lines(env) == [TEXT, None]
    for _ in range(3):
        env.step(np.zeros(1))
    assert lines(env) == [SUCCESS, None]
    env.reset()
    assert lines(env) == [TEXT, SUCCESS]


def test_failure_is_said_of_an_ended_episode_alone_and_only_where_success_is_reported():
    for reports, color in ((True, FAILURE), (False, TEXT)):
        env = EpisodeCaption(Pictured(succeeds=False, reports=reports))
        env.reset()
        for _ in range(6):
            env.step(np.zeros(1))
        assert lines(env) == [TEXT, None]
        env.reset()
        assert lines(env) == [TEXT, color]


def test_the_instruction_takes_two_lines_whatever_its_length():
    short, long = (EpisodeCaption(Pictured(text)) for text in ("lift it", "go to the red target " * 5))
    for env in (short, long):
        env.reset()
    assert lines(short) == [TEXT, None, TEXT, None]
    assert lines(long) == [TEXT, TEXT, TEXT, None]


@pytest.mark.parametrize("caption_inside", [False, True])
def test_chunks_count_as_their_steps(caption_inside):
    env = Pictured()
    env = ChunkedActionWrapper(EpisodeCaption(env), 2) if caption_inside else EpisodeCaption(ChunkedActionWrapper(env, 2))
    env.reset()
    env.step(np.zeros((2, 1), np.float32))
    env.step(np.zeros((2, 1), np.float32))
    caption = env.env if caption_inside else env
    assert caption._status(final=True) == ("success after 3 steps", SUCCESS)


def test_only_single_pictures_can_have_captions():
    env = Pictured()
    env.render_mode = None
    with pytest.raises(ValueError, match="render_mode is None"):
        EpisodeCaption(env)


def test_films_of_chunks_are_in_real_time():
    assert ChunkedActionWrapper(Pictured(), 8, n_action_steps=4).metadata["render_fps"] == 5
    silent = Pictured()
    silent.render_mode = None
    assert ChunkedActionWrapper(silent, 8).metadata == Pictured.metadata

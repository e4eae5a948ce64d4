import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sb3_vla_envs import GymSuite, GymTask, collect_demonstrations, decode_instruction, make_vla_env


class Line(gym.Env):
    """A point from its own seed in [-1, 1] to be driven to 2, in actions of up to ``limit``; nested observations."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, limit=10.0, pixels=True, flash=False, ends=False, render_mode=None):
        self.limit, self.pixels, self.flash, self.ends, self.render_mode = limit, pixels, flash, ends, render_mode
        picture = {"top": spaces.Box(0, 255, (8, 6, 3), np.uint8)}
        observed = {"agent_pos": spaces.Box(-np.inf, np.inf, (1,), np.float64), "way": spaces.Box(-9, 9, (2, 1), np.float32)}
        self.observation_space = spaces.Dict({**observed, **({"pixels": spaces.Dict(picture)} if pixels else {})})
        self.action_space = spaces.Box(-limit, limit, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.was_there = self.np_random.uniform(-1, 1), False
        return self.observe(), {}

    def step(self, action):
        assert abs(action[0]) <= self.limit
        self.x += action[0] / self.limit * 0.4
        there = self.x >= 2
        info = {"is_success": there and not (self.flash and self.was_there)}
        self.was_there = there
        return self.observe(), -abs(2 - self.x), self.ends and there, False, info

    def observe(self):
        observation = {"agent_pos": np.array([self.x]), "way": np.full((2, 1), 2 - self.x, np.float32)}
        return {**observation, **({"pixels": {"top": self.picture()[::2, ::2]}} if self.pixels else {})}

    def picture(self):
        return np.full((16, 12, 3), np.clip(100 + 40 * self.x, 0, 255), np.uint8)

    def render(self):
        return self.picture()


class Rewriting(Line):
    """Writes what it observes into the same array again."""

    def observe(self):
        observation = super().observe()
        self.way = getattr(self, "way", observation["way"])
        self.way[...] = observation["way"]
        return {**observation, "way": self.way}


gym.register("Line-v0", entry_point=Line, max_episode_steps=4)
gym.register("Rewriting-v0", entry_point=Rewriting, max_episode_steps=20)
KEYS = {"agent_pos": "state", "way": "privileged", "pixels/top": "image"}


def line(keys=KEYS, picture_size=(8, 6), tasks=None, **arguments):
    tasks = tasks or {"go": GymTask("Line-v0", ("go", "move"), arguments.pop("kwargs", {}))}
    return GymSuite(
        "lines", tasks, keys=keys, horizon=20, picture_size=picture_size, expert=lambda env: [9 * env.limit], **arguments
    )


def test_observation_keys_are_mapped():
    env = make_vla_env("go", suite=line(), chunk_size=2)
    assert {key: (space.shape, space.dtype) for key, space in env.observation_space.items()} == {
        "image": ((8, 6, 3), np.uint8),
        "state": ((1,), np.float32),
        "privileged": ((3,), np.float32),
        "instruction": ((64,), np.uint8),
    }
    observation, info = env.reset(seed=0)
    x = env.unwrapped.task_env.unwrapped.x
    assert observation["state"] == pytest.approx([x]) and observation["privileged"] == pytest.approx([2 - x, 2 - x, 1])
    assert (observation["image"] == int(100 + 40 * x)).all()
    assert decode_instruction(observation["instruction"]) == "go" and info["task"] == "go"
    assert env.action_space == spaces.Box(-10.0, 10.0, (2, 1), np.float64)


@pytest.mark.filterwarnings("ignore")  # advice on spaces, not failures
def test_gymnasiums_checker_passes():
    check_env(line().make_simulation("go", privileged=False), skip_render_check=True)


def test_demonstrations_keep_what_an_environment_writes_over():
    suite = line({"way": "state", "pixels/top": "image"}, tasks={"go": GymTask("Rewriting-v0", "go")})
    (demo,) = collect_demonstrations("go", 1, suite=suite, chunk_size=2, progress=False)
    assert len({row.tobytes() for row in demo.observations["state"]}) == len(demo) > 1


def test_without_a_picture_render_draws_one_a_chunk():
    env = make_vla_env("go", suite=line({"agent_pos": "state"}), chunk_size=2, render_mode="rgb_array_list")
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"image", "state", "instruction"}, "which task it is alone would be no state to value"
    assert observation["image"].shape == (8, 6, 3)
    after, *_ = env.step(np.full((2, 1), 5.0))
    assert (after["image"].astype(int) - observation["image"] >= 15).all()  # 0.4 to the right
    frames = env.render()
    assert len(frames) == 3 and frames[0].shape == (16, 12, 3)
    bad = make_vla_env("go", suite=line({"agent_pos": "state"}, picture_size=(17, 6)))
    with pytest.raises(ValueError, match="16 x 12 pixels, fewer than the 17 x 6 asked for"):
        bad.reset()


def test_goals_are_seeds_of_which_training_and_test_share_none():
    def starts(split, goal_seed=0):
        env = line().make_simulation("go", goal_split=split, n_goals=50, goal_seed=goal_seed)
        return [float(env.reset(options={"goal_index": i})[0]["state"][0]) for i in range(50)]

    train, test = starts("train"), starts("test")
    assert len({*train, *test}) == 100
    assert starts("train") == train and not set(starts("train", 1)) & set(train)


def test_the_suites_horizon_counts_and_not_the_environments_own():
    env = line().make_simulation("go")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1))[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    env = line().make_simulation("go", horizon=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("success", ["is_success", lambda obs, reward, terminated, info: obs["state"][0] >= 2])
def test_success_by_key_or_function(success):
    env = line(success=success).make_simulation("go", terminate_on_success=False)
    env.reset(seed=0)
    n_steps = int(np.ceil((2 - env.task_env.unwrapped.x) / 0.4))
    infos = [env.step(np.array([99.0]))[-1] for _ in range(8)]
    assert [info["is_success"] for info in infos] == [i + 1 >= n_steps for i in range(8)]
    assert infos[-1]["steps_to_success"] == n_steps


def test_an_environment_that_ends_by_itself_ends_the_episode():
    suite = line(success=lambda obs, reward, terminated, info: False, kwargs={"ends": True})
    env = suite.make_simulation("go", terminate_on_success=False)
    env.reset(seed=0)
    outcomes = []
    while not (outcomes and outcomes[-1]):
        outcomes.append(env.step(np.array([10.0]))[2])
    assert env.task_env.unwrapped.x >= 2


def test_missing_success_key_is_named_at_the_end_of_an_episode():
    env = line(success="solved").make_simulation("go", horizon=2)
    env.reset(seed=0)
    env.step(np.zeros(1))
    with pytest.raises(ValueError, match=r"No info of an episode of 'go' says 'solved', the last has \['is_success'\]"):
        env.step(np.zeros(1))


@pytest.mark.parametrize("terminate", [True, False])
def test_demonstrations_end_at_success_and_keep_to_the_environments_bounds(terminate):
    suite = line(kwargs={"flash": True})
    (demo,) = collect_demonstrations(
        "go", 1, suite=suite, action_noise=0.0, chunk_size=3, terminate_on_success=terminate, progress=False
    )
    start = demo.observations["state"][0, 0]
    assert demo.success and demo.n_steps == int(np.ceil((2 - start) / 0.4))
    assert demo.actions.dtype == np.float32
    for chunk, length in zip(demo.actions, demo.chunk_lengths, strict=True):
        np.testing.assert_array_equal(chunk[:, 0], [10.0] * length + [0.0] * (3 - length))


def test_noise_is_a_part_of_the_range_of_actions():
    def noise(limit):
        demos = collect_demonstrations(
            "go",
            3,
            suite=line(kwargs={"limit": limit}, keys={"agent_pos": "state"}),
            action_noise=0.1,
            chunk_size=1,
            progress=False,
        )
        return np.concatenate([np.diff(demo.observations["state"][:, 0]) for demo in demos])

    np.testing.assert_allclose(noise(1.0), noise(255.0), rtol=1e-5)  # the position moves by a part of the limit
    assert 0.01 < noise(255.0).std() < 0.04


def test_other_tasks_with_other_spaces_are_refused():
    tasks = {"a": GymTask("Line-v0", "go"), "b": GymTask("Line-v0", "go", {"limit": 1.0})}
    with pytest.raises(ValueError, match="All tasks of an environment must have the same spaces: 'b' has"):
        line(tasks=tasks).make_simulation("a,b")
    line(tasks=tasks).make_simulation("b")


def test_without_an_expert_nothing_is_collected():
    suite = GymSuite("lines", {"go": GymTask("Line-v0", "go")})
    with pytest.raises(ValueError, match="The suite 'lines' has no expert for go"):
        collect_demonstrations("go", 1, suite=suite)
    env = suite.make_simulation("go")
    env.reset()
    with pytest.raises(NotImplementedError, match="The suite 'lines' has no expert for the task 'go'"):
        env.expert_action()


@pytest.mark.parametrize(("action", "shape"), [([[1.0]], r"\(1, 1\)"), (1.0, r"\(\)"), ([1.0, 0.0], r"\(2,\)")])
def test_an_experts_action_of_another_shape_is_refused(action, shape):
    suite = GymSuite("lines", {"go": GymTask("Line-v0", "go")}, keys=KEYS, expert=lambda env: action)
    with pytest.raises(ValueError, match=rf"'lines' gave an action of shape {shape} in the task 'go', but .* shape \(1,\)"):
        collect_demonstrations("go", 1, suite=suite, progress=False)


def test_keys_the_wrong_way_round_are_shown_the_right_way():
    turned = {new: old for old, new in KEYS.items()}
    with pytest.raises(
        ValueError, match=r"observes no 'state', .*perhaps keys={'agent_pos': 'state', .*'pixels/top': 'image'}"
    ):
        line(turned).make_simulation("go")


@pytest.mark.parametrize("tasks", ["go", ["go"], {"go": "Line-v0"}, GymTask("Line-v0", "go")])
def test_tasks_that_are_no_mapping_of_names_to_tasks_are_refused(tasks):
    with pytest.raises(
        TypeError, match=r"The suite 'lines' needs its tasks as a mapping of names to GymTask, got .*write GymSuite"
    ):
        GymSuite("lines", tasks)


def test_the_same_settings_class_at_each_access_has_the_suites_horizon():
    suite = line()
    assert suite.simulation is suite.simulation and suite.simulation().horizon == 20


def test_cameras_draw_a_mujoco_environment():
    cheetah = GymTask("HalfCheetah-v5", "run")
    suite = GymSuite("runners", {"run": cheetah}, success=lambda obs, reward, terminated, info: False)
    camera = {"name": "track", "height": 20, "width": 30}
    env = make_vla_env("run", suite=suite, cameras=[camera])
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (20, 30, 3) and observation["image"].std() > 5
    with pytest.raises(ValueError, match="Cameras need MuJoCo's `model` and `data`"):
        make_vla_env("go", suite=line(), cameras=[camera])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GymSuite("empty", {}), "The suite 'empty' needs at least one task"),
        (lambda: GymTask("Line-v0", ()), r"needs at least one instruction, .*got \(\): write GymTask\('Line-v0'"),
        (lambda: GymTask("Line-v0", ""), "needs at least one instruction, .*not empty, got ''"),
        (lambda: GymTask("Line-v0", None), "needs at least one instruction, .*got None"),
        (lambda: GymTask("Line-v0", ["go", 3]), r"needs at least one instruction, .*got \['go', 3\]"),
        (lambda: GymSuite("a", {"go": GymTask("Line-v0", "go")}, horizon=0), "horizon must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()

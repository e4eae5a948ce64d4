from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_vla import SharedMemoryVecEnv
from sb3_vla.common.lost_episode import lost_info
from sb3_vla.evaluation.episode_schedule import EpisodeSchedule, episode_jobs
from sb3_vla.evaluation.evaluate import evaluate, evaluate_on_tasks
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.vec_env.make import make_vec_env_from_fns
from sb3_vla_envs import ChunkedActionWrapper, GymSuite, GymTask, make_vla_env


class ReachEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Chunks of up to 4 primitive steps. Goal g of task "near" is solved after 5 * (g + 1) primitive steps; "far" after
    twice as many, unless the 10 chunks allowed are over before. A positive action is what makes progress.
    """

    def __init__(self, ignore_options: bool = False) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4, 1), np.float32)
        self.ignore_options = ignore_options
        self.n_resets = 0
        self.n_simulated = 0
        self.task = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_resets += 1
        options = {} if self.ignore_options or options is None else options
        self.task = options.get("task", "near")
        self.remaining = 5 * (options.get("goal_index", 0) + 1) * (2 if self.task == "far" else 1)
        self.n_chunks = self.n_steps = 0
        self.start = float(self.np_random.uniform())
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_simulated += 1
        self.n_chunks += 1
        executed = min(4, self.remaining)
        self.remaining -= executed * int(action[0, 0] > 0)
        self.n_steps += executed
        success = self.remaining == 0
        info = {"task": self.task, "chunk_length": executed, "is_success": success}
        if success:
            info["steps_to_success"] = self.n_steps
        return self._observation(), float(success) + 0.001 * self.start, success, self.n_chunks == 10, info

    def _observation(self) -> np.ndarray:
        return np.array([self.start, self.remaining], dtype=np.float32)


class ConstantPolicy:
    """Takes the same action always; counts how often it was asked."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.n_calls = 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        self.n_calls += 1
        return np.full((len(observation), 4, 1), self.value, dtype=np.float32), state


def scheduled(make: Callable[[], gym.Env[Any, Any]] = ReachEnv) -> EpisodeSchedule:
    return EpisodeSchedule(make())


def reach_venv(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([scheduled] * n_envs)


def test_an_episode_whose_worker_is_lost_is_an_error() -> None:
    class LosesOne(ReachEnv):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = super().step(action)
            if self.n_chunks == 2:  # as RayVecEnv tells of it
                return observation, 0.0, False, True, {**info, **lost_info(observation)}
            return observation, reward, terminated, truncated, info

    with pytest.raises(RuntimeError, match="a worker of the environments was lost in mid-episode"):
        evaluate(ConstantPolicy(), DummyVecEnv([partial(scheduled, LosesOne)]), episode_jobs(["far"], 2), progress=False)


def test_each_task_and_goal_is_played_once_with_the_right_numbers() -> None:
    result = evaluate(ConstantPolicy(), reach_venv(3), episode_jobs(["near", "far"], 5), progress=False)
    assert [(e.task, e.goal_index) for e in result.episodes] == [(t, g) for t in ("near", "far") for g in range(5)]
    near, far = result.episodes[:5], result.episodes[5:]
    assert [e.steps_to_success for e in near] == [5, 10, 15, 20, 25]
    assert [e.steps_to_success for e in far] == [10, 20, 30, 40, None]  # 50 would take more than 10 chunks of 4
    assert [e.success for e in far] == [True, True, True, True, False]
    assert far[4].n_steps == 40
    assert near[0].episode_return == pytest.approx(1.0, abs=0.01)
    assert result.overall.success == pytest.approx((1.0 + 0.8) / 2)
    assert result.overall.steps_to_success == pytest.approx((15 + 25) / 2)
    assert result.settings == {"deterministic": True}


@pytest.mark.parametrize("n_envs", [1, 4, 13])
def test_short_episodes_are_not_favoured(n_envs: int) -> None:
    # The usual trap: taking the first episodes to end gives 1.0 here, as failures last longest.
    jobs = episode_jobs(["far"], 12)
    result = evaluate(ConstantPolicy(), reach_venv(n_envs), jobs, progress=False)
    assert result.overall.success == pytest.approx(4 / 12)
    assert result.overall.n_episodes == 12


def test_number_and_kind_of_environments_do_not_matter() -> None:
    model = PPO("MlpPolicy", DummyVecEnv([ReachEnv]), n_steps=8, batch_size=8, seed=0, device="cpu")
    jobs = episode_jobs(["near", "far"], 4, seed=5)
    results = []
    venvs: list[VecEnv] = [reach_venv(1), reach_venv(4), make_vec_env_from_fns([scheduled] * 2)]
    assert isinstance(venvs[-1], SharedMemoryVecEnv)
    for venv in venvs:
        results.append(evaluate(model, venv, jobs, progress=False))
        venv.close()
    for other in results[1:]:
        assert other.episodes == results[0].episodes
    assert len({episode.episode_return for episode in results[0].episodes}) == 8  # each has a random start of its own


def test_a_second_evaluation_on_the_same_environments_repeats_the_first() -> None:
    venv = reach_venv(3)
    jobs = episode_jobs(["near"], 5)
    first, second = (evaluate(ConstantPolicy(), venv, jobs, progress=False) for _ in range(2))
    assert first.episodes == second.episodes


def test_finished_environments_simulate_nothing() -> None:
    venv = reach_venv(2)
    evaluate(ConstantPolicy(), venv, [*episode_jobs(["far"], 5)[4:], *episode_jobs(["near"], 1)], progress=False)
    slow: Any
    quick: Any
    slow, quick = (env.unwrapped for env in venv.envs)
    assert (slow.n_simulated, slow.n_resets) == (10, 1)
    assert (quick.n_simulated, quick.n_resets) == (2, 1)  # 5 primitive steps are 2 chunks


def test_environments_without_tasks_and_chunks() -> None:
    class Corridor(gym.Env[Any, Any]):
        observation_space = spaces.Discrete(10)
        action_space = spaces.Box(-1.0, 1.0, (4, 1), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
            assert options is None
            self.position = 0
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            self.position += 1
            return self.position, 1.0, self.position == 3, False, {"is_success": self.position == 3}

    venv = DummyVecEnv([partial(scheduled, Corridor)] * 2)
    result = evaluate(ConstantPolicy(), venv, episode_jobs([""], 3), progress=False)
    assert result.episodes == [EpisodeRecord("", goal, True, 3, 3, 3.0) for goal in range(3)]


class SucceedsInPassing(gym.Env[Any, Any]):
    """Success is reported at the third of seven steps, and not afterwards; the task by a number."""

    observation_space = spaces.Discrete(8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        self.t, self.task = 0, None if options is None else int(options["task"])
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.t, 0.0, False, self.t == 7, {"is_success": self.t == 3, "task": self.task}


@pytest.mark.parametrize("task", ["", "7"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_success_at_any_step_counts_inside_chunks_too(chunk_size: int | None, task: str) -> None:
    def make() -> gym.Env[Any, Any]:
        return SucceedsInPassing() if chunk_size is None else ChunkedActionWrapper(SucceedsInPassing(), chunk_size)

    result = evaluate(ConstantPolicy(), DummyVecEnv([partial(scheduled, make)]), episode_jobs([task], 1), progress=False)
    assert result.episodes == [EpisodeRecord(task, 0, True, 3, 7, 0.0)]


def test_recurrent_policies_keep_their_state_and_learn_of_new_episodes() -> None:
    starts: list[list[bool]] = []

    class Recurrent(ConstantPolicy):
        def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            starts.append(list(episode_start))
            assert (state is None) == (self.n_calls == 0)
            action, _ = super().predict(observation)
            return action, (np.zeros(1),)

    evaluate(Recurrent(), reach_venv(1), episode_jobs(["near"], 2), progress=False)  # 2 chunks, then 3
    assert starts == [[True], [False], [True], [False], [False]]


def test_progress_tells_success_and_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_vla_envs.progress._SECONDS_BETWEEN_LINES", 0.0)
    result = evaluate(ConstantPolicy(), reach_venv(2), episode_jobs(["near"], 3))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"evaluate: 3/3 episodes, success 1, steps {result.overall.steps_to_success:.3g}, ")


def test_evaluate_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no episodes"):
        evaluate(ConstantPolicy(), reach_venv(1), [], progress=False)
    with pytest.raises(ValueError, match="EpisodeSchedule"):
        evaluate(ConstantPolicy(), DummyVecEnv([ReachEnv]), episode_jobs(["near"], 1), progress=False)
    with pytest.raises(ValueError, match="EpisodeSchedule"):
        evaluate(ConstantPolicy(), scheduled(), episode_jobs(["near"], 1), progress=False)  # type: ignore[arg-type]
    policy = ConstantPolicy()
    with pytest.raises(TypeError):
        evaluate(policy, reach_venv(1), episode_jobs(["near"], 1), progress=False, settings={"camera": object()})
    assert policy.n_calls == 0  # before any work


def test_an_environment_that_plays_another_task_is_reported() -> None:
    venv = DummyVecEnv([partial(scheduled, partial(ReachEnv, ignore_options=True))])
    with pytest.raises(RuntimeError, match="played the task 'near'"):
        evaluate(ConstantPolicy(), venv, episode_jobs(["far"], 1), progress=False)


class Silent(gym.Wrapper[Any, Any, Any, Any]):
    """Whose infos lack something."""

    def __init__(self, lacks: str) -> None:
        super().__init__(ReachEnv())
        self.lacks = lacks

    def step(self, action: Any) -> Any:
        *result, info = super().step(action)
        return *result, {name: value for name, value in info.items() if name != self.lacks}


def test_nothing_is_made_up_of_what_infos_do_not_say() -> None:
    venv = DummyVecEnv([partial(scheduled, partial(Silent, "task"))])
    assert evaluate(ConstantPolicy(), venv, episode_jobs(["near"], 2), progress=False).overall.success == 1
    with pytest.raises(RuntimeError, match=r"no info of the episode says by info\['task'\] which task it played"):
        evaluate(ConstantPolicy(), venv, episode_jobs(["near", "far"], 1), progress=False)
    venv = DummyVecEnv([partial(scheduled, partial(Silent, "is_success"))])
    with pytest.raises(RuntimeError, match=r"No info of an episode says by info\['is_success'\]"):
        evaluate(ConstantPolicy(), venv, episode_jobs(["near"], 1), progress=False)


class SamplingModel:
    """A model for MetaWorld that moves at random."""

    gamma = 0.97

    def __init__(self, observation_space: spaces.Space[Any], chunk_size: int = 8) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1, 1, (chunk_size, 4))

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        chunks = th.rand(len(observation["state"]), *self.action_space.shape) * 2 - 1
        return (0.0 * chunks if deterministic else chunks).numpy(), state


@pytest.fixture(scope="module")
def metaworld_model() -> Any:
    pytest.importorskip("metaworld")
    env = make_vla_env("MT10", cameras=["corner4"], horizon=10)
    env.close()
    return SamplingModel(env.observation_space)


METAWORLD: dict[str, Any] = {"cameras": ["corner4"], "horizon": 10, "progress": False, "vec_env_cls": DummyVecEnv}


def test_metaworld_evaluation_runs_every_goal_of_the_split(metaworld_model: Any) -> None:
    tasks = "drawer-close-v3,window-open-v3"
    one, three = (evaluate_on_tasks(metaworld_model, tasks, 2, n_envs=n_envs, **METAWORLD) for n_envs in (1, 3))
    assert one.episodes == three.episodes
    assert [(e.task, e.goal_index, e.n_steps) for e in one.episodes] == [
        (task, goal, 10) for task in ("drawer-close-v3", "window-open-v3") for goal in (0, 1)
    ]
    told = {"suite": "metaworld", "goal_split": "test", "chunk_size": 8, "gamma": 0.97, "horizon": 10, "deterministic": True}
    assert told.items() <= one.settings.items()
    # What goes without saying is said, but for what matters in training only
    silent = {"quality": "fast", "goal_seed": 0, "n_action_steps": None, "reward": "sparse", "terminate_on_success": True}
    assert silent.items() <= one.settings.items() and not {"task_order", "goal_order", "task_ids"} & one.settings.keys()


def test_metaworld_sampling_follows_the_seed_and_leaves_training_alone(metaworld_model: Any) -> None:
    arguments = {**METAWORLD, "reward": "dense", "deterministic": False, "n_envs": 2}
    before = th.get_rng_state()
    returns = [
        evaluate_on_tasks(metaworld_model, "drawer-close-v3", 1, seed=seed, **arguments).episodes[0].episode_return
        for seed in (0, 0, 1)
    ]
    assert returns[0] == returns[1] != returns[2]
    assert th.equal(th.get_rng_state(), before)


def test_metaworld_evaluation_refuses_misfits_and_unknown_tasks(metaworld_model: Any) -> None:
    with pytest.raises(ValueError, match="chunk_size is 4"):
        evaluate_on_tasks(metaworld_model, "drawer-close-v3", chunk_size=4, **METAWORLD)
    with pytest.raises(ValueError, match="observation 'image_gripperPOV'"):
        evaluate_on_tasks(metaworld_model, "drawer-close-v3", **{**METAWORLD, "cameras": ["corner4", "gripperPOV"]})
    with pytest.raises(ValueError, match="drawer-clothes-v3"):
        evaluate_on_tasks(metaworld_model, "drawer-clothes-v3", **METAWORLD)
    with pytest.raises(ValueError, match="There is no suite 'metawelt'"):
        evaluate_on_tasks(metaworld_model, "drawer-close-v3", suite="metawelt", **METAWORLD)
    for name in ("n_envs", "n_goals"):
        with pytest.raises(ValueError, match=name):
            evaluate_on_tasks(metaworld_model, "drawer-close-v3", **{name: 0, **METAWORLD})


class Slide(gym.Env[Any, Any]):
    """A block that positive actions push; it arrives after so many steps as its seed's parity says: six if even, else nine."""

    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "state": spaces.Box(-np.inf, np.inf, (1,), np.float32)}
    )
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # declared as an instance attribute by gym

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.left = 9 if seed % 2 else 6
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= int(action[0] > 0)
        return self._observation(), 0.0, False, False, {"arrived": self.left == 0}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"image": np.zeros((8, 8, 3), np.uint8), "state": np.array([self.left], np.float32)}


def test_a_suite_of_ones_own_is_evaluated_and_named_in_the_result() -> None:
    gym.register("Slide-v0", entry_point=Slide)
    suite = GymSuite("sliding", {"slide": GymTask("Slide-v0", "slide the block")}, success="arrived", horizon=20)
    env = make_vla_env("slide", suite=suite, chunk_size=4)

    class Push(SamplingModel):
        def __init__(self) -> None:
            self.observation_space, self.action_space = env.observation_space, env.action_space  # type: ignore[assignment]

        def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            return np.ones((len(observation["state"]), *self.action_space.shape), np.float32), state

    model: Any = Push()
    arguments: dict[str, Any] = {"suite": suite, "vec_env_cls": DummyVecEnv, "progress": False}
    for split, steps in (("test", 6), ("train", 9)):  # goals of the one are even seeds, of the other odd ones
        result = evaluate_on_tasks(model, "slide", 2, split, **arguments)
        assert [(e.task, e.goal_index, e.steps_to_success, e.n_steps) for e in result.episodes] == [
            ("slide", goal, steps, steps) for goal in (0, 1)
        ]
        told = {"suite": "sliding", "tasks": ["slide"], "goal_split": split, "n_goals": 2, "chunk_size": 4, "horizon": 20}
        assert told.items() <= result.settings.items()
    with pytest.raises(TypeError, match="no setting 'horizont'; did you mean 'horizon'"):
        evaluate_on_tasks(model, "slide", horizont=9, **arguments)

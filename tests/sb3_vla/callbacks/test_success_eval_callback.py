import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecFrameStack, VecMonitor, VecNormalize

from sb3_vla import PPOSelfBC, SuccessEvalCallback
from sb3_vla_envs import ChunkedActionWrapper

NAN = float("nan")


class Scripted(gym.Env):
    """
    Plays episodes from a list, each ``(success, length, reward)``, with the reward at the end; a success of ``None`` is not
    reported. What follows ``length`` goes into the last info.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, script):
        self.script = iter(script)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = next(self.script, (None, 1, 0.0))
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        success, length, reward, *rest = self.episode
        self.t += 1
        info = dict(*rest)
        if self.t < length:
            return np.zeros(1, np.float32), 0.0, False, False, info
        if success is not None:
            info["is_success"] = success
        return np.zeros(1, np.float32), reward, True, False, info


class CountCalls(BaseCallback):
    def _on_step(self):
        return True


def small_ppo(env):
    return PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs={"net_arch": [4]}, device="cpu")


_MODEL = small_ppo(Scripted([]))


def evaluate(evaluations, callback_class=SuccessEvalCallback, env=None, model=_MODEL, **kwargs):
    """
    Evaluate a model once for each list of scripted episodes; the k-th time (from 1 on) it has seen k timesteps.

    :return: The callback, what it logged at each evaluation, and whether it let the training go on
    """
    # DummyVecEnv resets an environment at once when an episode ends, and evaluate_policy again
    script = [episode for episodes in evaluations for episode in [*episodes, (None, 1, 0.0)]]
    env = DummyVecEnv([lambda: Monitor(Scripted(script))]) if env is None else env
    settings = {"n_eval_episodes": len(evaluations[0]), "eval_freq": 1, "verbose": 0, **kwargs}
    callback = callback_class(env, **settings)
    logs = []

    class Keep(Logger):
        def dump(self, step=0):
            logs.append({key: (value, self.name_to_excluded[key]) for key, value in self.name_to_value.items()})
            super().dump(step)

    model.set_logger(Keep(None, []))
    callback.init_callback(model)
    callback.on_training_start({}, {})
    goes_on = []
    for k in range(1, len(evaluations) + 1):
        model.num_timesteps = k
        goes_on.append(callback.on_step())
    return callback, logs, goes_on


def new_bests(evaluations, **kwargs) -> list[int]:
    """Numbers, from 1 on, of the evaluations that brought a new best model."""

    class NewBest(BaseCallback):
        def _on_step(self):
            found.append(self.num_timesteps)
            return True

    found: list[int] = []
    evaluate(evaluations, callback_on_new_best=NewBest(), **kwargs)
    return found


class HasTasks(Scripted):
    """As those of suites, it says which tasks it plays."""

    def __init__(self, *tasks):
        super().__init__([])
        self.tasks = tasks


def test_environments_with_tasks_of_their_own_must_share_the_episodes_evenly():
    def make(*tasks):
        return DummyVecEnv([lambda name=name: Monitor(HasTasks(*name)) for name in tasks])

    with pytest.raises(ValueError, match=r"n_eval_episodes=5 can't be shared out evenly among the 3 .* give a multiple of 3"):
        SuccessEvalCallback(make("a", "b", "c"))
    SuccessEvalCallback(make("a", "b", "c"), n_eval_episodes=6)
    SuccessEvalCallback(make("ab", "ab", "ab"))
    SuccessEvalCallback(make([{"name": "a"}], [{"name": "a"}]))


YES, NO = (True, 9, 1.0), (False, 9, 0.0)


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        # Success first, even with more steps and less reward
        ([[YES, NO], [(True, 20, 0.1), (True, 20, 0.1)], [YES, NO]], [1, 2]),
        # Then steps, of the successes alone
        ([[(True, 8, 1.0), NO], [(True, 9, 1.0), (False, 1, 0.0)], [(True, 7, 1.0), (False, 30, 0.0)]], [1, 3]),
        # More reward does not make up for a step
        ([[(True, 8, 1.0), NO], [(True, 9, 5.0), NO]], [1]),
        # Equal is not better
        ([[YES, NO], [NO, YES], [YES, NO]], [1]),
        # Equal in success and steps: reward
        ([[NO, NO], [NO, (False, 9, 0.5)], [NO, (False, 9, 0.4)]], [1, 2]),
        # Nothing but failures, then the first success
        ([[(False, 3, 9.0)] * 2, [YES, (False, 30, -9.0)], [NO, NO]], [1, 2]),
    ],
)
def test_success_then_steps_then_reward(evaluations, expected):
    assert new_bests(evaluations) == expected


@pytest.mark.parametrize("callback_class", [SuccessEvalCallback, EvalCallback])
def test_without_success_in_info_the_reward_decides_as_in_sb3(callback_class):
    rewards = [1.0, 0.5, 2.0, 2.0, -1.0, 2.5]
    script = [[(None, 3, reward), (None, 30, reward)] for reward in rewards]
    callback, logs, _ = evaluate(script, callback_class)
    assert new_bests(script, callback_class=callback_class) == [1, 3, 6]
    assert callback.best_mean_reward == 2.5 and callback.last_mean_reward == 2.5
    assert not any("success" in key for log in logs for key in log)


EPISODES = st.tuples(st.sampled_from([True, False]), st.integers(1, 4), st.integers(-2, 2).map(float))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(EPISODES, min_size=3, max_size=3), min_size=1, max_size=5), st.booleans())
def test_best_is_what_sorting_finds(evaluations, reports_success):
    if not reports_success:
        evaluations = [[(None, *rest) for _, *rest in episodes] for episodes in evaluations]

    def worth(episodes):
        steps = [length for success, length, _ in episodes if success]
        mean = sum(steps) / len(steps) if steps else 1e9
        return len(steps), -mean, sum(reward for _, _, reward in episodes)

    worths = [worth(episodes) for episodes in evaluations]
    expected = [k for k, value in enumerate(worths, 1) if all(value > earlier for earlier in worths[: k - 1])]
    assert new_bests(evaluations) == expected


def test_of_several_ranks_the_first_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in ((1, []), (0, ["evaluations.npz"])):
        monkeypatch.setenv("RANK", str(rank))
        evaluate([[YES]], log_path=str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == written


def test_file_of_evaluations(tmp_path):
    chunks = {"chunk_length": 4}
    script = [
        [(True, 3, 1.0, {**chunks, "steps_to_success": 10}), (False, 5, 0.25, chunks)],
        [(True, 2, 0.5, chunks), (True, 4, 0.75)],
    ]
    evaluate(script, log_path=str(tmp_path))
    with np.load(tmp_path / "evaluations.npz") as file:
        content = {key: file[key] for key in file.files}
    expected = {
        "timesteps": [1, 2],
        "results": [[1.0, 0.25], [0.5, 0.75]],
        "ep_lengths": [[3, 5], [2, 4]],
        "successes": [[True, False], [True, True]],
        # Chunks times their length; without chunk_length a step is a step
        "steps": [[12, 20], [8, 4]],
        # What the environment says, or else what was counted
        "steps_to_success": [[10, NAN], [8, 4]],
    }
    assert content.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(content[key], values, equal_nan=content[key].dtype.kind == "f"), key
    assert content["successes"].dtype == bool


def test_file_has_sb3s_content_under_sb3s_names(tmp_path):
    script = [[YES, NO], [NO, (True, 3, 0.25)]]
    contents = []
    for callback_class in (EvalCallback, SuccessEvalCallback):
        evaluate(script, callback_class, log_path=str(tmp_path))
        with np.load(tmp_path / "evaluations.npz") as file:
            contents.append({key: file[key] for key in file.files})
    theirs, ours = contents
    assert all(np.array_equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


def test_episodes_without_success_in_info_fail_where_others_report_it(tmp_path):
    # As an environment does that says is_success only when there is one
    _, logs, _ = evaluate([[YES, (None, 5, 0.0)], [(None, 5, 0.0), YES]], log_path=str(tmp_path))
    assert logs[0]["eval/success_rate"][0] == 0.5
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["successes"].tolist() == [[True, False], [False, True]]


def test_tasks_need_not_be_named_by_strings():
    _, (log,), _ = evaluate(
        [[(True, 4, 1.0, {"task": ("push", 1)}), (False, 9, 0.0, {"task": 2}), (True, 8, 1.0, {"task": None})]]
    )
    names = {key: value for key, (value, _) in log.items() if key.startswith("eval/success_rate/")}
    assert names == {"eval/success_rate/('push', 1)": 1.0, "eval/success_rate/2": 0.0}
    assert log["eval/steps_to_success"][0] == 6


def test_what_is_logged():
    lever, button = {"task": "pull-the-lever"}, {"task": "press-button"}
    script = [
        [(True, 4, 1.0, lever), (True, 6, 1.0, lever), (True, 11, 1.0, button), (False, 20, 0.0, button)],
        [(False, 20, 0.0, lever)] * 4,
    ]
    _, (first, second), _ = evaluate(script)
    assert first["eval/mean_reward"][0] == 0.75 and first["eval/mean_ep_length"][0] == 41 / 4
    assert first["eval/success_rate"][0] == 0.75
    # Tasks count alike: (4 + 6) / 2 and 11
    assert first["eval/steps_to_success"][0] == 8
    assert first["eval/success_rate/pull-the-lever"] == (1.0, ("stdout", "log"))
    assert first["eval/success_rate/press-button"] == (0.5, ("stdout", "log"))
    assert first["time/total_timesteps"] == (1, ("tensorboard",))
    assert second["eval/success_rate"][0] == 0 and "eval/steps_to_success" not in second


def test_it_speaks_if_asked(capsys):
    evaluate([[YES, NO]], verbose=1)
    said = capsys.readouterr().out
    assert "Eval num_timesteps=1, episode_reward=0.50 +/- 0.50" in said
    assert "Success rate: 50.00%, steps to success: 9.00" in said and "New best model!" in said
    evaluate([[YES, NO]])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("where", ["inside", "outside", "vec", "none"])
def test_wherever_monitor_stands_primitive_steps_count(where, tmp_path):
    script = [(True, 7, 1.0), (True, 4, 1.0), (False, 5, 0.0)]

    def make():
        env = Scripted([*script, *script])
        env = ChunkedActionWrapper(Monitor(env) if where == "inside" else env, 3, gamma=1.0)
        return Monitor(env) if where == "outside" else env

    env = DummyVecEnv([make])
    env = VecMonitor(env) if where == "vec" else env
    model = small_ppo(ChunkedActionWrapper(Scripted([]), 3, gamma=1.0))
    evaluate([script], env=env, model=model, log_path=str(tmp_path), warn=False)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["steps"].tolist() == [[7, 4, 5]]
        assert file["steps_to_success"][0, :2].tolist() == [7, 4]
        assert file["ep_lengths"].tolist() == [[7, 4, 5] if where == "inside" else [3, 2, 2]]


def test_episodes_of_several_environments_are_told_apart(tmp_path):
    def make(length):
        return lambda: Monitor(Scripted([(True, length, 1.0)] * 9))

    evaluate([[YES] * 4], env=DummyVecEnv([make(2), make(5)]), log_path=str(tmp_path))
    with np.load(tmp_path / "evaluations.npz") as file:
        # In the order in which they end
        assert file["steps"].tolist() == file["ep_lengths"].tolist() == [[2, 2, 5, 5]]


def test_a_lost_life_is_no_episode(tmp_path):
    class LosesALife(gym.Wrapper):
        def step(self, action):
            observation, reward, _, _, info = self.env.step(action)
            self.n_steps = getattr(self, "n_steps", 0) + 1
            return observation, reward, "episode" in info or self.n_steps == 2, False, info

        def reset(self, **kwargs):
            return (np.zeros(1, np.float32), {}) if getattr(self, "n_steps", 0) == 2 else self.env.reset(**kwargs)

    script = [(True, 5, 1.0), (False, 3, 0.0)]
    evaluate([script], env=DummyVecEnv([lambda: LosesALife(Monitor(Scripted(script)))]), log_path=str(tmp_path))
    with np.load(tmp_path / "evaluations.npz") as file:
        assert len(file["successes"][0]) == len(file["results"][0]) == 2 and file["ep_lengths"][0, 0] == 5


# --- Children ---------------------------------------------------------------------------------------------------------


def test_reward_threshold_is_compared_with_the_best_models_reward():
    script = [[(True, 9, 0.4)], [(True, 8, 0.6)], [(True, 7, 0.9)]]
    for where in ("callback_on_new_best", "callback_after_eval"):
        callback, _, goes_on = evaluate(script, **{where: StopTrainingOnRewardThreshold(0.5)})
        assert goes_on == [True, False, False] and callback.best_mean_reward == 0.9
    _, _, goes_on = evaluate(script, callback_on_new_best=StopTrainingOnRewardThreshold(2.0))
    assert goes_on == [True] * 3


@pytest.mark.parametrize("in_a_list", [False, True])
def test_fewer_steps_with_equal_reward_are_an_improvement(in_a_list):
    improving = [[(True, length, 1.0)] for length in (9, 8, 7, 6, 5)]
    stuck = [[(True, 5, 1.0)]] * 3

    def child():
        stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1)
        return CallbackList([CountCalls(), stop]) if in_a_list else stop

    _, _, goes_on = evaluate([*improving, *stuck], callback_after_eval=child())
    assert goes_on == [True] * 5 + [True, False, False]
    # SB3's compares rewards
    _, _, goes_on = evaluate([*improving, *stuck], EvalCallback, callback_after_eval=child())
    assert not all(goes_on[:5])


def test_more_success_with_less_reward_is_an_improvement():
    script = [[(False, 5, 9.0)] * 2, [(True, 5, 1.0), (False, 5, 1.0)], [(True, 5, 0.0)] * 2]
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0)
    callback, _, goes_on = evaluate(script, callback_after_eval=stop)
    assert all(goes_on) and callback.best_mean_reward == 0.0


def test_it_evaluates_every_so_many_calls_and_never_if_zero():
    script = [[YES]] * 6
    for eval_freq, expected in ((0, 0), (2, 3), (4, 1)):
        after = CountCalls()
        evaluate(script, eval_freq=eval_freq, callback_after_eval=after)
        assert after.n_calls == expected


def normalized(n_episodes=99, **kwargs):
    return VecNormalize(DummyVecEnv([lambda: Monitor(Scripted([YES] * n_episodes))]), **kwargs)


@pytest.mark.parametrize("outside", [lambda env: env, VecCheckNan])
def test_normalisation_follows_the_training_environment(outside):
    train, evaluated = normalized(), normalized(training=False, norm_reward=False)
    model = PPO("MlpPolicy", outside(train), n_steps=16, batch_size=8, n_epochs=1, device="cpu")
    model.learn(16, callback=SuccessEvalCallback(evaluated, n_eval_episodes=1, eval_freq=16, verbose=0))
    assert evaluated.obs_rms.count == train.obs_rms.count > 16 and evaluated.obs_rms is not train.obs_rms
    assert evaluated.ret_rms.var == train.ret_rms.var


def test_an_environment_that_is_wrapped_differently_is_refused(make_model, make_vec_env):
    bare, both = DummyVecEnv([lambda: Monitor(Scripted([YES] * 9))]), "the latter in VecNormalize.eval_env, training=False"
    with pytest.raises(ValueError, match=rf"\['observation'\] of the training environment, and \[\] .*{both}"):
        small_ppo(normalized()).learn(8, callback=SuccessEvalCallback(bare, verbose=0))
    with pytest.raises(ValueError, match=r"\[\] of the training environment, and \['observation'\]"):
        small_ppo(bare).learn(8, callback=SuccessEvalCallback(normalized(), verbose=0))
    model = make_model(VecFrameStack(make_vec_env(), 2))
    with pytest.raises(ValueError, match=r"'state': the model has Box\(6,\).* the environment Box\(3,\).*VecFrameStack"):
        model.learn(8, callback=SuccessEvalCallback(make_vec_env(1), verbose=0))


def test_stacked_and_normalised_alike_but_for_the_order_of_an_images_axes(make_model, make_vec_env, recwarn):
    def stacked(n_envs, **kwargs):
        return VecNormalize(VecFrameStack(make_vec_env(n_envs), 2), norm_obs_keys=["state"], gamma=0.9, **kwargs)

    train, evaluated = stacked(2), stacked(1, training=False, norm_reward=False)
    callback = SuccessEvalCallback(evaluated, n_eval_episodes=1, eval_freq=8, verbose=0, warn=False)
    make_model(train).learn(16, callback=callback)
    assert evaluated.obs_rms["state"].count == train.obs_rms["state"].count
    assert not [warning for warning in recwarn if "same type" in str(warning.message)]


# --- Models that differ -----------------------------------------------------------------------------------------------


class SetActions(BaseCallback):
    """Makes the policy's mean the given chunk before each call."""

    def __init__(self, chunks):
        super().__init__()
        self.chunks = chunks

    def _on_step(self):
        layer = self.model.policy.head.mean_net[-1]
        with th.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(th.tensor([[first, 0.0] for first in self.chunks[self.n_calls - 1]]).flatten())
        return True


def test_the_saved_model_is_the_best_one(tmp_path, make_model, make_env):
    # Of seven steps four must be positive: two of three are so after five steps, three of three after four, one never
    slow, fast, never = (1.0, 1.0, -1.0), (1.0, 1.0, 1.0), (1.0, -1.0, -1.0)
    evaluated = Monitor(make_env())
    model = make_model(n_steps=5, batch_size=5)
    callback = SuccessEvalCallback(evaluated, n_eval_episodes=2, eval_freq=1, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(10, callback=[SetActions([never, slow, fast, never, slow]), callback])
    best = PPOSelfBC.load(tmp_path / "best_model.zip")
    assert best.num_timesteps == 2 * 3
    env = make_env()
    observation, done = env.reset()[0], False
    while not done:
        observation, _, done, truncated, info = env.step(best.predict(observation, deterministic=True)[0])
        assert not truncated
    assert info["steps_to_success"] == 4


def test_on_another_algorithm_with_sb3s_arguments_in_sb3s_order(tmp_path):
    script = [YES] * 99
    after = CountCalls()
    callback = SuccessEvalCallback(Scripted(script), None, after, 2, 4, str(tmp_path), str(tmp_path), False, False, 0, False)
    PPO("MlpPolicy", Scripted(script), n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8, callback=callback)
    assert after.n_calls == 2 and (tmp_path / "best_model.zip").exists() and (tmp_path / "evaluations.npz").exists()

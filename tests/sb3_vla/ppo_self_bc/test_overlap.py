import copy
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_vla import PPOSelfBC, SharedMemoryVecEnv
from sb3_vla.runs.checkpoint import RunCheckpoint, load_checkpoint
from sb3_vla.runs.interruption import StopRequest

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])

N_ENVS, N_STEPS = 2, 6
ROLLOUT = N_ENVS * N_STEPS


class Reach(VecEnv):
    """
    A number is shown, and the nearer the action comes to it the better. Episodes are of 5 steps.

    :param success: Whether an episode succeeds at its end
    :param seconds: What a step takes
    """

    def __init__(self, success=False, seconds=lambda: 0.0):
        super().__init__(N_ENVS, spaces.Box(-1, 1, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32))
        self.success, self.seconds = success, seconds
        self.rng = np.random.default_rng(0)
        self.n_steps = 0
        self.is_stepping = False
        self.fails_at = None
        self.stepped = threading.Condition()

    def reset(self):
        self.t = 0
        return self._observe()

    def _observe(self):
        self.obs = self.rng.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        return self.obs.copy()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.is_stepping = True
        time.sleep(self.seconds())
        if self.n_steps == self.fails_at:
            self.is_stepping = False
            raise OSError("the simulator is out of order")
        rewards = 1 - np.abs(self.actions - self.obs).sum(axis=1)
        self.t += 1
        done = self.t % 5 == 0
        infos = [{"is_success": self.success and done} for _ in range(self.num_envs)]
        if done:
            ended = {"terminal_observation": self.obs[0] / 2, "TimeLimit.truncated": True, "episode": {"r": 1.0, "l": 5}}
            infos = [{**info, **ended} for info in infos]
        obs = self._observe()
        self.is_stepping = False
        with self.stepped:
            self.n_steps += 1
            self.stepped.notify_all()
        return obs, rewards.astype(np.float32), np.full(self.num_envs, done), infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs  # SB3 asks for the render mode

    def has_attr(self, attr_name):
        return False

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class WithDropout(BaseFeaturesExtractor):
    """Draws random numbers in the update."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.net = th.nn.Sequential(th.nn.Linear(1, 8), th.nn.Dropout(0.3))

    def forward(self, observations):
        return self.net(observations)


def make(env=None, **kwargs):
    settings = {"n_steps": N_STEPS, "batch_size": ROLLOUT, "n_epochs": 1, "learning_rate": 0.05, "bc_weight": 0, "seed": 3}
    policy_kwargs = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    settings |= {"overlap": True, "device": "cpu", **kwargs}
    return PPOSelfBC("MlpPolicy", env or Reach(), policy_kwargs=policy_kwargs, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def flat(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def watch_updates(model, before_update=lambda: None):
    """What each update begins with."""
    seen, train = [], model.train

    def watched():
        before_update()
        buffer = model.rollout_buffer
        names = ("observations", "actions", "values", "log_probs", "rewards", "returns")
        arrays = {name: copy.deepcopy(getattr(buffer, name)) for name in names}
        seen.append({**arrays, "weights": weights(model), "last_obs": copy.deepcopy(model._last_obs)})
        train()
        seen[-1]["log"] = dict(model.logger.name_to_value)

    model.train = watched
    return seen


def rollout_threads():
    return [thread for thread in threading.enumerate() if thread.name == "rollout"]


def test_a_rollout_is_of_the_policy_from_before_the_last_update_and_ratios_are_held_against_it():
    model = make(gae_lambda=1.0)
    updates = watch_updates(model)
    model.learn(5 * ROLLOUT)
    assert len(updates) == 5
    policy = make().policy
    for number, update in enumerate(updates):
        behaved = updates[max(number - 1, 0)]["weights"]
        policy.load_state_dict(behaved)
        with th.no_grad():
            obs, actions = (th.from_numpy(update[name]).flatten(0, 1) for name in ("observations", "actions"))
            values, log_probs, _ = policy.evaluate_actions(obs, actions)
            next_values = policy.predict_values(th.from_numpy(update["last_obs"])).flatten()
            policy.load_state_dict(update["weights"])
            now = policy.evaluate_actions(obs, actions)[1]
        np.testing.assert_allclose(update["values"].flatten(), values.flatten(), atol=1e-6)
        np.testing.assert_allclose(update["log_probs"].flatten(), log_probs, atol=1e-5)
        if (number + 1) * N_STEPS % 5 == 0:
            next_values = th.zeros(N_ENVS)  # an episode has ended, and its last value is in the reward
        np.testing.assert_allclose(update["returns"][-1], update["rewards"][-1] + 0.99 * next_values.numpy(), atol=1e-6)
        # One step an update, so that its KL divergence is that of before it
        difference = now - log_probs
        kl = float((difference.exp() - 1 - difference).mean())
        assert update["log"]["train/approx_kl"] == pytest.approx(kl, abs=1e-6)
        assert (kl > 1e-4) == (number > 0)


def test_time_limits_are_bootstrapped_by_the_values_of_the_policy_that_acted():
    rewards = []
    env = Reach()
    step_wait = env.step_wait

    def noted():
        results = step_wait()
        rewards.append((results[1].copy(), results[3]))
        return results

    env.step_wait = noted
    model = make(env)
    updates = watch_updates(model)
    model.learn(4 * ROLLOUT)
    policy = make().policy
    policy.load_state_dict(updates[2]["weights"])
    # Of the fourth rollout, steps 18 to 23, the second one ends the fourth episode
    earned, infos = rewards[19]
    seen = th.from_numpy(np.stack([info["terminal_observation"] for info in infos]))
    with th.no_grad():
        expected = th.from_numpy(earned) + 0.99 * policy.predict_values(seen).flatten()
    np.testing.assert_allclose(updates[3]["rewards"][1], expected, atol=1e-6)


def test_the_next_rollout_is_collected_in_the_midst_of_an_update_and_none_after_the_last():
    env = Reach()
    model = make(env)
    reached = []

    def wait_for_the_next_rollout():
        wanted = min(len(reached) + 2, 4) * N_STEPS
        with env.stepped:
            reached.append(env.stepped.wait_for(lambda: env.n_steps == wanted, timeout=30))

    watch_updates(model, wait_for_the_next_rollout)
    model.learn(4 * ROLLOUT)
    assert reached == [True] * 4
    assert env.n_steps == 4 * N_STEPS and model.num_timesteps == 4 * ROLLOUT
    assert not rollout_threads() and not model.rollout_is_ahead


def test_a_seed_gives_the_same_weights_whoever_is_quicker():
    found = []
    for wait, env_seconds in ((0.0, lambda: 0.005), (0.02, lambda: 0.0)):
        env = VecNormalize(Reach(success=True, seconds=env_seconds))
        model = make(env, n_epochs=3, batch_size=4, bc_weight=0.5, policy_kwargs={"features_extractor_class": WithDropout})
        watch_updates(model, lambda seconds=wait: time.sleep(seconds))
        model.learn(5 * ROLLOUT)
        assert len(model.replay_buffer) > 0
        found.append(flat(model))
    assert th.equal(*found)


@pytest.mark.parametrize("options", [{"use_sde": True, "sde_sample_freq": 2}, {"critic_warmup_steps": 2 * ROLLOUT}])
def test_it_goes_with(options):
    found = []
    for _ in range(2):
        model = make(**options)
        updates = watch_updates(model)
        model.learn(4 * ROLLOUT)
        found.append(flat(model))
    assert th.equal(*found)
    if "critic_warmup_steps" in options:
        assert ["train/approx_kl" in update["log"] for update in updates] == [False, False, True, True]


class Watch(BaseCallback):
    """Is on the main thread, while nobody steps the environments, with the numbers of each step."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at = stop_at
        self.calls = []

    def _on_rollout_start(self):
        self._note("start")

    def _on_rollout_end(self):
        self._note("end")

    def _on_step(self):
        self._note("step")
        assert np.array_equal(self.locals["new_obs"].shape, (N_ENVS, 1)) and len(self.locals["infos"]) == N_ENVS
        return self.num_timesteps != self.stop_at

    def _note(self, what):
        assert threading.current_thread() is threading.main_thread()
        assert not self.training_env.is_stepping and not rollout_threads()
        self.calls.append((what, self.num_timesteps))


def test_callbacks_are_called_as_without_it_and_never_beside_the_rollout():
    callback = Watch()
    make(Reach(seconds=lambda: 0.002)).learn(3 * ROLLOUT, callback)
    expected = []
    for start in range(0, 3 * ROLLOUT, ROLLOUT):
        steps = range(start + N_ENVS, start + ROLLOUT + 1, N_ENVS)
        expected += [("start", start), *(("step", number) for number in steps), ("end", start + ROLLOUT)]
    assert callback.calls == expected


def test_a_callback_that_stops_leaves_a_model_that_goes_on_from_where_the_environments_are():
    env = Reach(success=True)
    model = make(env, bc_weight=0.5)
    model.learn(10 * ROLLOUT, Watch(stop_at=2 * ROLLOUT + N_ENVS))
    assert model.num_timesteps == 2 * ROLLOUT + N_ENVS and model._n_updates == 2
    # The fourth rollout was begun with the third complete, or not at all
    assert env.n_steps == 3 * N_STEPS and not model.rollout_is_ahead and not rollout_threads()
    np.testing.assert_array_equal(model._last_obs, env.obs)
    held = len(model.replay_buffer)
    model.learn(2, reset_num_timesteps=False)
    assert model._n_updates == 3
    # Of the rest of an episode whose beginning nobody knows none is made: steps 18 and 19 end the fourth
    lengths = [len(demo) for demos in model.replay_buffer.episodes.values() for demo in demos]
    assert len(model.replay_buffer) <= held and set(lengths) <= {5}


@pytest.mark.parametrize("step", [0, 4])
def test_what_a_simulator_raises_comes_after_the_update_with_the_steps_before_it(step):
    env = Reach()
    env.fails_at = 2 * N_STEPS + step
    callback = Watch()
    model = make(env)
    updates = watch_updates(model)
    with pytest.raises(OSError, match="out of order"):
        model.learn(4 * ROLLOUT, callback)
    assert len(updates) == 2 and "log" in updates[1]
    assert model.num_timesteps == 2 * ROLLOUT + step * N_ENVS
    assert not rollout_threads() and not model.rollout_is_ahead


@pytest.mark.parametrize("error", [FloatingPointError("no number"), KeyboardInterrupt()])
def test_an_error_in_the_update_ends_the_rollout_and_the_model_goes_on(error):
    env = Reach(seconds=lambda: 0.05)
    model = make(env)
    train = model.train

    def failing():
        raise error

    model.train = failing
    with pytest.raises(type(error)):
        model.learn(4 * ROLLOUT)
    assert not rollout_threads() and not model.rollout_is_ahead
    assert N_STEPS < env.n_steps < 2 * N_STEPS
    np.testing.assert_array_equal(model._last_obs, env.obs)
    model.train = train
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    assert model.num_timesteps == 3 * ROLLOUT and model._n_updates == 2


def test_it_learns():
    def mean_reward(update):
        return float(update["rewards"].mean())

    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 5, "learning_rate": 5e-3, "gamma": 0.0}
    model = make(**settings)
    updates = watch_updates(model)
    model.learn(40 * 64)
    first, last = mean_reward(updates[0]), np.mean([mean_reward(update) for update in updates[-3:]])
    assert last > first + 0.3, (first, last)


def test_what_it_cannot_do_is_refused_by_name():
    with pytest.raises(ValueError, match="overlap must be True or False, got 'always'"):
        PPOSelfBC("MlpPolicy", Reach(), overlap="always")
    with pytest.raises(ValueError, match=r"'auto' measures what is free, .* overlap=True collects .*: give a number"):
        PPOSelfBC("MlpPolicy", Reach(), overlap=True, micro_batch_size="auto")
    model = PPOSelfBC("MlpPolicy", "CartPole-v1", overlap=True, n_steps=8, batch_size=8)
    assert isinstance(model.get_env(), DummyVecEnv)
    with pytest.raises(ValueError, match="overlap=True needs environments in processes of their own, got DummyVecEnv"):
        model.learn(8)

    class Freeze(BaseCallback):
        def _on_step(self):
            self.model.policy.log_std.requires_grad_(self.num_timesteps < 2 * ROLLOUT)
            return True

    with pytest.raises(RuntimeError, match="frozen, unfrozen or replaced in the midst of learn"):
        make().learn(4 * ROLLOUT, Freeze())


def learn_on_a_rank():
    model = make(Reach(success=True), bc_weight=0.5)
    model.learn(6 * ROLLOUT)
    return flat(model), model.num_timesteps, model._n_updates, len(model.replay_buffer)


def test_several_ranks(start_ranks):
    (first, *told), (second, *theirs) = start_ranks(learn_on_a_rank, 2).results()
    assert th.equal(first, second)
    assert told == theirs and told[:2] == [6 * ROLLOUT, 3]


def test_vla_policy_with_frozen_parts_in_worker_processes(make_env, make_model, tmp_path):
    env = SharedMemoryVecEnv([lambda: make_env(goal=2)] * 2, n_workers=1)
    try:
        model = make_model(env, overlap=True, policy_kwargs={"frozen": ("vision",)})
        acting = []
        act = type(model.adapter).act

        class Noting(type(model.adapter)):
            def act(self, obs, generator=None):
                acting.append(self.policy)
                return act(self, obs, generator)

        model.adapter.__class__ = Noting
        model.learn(4 * 16)
        acted = acting[-1]
        assert acting[0] is model.policy and acted is not model.policy and acted.optimizer is None
        assert set(map(id, acting[8:])) == {id(acted)}
        own = dict(acted.named_parameters())
        for name, weight in model.policy.named_parameters():
            assert (own[name] is weight) == (not weight.requires_grad), name
        assert len(model.replay_buffer) > 0 and model._n_updates == 4
        model.save(tmp_path / "model.zip")
        loaded = PPOSelfBC.load(tmp_path / "model.zip", device="cpu")
        assert loaded.overlap and th.equal(flat(loaded), flat(model))
    finally:
        env.close()


def test_who_acts_ahead_explores_with_the_noise_of_its_own_rollout(make_env, make_model, record_logs):
    env = SharedMemoryVecEnv([lambda: make_env(goal=2)] * 2, n_workers=1)
    model = make_model(env, overlap=True, noise_scale=LinearSchedule(1.0, 0.2, 1.0), learning_rate=0.0)
    logs = record_logs(model)
    model.learn(4 * 16)
    env.close()
    assert model.policy.head.noise_scale == pytest.approx(0.4)
    assert len(logs) == 4 and all(abs(row["train/approx_kl"]) < 1e-5 for row in logs)


def test_weights_are_the_same_in_half_precision_too(make_env, make_model):
    found = []
    for seconds in (0.5, 0.0):  # so that the rollout is over before the update begins, or not
        env = SharedMemoryVecEnv([lambda: make_env(goal=2)] * 2, n_workers=1)
        model = make_model(env, overlap=True, n_epochs=3, policy_kwargs={"autocast": "bfloat16"})
        watch_updates(model, lambda: time.sleep(seconds))  # noqa: B023
        model.learn(4 * 16)
        env.close()
        found.append(flat(model))
    assert th.equal(*found)


def test_a_checkpoint_is_of_a_moment_between_two_updates_and_goes_on_bit_for_bit(make_env, make_model, tmp_path):
    def make_workers():
        env = SharedMemoryVecEnv([lambda: make_env(goal=2)] * 2, n_workers=1)
        env.seed(3)
        return env

    first = make_workers()
    model = make_model(first, overlap=True)
    held = []

    class Note(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            held.append(not self.model.rollout_is_ahead)

    model.learn(6 * 16, [RunCheckpoint(tmp_path, 3 * 16, StopRequest()), Note()])
    first.close()
    assert held == [True, False, False, True, False, False]
    second = make_workers()
    resumed = load_checkpoint(tmp_path / "48", second, "cpu")
    resumed.learn(3 * 16, reset_num_timesteps=False)
    second.close()
    assert th.equal(flat(resumed), flat(model))

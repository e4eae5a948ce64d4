import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_vla import PPOSelfBC
from sb3_vla_envs import ChunkedActionWrapper, Demonstration, decode_instruction


class Transcript(BaseCallback):
    """Writes down by itself what happened in each environment, one list of steps an episode."""

    def _on_training_start(self):
        self.under_way = [[] for _ in range(self.training_env.num_envs)]
        self.finished = []

    def _on_step(self):
        for i, info in enumerate(self.locals["infos"]):
            observation = {key: value[i].copy() for key, value in self.model._last_obs.items()}
            self.under_way[i].append((observation, self.locals["actions"][i].copy(), info))
            if self.locals["dones"][i]:
                self.finished.append(self.under_way[i])
                self.under_way[i] = []
        return True


def test_successful_episodes_land_in_the_buffer_as_they_were_sampled(make_model):
    model = make_model(policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=32, learning_rate=0.0)
    transcript = Transcript()
    model.learn(64, callback=transcript)
    successes = [episode for episode in transcript.finished if episode[-1][2]["is_success"]]
    assert 2 < len(successes) < len(transcript.finished)
    recorded = [demo for demos in model.replay_buffer.episodes.values() for demo in demos]
    assert len(recorded) == len(successes)
    outside = 0
    for episode in successes:
        observations, actions, infos = zip(*episode, strict=True)
        (match,) = [demo for demo in recorded if len(demo) == len(actions) and np.array_equal(demo.actions, np.stack(actions))]
        assert match.task == infos[0]["task"]
        assert match.chunk_lengths.tolist() == [info["chunk_length"] for info in infos]
        assert match.n_steps == infos[-1]["steps_to_success"]
        for key, values in match.observations.items():
            assert np.array_equal(values, np.stack([observation[key] for observation in observations])), key
        assert match.observations["image"].shape[1:] == (3, 8, 8)
        # The first observation is that of a reset, the prompt that of the task
        assert match.observations["privileged"][0].tolist() == [0, 0]
        prompt = {"push": "push", "pull": "pull the lever"}[match.task]
        assert decode_instruction(match.observations["instruction"][0]) == prompt
        outside += (np.abs(match.actions) > 1).sum()
    assert outside > 0, "the samples before clipping"


def test_successes_are_logged_in_total_and_per_task(make_model, record_logs):
    model = make_model(policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=32, learning_rate=0.0)
    logs = record_logs(model)
    transcript = Transcript()
    model.learn(64, callback=transcript)
    ends = [episode[-1][2] for episode in transcript.finished]
    by_task = {task: [info for info in ends if info["task"] == task] for task in ("push", "pull")}
    means = {}
    for task, infos in by_task.items():
        assert logs[-1][f"rollout/success_rate/{task}"] == pytest.approx(np.mean([info["is_success"] for info in infos]))
        means[task] = np.mean([info["steps_to_success"] for info in infos if info["is_success"]])
        assert logs[-1][f"rollout/steps_to_success/{task}"] == pytest.approx(means[task])
    assert logs[-1]["rollout/steps_to_success"] == pytest.approx(np.mean(list(means.values())))
    total = np.mean([info["is_success"] for infos in by_task.values() for info in infos])
    assert logs[-1]["rollout/success_rate"] == pytest.approx(total)
    assert logs[-1]["demos/episodes"] == sum(info["is_success"] for infos in by_task.values() for info in infos)


def test_primitive_steps_count_executed_ones(make_model, record_logs):
    model = make_model(n_steps=16)
    logs = record_logs(model)
    transcript = Transcript()
    model.learn(32, callback=transcript)
    episodes = [*transcript.finished, *transcript.under_way]
    executed = sum(info["chunk_length"] for episode in episodes for _, _, info in episode)
    assert logs[-1]["time/primitive_steps"] == executed == model.num_primitive_steps
    # Some chunks of 3 were cut short
    assert 32 < executed < 3 * 32


def test_environments_without_chunks_count_a_step_each(record_logs):
    model = PPOSelfBC("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    logs = record_logs(model)
    model.learn(32)
    assert logs[-1]["time/primitive_steps"] == 32


def learn_on(model, n_steps: int, **kwargs) -> list[Demonstration]:
    """Train on, with rollouts of another length, and give the episodes in the buffer."""
    model.n_steps = model.rollout_buffer.buffer_size = n_steps
    model.learn(2 * n_steps, reset_num_timesteps=False, **kwargs)
    return [demo for demos in model.replay_buffer.episodes.values() for demo in demos]


@pytest.fixture
def long_model(make_model, make_vec_env):
    """One chunk is half of the shortest success: 6 steps of progress, 3 a chunk."""
    env = make_vec_env(2, goal=6, horizon=30)
    return make_model(env, policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=1, batch_size=2, bc_weight=0.01)


def test_episodes_go_on_from_one_rollout_and_one_learn_to_the_next(long_model):
    for _ in range(60):
        recorded = learn_on(long_model, 1)
    assert recorded and all(demo.n_steps >= 6 for demo in recorded)


class StopAfter(BaseCallback):
    """Ends training, in one way or another, after so many steps."""

    def __init__(self, n_steps: int, interrupt: bool) -> None:
        super().__init__()
        self.left, self.interrupt = n_steps, interrupt

    def _on_step(self) -> bool:
        self.left -= 1
        if self.left == 0 and self.interrupt:
            raise KeyboardInterrupt
        return self.left > 0


@pytest.mark.parametrize("interrupt", [False, True])
def test_an_episode_that_was_under_way_when_training_stopped_is_not_a_short_one(interrupt, long_model):
    """Stopped in the first chunk of an episode, and gone on: what the environments did in between is not known."""
    for _ in range(40):
        try:
            learn_on(long_model, 32, callback=StopAfter(1, interrupt))
        except KeyboardInterrupt:
            assert interrupt
    recorded = learn_on(long_model, 32)
    assert recorded and all(demo.n_steps >= 6 for demo in recorded)


def test_such_an_episode_does_not_count_as_a_fast_success(long_model, record_logs):
    """It takes 6 steps to succeed; of an episode that goes on after an interruption fewer would be seen."""
    with th.no_grad():  # always forward
        long_model.policy.head.log_std.fill_(-5.0)
        long_model.policy.head.mean_net[-1].weight.zero_()
        long_model.policy.head.mean_net[-1].bias.fill_(0.9)
    logs = record_logs(long_model)
    long_model.env.envs[0].unwrapped.goal = 10**6  # fails after 30 steps, ten chunks
    learn_on(long_model, 4, callback=StopAfter(1, interrupt=False))
    assert not logs
    learn_on(long_model, 1)
    # The rest of the second one's first episode has ended in success, and nothing is known of its beginning
    assert "rollout/success_rate" not in logs[0] and "rollout/steps_to_success" not in logs[0]
    learn_on(long_model, 8)
    assert logs[-1]["rollout/success_rate"] == 1.0 and logs[-1]["rollout/steps_to_success"] == 6
    assert logs[-1]["rollout/success_rate/pull"] == 1.0 and "rollout/success_rate/push" not in logs[-1]


def test_setting_an_environment_begins_new_episodes(long_model, make_vec_env):
    learn_on(long_model, 1)
    long_model.set_env(make_vec_env(2, goal=6, horizon=30))
    recorded = learn_on(long_model, 32)
    assert recorded and all(demo.n_steps >= 6 for demo in recorded)


class LateSuccess(gym.Wrapper):
    """Goes on after success to its time limit, and reports success at its step alone, without saying when it was."""

    def __init__(self, env: gym.Env, keep_up: bool) -> None:
        super().__init__(env)
        self.keep_up = keep_up

    def reset(self, **kwargs):
        self.n, self.succeeded = 0, False
        return self.env.reset(**kwargs)

    def step(self, action):
        obs, reward, terminated, _, info = self.env.step(action)
        self.n += 1
        info = {
            "task": info["task"],
            "is_success": (info["is_success"] and not self.succeeded) or (self.keep_up and self.succeeded),
        }
        self.succeeded |= terminated
        return obs, reward, False, self.n >= 12, info


@pytest.mark.parametrize("keep_up", [True, False])
def test_the_part_up_to_success_is_kept_where_success_does_not_end_the_episode(
    keep_up, make_model, make_demonstrations, record_logs
):
    """Four steps of progress in chunks of 3: success in the second chunk, after one step of it."""
    unchunked = LateSuccess(type(make_model().env.envs[0].unwrapped)(), keep_up)
    env = ChunkedActionWrapper(unchunked, 3, gamma=0.9)
    model = make_model(env, policy_kwargs={"head_kwargs": {"log_std_init": -5.0}}, n_steps=16, batch_size=16, bc_weight=1e-9)
    with th.no_grad():  # always forward
        model.policy.head.mean_net[-1].weight.zero_()
        model.policy.head.mean_net[-1].bias.fill_(0.9)
    logs, seen = record_logs(model), []

    def see(local_variables, _):
        ended = zip(local_variables["infos"], local_variables["dones"], strict=True)
        seen.extend(info["is_success"] for info, done in ended if done)
        return True

    model.learn(16, callback=see)
    assert len(seen) == 4 and all(seen), "callbacks are told of a success at any step"
    (episodes,) = model.replay_buffer.episodes.values()
    assert len(episodes) == 4 and all(demo.chunk_lengths.tolist() == [3, 1] for demo in episodes)
    assert logs[-1]["rollout/success_rate"] == 1.0 and logs[-1]["rollout/steps_to_success"] == 4


@pytest.mark.parametrize("task", [3, ("push", 1), None, "push"])
def test_tasks_of_any_type_reach_checkpoint_and_logs(task, make_model, tmp_path, record_logs):
    class Named(gym.Wrapper):
        def step(self, action):
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, reward, terminated, truncated, {**info, "task": task}

    env = Named(make_model().env.envs[0])
    model = make_model(env, policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=64, normalize_advantage="task")
    logs = record_logs(model)
    model.learn(64)
    assert set(model.replay_buffer.episodes) == {"" if task is None else str(task)}
    model.save_replay_buffer(tmp_path / "buffer.npz")
    model.load_replay_buffer(tmp_path / "buffer.npz")
    assert ("rollout/success_rate/" + str(task) in logs[-1]) == (task is not None)


def test_an_environment_without_infos_learns(make_model):
    """As some VecEnvs in SB3's own tests."""

    class NoInfos(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            observations, rewards, dones, _ = self.venv.step_wait()
            return observations, rewards, dones, []

    env = NoInfos(make_vec_env("CartPole-v1", n_envs=2))
    model = PPOSelfBC("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, device="cpu").learn(32)
    assert model.num_primitive_steps == 32


def test_window_of_the_logged_means_is_the_algorithms(make_model, record_logs):
    model = make_model(
        policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=64, learning_rate=0.0, stats_window_size=2
    )
    logs = record_logs(model)
    transcript = Transcript()
    model.learn(128, callback=transcript)
    for task in ("push", "pull"):
        infos = [episode[-1][2] for episode in transcript.finished if episode[-1][2]["task"] == task]
        assert len(infos) > 4
        assert logs[-1][f"rollout/success_rate/{task}"] == np.mean([info["is_success"] for info in infos[-2:]])


def test_array_observations_are_recorded_too():
    import gymnasium as gym
    from gymnasium import spaces

    class Toggle(gym.Env):
        """Succeeds after two steps."""

        observation_space = spaces.Box(-1, 9, (1,), np.float32)
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.full(1, self.t, np.float32), 1.0, self.t == 2, False, {"is_success": self.t == 2}

    model = PPOSelfBC("MlpPolicy", Toggle(), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(8)
    (demonstrations,) = model.replay_buffer.episodes.values()
    assert len(demonstrations) == 4
    for demonstration in demonstrations:
        assert demonstration.observations["observation"].tolist() == [[0], [1]]
        assert demonstration.actions.shape == (2,) and demonstration.chunk_lengths.tolist() == [1, 1]
    chunked = PPOSelfBC(
        "MlpPolicy", ChunkedActionWrapper(Toggle(), 3, gamma=0.99), n_steps=8, batch_size=8, n_epochs=1, device="cpu"
    ).learn(8)
    (demonstrations,) = chunked.replay_buffer.episodes.values()
    assert len(demonstrations) == 8 and demonstrations[0].actions.shape == (1, 3) and demonstrations[0].n_steps == 2


def test_demonstrations_are_kept_as_before_vec_normalize_and_normalised_when_drawn(make_model, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state", "privileged"], norm_reward=False)
    model = make_model(env, policy_kwargs={"head_kwargs": {"log_std_init": 0.5}}, n_steps=32)
    model.learn(64)
    demonstrations = [demo for held in model.replay_buffer.episodes.values() for demo in held]
    assert demonstrations
    for demo in demonstrations:
        # The toy's privileged observation is (0, 0) after a reset, which its normalised form is not
        assert demo.observations["privileged"][0].tolist() == [0, 0]
    raw_rows = np.concatenate([demo.observations["privileged"] for demo in demonstrations])
    batch = model.replay_buffer.sample(16, env)
    drawn = env.unnormalize_obs({key: value.numpy() for key, value in batch.observations.items()})["privileged"]
    assert all(np.abs(raw_rows - row).max(axis=1).min() < 1e-4 for row in drawn)
    assert not np.allclose(drawn, batch.observations["privileged"].numpy(), atol=1e-2)


def test_rewards_are_kept_as_before_vec_normalize(make_model, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs=False)
    model = make_model(env, n_steps=32, replay_buffer_kwargs={"rule": "shortest"})
    model.learn(64)
    held = [episode for episodes in model.replay_buffer.episodes.values() for episode in episodes]
    assert len(held) > 3 and env.ret_rms.var < 0.9
    for episode in held:  # 1 at the last step, discounted inside its chunk
        np.testing.assert_allclose(episode.rewards, episode.sparse_rewards(0.9), rtol=1e-6)


class WithDepth(gym.ObservationWrapper):
    """An observation that VLAPolicy does not read, of infinite numbers as depth cameras have them."""

    def __init__(self, env):
        super().__init__(env)
        depth = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "depth": depth})

    def observation(self, observation):
        return {**observation, "depth": np.full(2, np.inf, np.float32)}


@pytest.mark.filterwarnings("ignore:VLAPolicy does not read")
def test_what_the_policy_does_not_read_is_not_recorded(make_model, make_env):
    model = make_model(WithDepth(make_env()), n_steps=32)
    model.learn(32)
    held = [episode for episodes in model.replay_buffer.episodes.values() for episode in episodes]
    assert held and all("depth" not in episode.observations for episode in held)


class FarGoal(gym.Env):
    """Actions within bounds of 2; any step succeeds."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self):
        self.executed = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.executed.append(action.copy())
        return np.ones(1, np.float32), 1.0, True, False, {"is_success": True}


def test_squashed_actions_are_recorded_in_the_environments_units():
    env, sde = FarGoal(), {"use_sde": True, "sde_sample_freq": 1, "policy_kwargs": {"squash_output": True}}
    model = PPOSelfBC("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu", **sde)
    model.replay_buffer.rate = lambda *args: None  # which would drop what the critic expects anyway
    model.learn(64)
    held = [episode for episodes in model.replay_buffer.episodes.values() for episode in episodes]
    np.testing.assert_allclose(np.concatenate([episode.actions for episode in held]), env.executed)
    assert np.abs(env.executed).max() > 1.2
    batch = model.replay_buffer.sample(8)
    mean = model.policy.get_distribution(batch.observations).mode()  # in [-1, 1]
    loss = model.adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths)
    assert loss.item() == pytest.approx((mean - batch.actions / 2).square().mean().item(), rel=1e-5)

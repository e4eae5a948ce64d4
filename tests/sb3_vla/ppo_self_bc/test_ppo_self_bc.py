import re
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import PPOSelfBC
from sb3_vla_envs import ChunkedActionWrapper

from .small_training import changed, drift, parameters_equal, snapshot

# --- Saving and loading -----------------------------------------------------------------------------------------------


def test_demonstrations_are_not_in_the_models_zip(tmp_path, make_model, make_demonstrations):
    model = make_model()
    model.save(tmp_path / "empty.zip")
    for demonstration in make_demonstrations(50):
        model.replay_buffer.add(demonstration)
    model.save(tmp_path / "full.zip")
    with zipfile.ZipFile(tmp_path / "full.zip") as archive:
        data = archive.read("model.json").decode()
    assert '"replay_buffer"' not in data and '"replay_buffer_kwargs"' in data
    sizes = [(tmp_path / name).stat().st_size for name in ("empty.zip", "full.zip")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert len(PPOSelfBC.load(tmp_path / "full.zip", device="cpu").replay_buffer) == 0


def test_checkpoints_hold_the_demonstrations_even_before_the_first_success(tmp_path, make_model, make_demonstrations):
    model = make_model()
    # Nobody succeeds within one chunk
    model.learn(2, callback=CheckpointCallback(1, str(tmp_path), save_replay_buffer=True))
    empty = tmp_path / "rl_model_replay_buffer_2_steps.pkl"
    model.replay_buffer.extend(make_demonstrations(3))
    full = tmp_path / "full.pkl"
    model.save_replay_buffer(full)
    loaded = PPOSelfBC.load(tmp_path / "rl_model_2_steps.zip", env=model.env)
    loaded.load_replay_buffer(full)
    assert loaded.replay_buffer.summary() == model.replay_buffer.summary() != {}
    loaded.load_replay_buffer(empty)
    assert len(loaded.replay_buffer) == 0


def test_everything_needed_to_continue_is_loaded(tmp_path, make_model, make_vec_env, make_demonstrations, record_logs):
    model = make_model(bc_weight="tanh", bc_weight_kwargs={"warmup_timesteps": 70}, critic_learning_rate=1e-2)
    model.learn(16)
    steps = model.num_primitive_steps
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env())
    assert loaded.num_timesteps == 16 and loaded.num_primitive_steps == steps > 16
    states = [m.policy.optimizer.state_dict()["state"] for m in (model, loaded)]
    assert all(th.equal(states[0][key]["exp_avg"], states[1][key]["exp_avg"]) for key in states[0])
    before = snapshot(loaded)
    loaded.replay_buffer.extend(make_demonstrations())
    logs = record_logs(loaded)
    loaded.learn(16, reset_num_timesteps=False)
    # The rule of the BC weight goes on from where it was, and so does the count of updates
    assert logs[-1]["train/ppo_weight"] == pytest.approx(np.tanh(32 / 70)) and logs[-1]["train/n_updates"] == 2
    assert loaded.num_timesteps == 32 and loaded.num_primitive_steps > steps
    assert changed(loaded, before) == {"backbone", "head", "critic"}


def test_loads_the_same_predictions(tmp_path, make_model):
    model = make_model().learn(16)
    observation = model.env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert type(loaded.policy.backbone) is type(model.policy.backbone)


def test_set_parameters_takes_over_another_model(make_model):
    first, second = make_model().learn(16), make_model(seed=5)
    assert not parameters_equal(first, second)
    second.set_parameters(first.get_parameters())
    assert parameters_equal(first, second)


def test_loading_can_turn_bc_off(tmp_path, make_model):
    make_model().save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", bc_weight=0)
    assert loaded.replay_buffer is None
    with pytest.raises(ValueError, match=r"no demonstration buffer.*bc_weight=0"):
        loaded.save_replay_buffer(tmp_path / "demos")


def test_an_environment_that_does_not_fit_is_refused_on_loading(tmp_path, make_model, make_vec_env):
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"Action spaces do not match.*\(3, 2\).*\(4, 2\)"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(chunk_size=4))
    with pytest.raises(ValueError, match=r"gamma=0\.5, PPOSelfBC by gamma=0\.9"):
        PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(gamma=0.5))


# --- Drop-in ----------------------------------------------------------------------------------------------------------


class Counter(BaseCallback):
    def __init__(self):
        super().__init__()
        self.inits = self.steps = self.rollouts = 0

    def _init_callback(self):
        self.inits += 1

    def _on_step(self):
        self.steps += 1
        assert self.locals["rewards"].shape == (self.training_env.num_envs,)
        return True

    def _on_rollout_end(self):
        self.rollouts += 1


@pytest.mark.parametrize("form", ["callback", "list", "callback_list"])
def test_user_callbacks_are_initialised_once_and_called_every_step(form, make_model):
    counter = Counter()
    callback = {"callback": counter, "list": [counter], "callback_list": CallbackList([counter])}[form]
    make_model().learn(32, callback=callback)
    assert (counter.inits, counter.steps, counter.rollouts) == (1, 16, 2)


def test_a_function_is_a_callback_and_can_stop_training(make_model):
    steps = []
    model = make_model().learn(1000, callback=lambda locals_, globals_: bool(steps.append(1)) or len(steps) < 3)
    assert len(steps) == 3 and model.num_timesteps == 6


def test_eval_and_checkpoint_callbacks(tmp_path, make_model, make_vec_env):
    model = make_model()
    evaluation = EvalCallback(
        make_vec_env(1), n_eval_episodes=2, eval_freq=8, best_model_save_path=str(tmp_path), log_path=str(tmp_path), verbose=0
    )
    with pytest.warns(UserWarning, match="Monitor"):
        model.learn(16, callback=[evaluation, CheckpointCallback(8, str(tmp_path))])
    assert evaluation.best_mean_reward in (0.0, 0.5, 1.0)
    best = PPOSelfBC.load(tmp_path / "best_model.zip")
    assert best.num_timesteps == 16
    assert (tmp_path / "rl_model_16_steps.zip").exists()


def test_vec_normalize_around_a_vla_environment(make_model, make_vec_env):
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    before = snapshot(model := make_model(env))
    model.learn(16)
    assert changed(model, before) == {"backbone", "head", "critic"}
    assert len(env.obs_rms["state"].mean) == 3 and env.obs_rms["state"].count > 16


def test_timesteps_and_primitive_steps_go_on_without_reset(make_model):
    model = make_model().learn(16)
    first = model.num_primitive_steps
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 32 and model.num_primitive_steps > first
    model.learn(16)
    assert model.num_timesteps == 16 and model.num_primitive_steps <= 3 * 16


def test_environment_by_name_and_default_arguments():
    model = PPOSelfBC("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)
    assert model.num_primitive_steps == 16 and len(model.replay_buffer) == 0


def test_same_seed_same_result(make_model, make_vec_env, make_demonstrations):
    models = []
    for _ in range(2):
        model = make_model(make_vec_env())
        model.replay_buffer.extend(make_demonstrations(3))
        models.append(model.learn(32))
    assert parameters_equal(*models)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio_per": "token"}, ValueError, r"ratio_per.*'step' or 'chunk'.*'token'"),
        ({"bc_loss": "l1"}, ValueError, r"bc_loss.*'mse' or 'nll'.*'l1'"),
        ({"normalize_advantage": "env"}, ValueError, r"normalize_advantage.*'task'.*'env'"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size.*at least 1.*0"),
        ({"micro_batch_size": "all"}, TypeError, "micro_batch_size must be an integer or None or 'auto', got 'all'"),
        ({"critic_epochs": 3, "n_epochs": 4}, ValueError, "critic_epochs=3 is less than n_epochs=4"),
        ({"bc_batch_size": 0}, ValueError, "bc_batch_size.*at least 1.*0"),
        ({"bc_weight": "adaptive"}, ValueError, "'adaptive'.*gradient_balance"),
        ({"bc_weight": "tanh", "bc_weight_kwargs": {"T": 5}}, TypeError, r"'tanh'.*\['T'\].*warmup_timesteps"),
        ({"bc_weight": -1.0}, ValueError, "weight of the BC loss must be at least 0, got -1.0"),
        ({"replay_buffer_kwargs": {"episodes_per_task": 0}}, ValueError, "episodes_per_task.*at least 1.*0"),
        ({"replay_buffer_kwargs": {"size": 3}}, TypeError, r"replay_buffer_kwargs.*\['size'\].*episodes_per_task"),
        ({"replay_buffer_kwargs": [3]}, TypeError, r"replay_buffer_kwargs must be a dictionary.*\[3\]"),
        ({"policy_kwargs": "tanh"}, TypeError, "policy_kwargs must be a dictionary.*'tanh'"),
        ({"learning_rate": -1e-3}, ValueError, "^learning_rate must be at least 0, got -0.001"),
        ({"learning_rate": np.nan}, ValueError, "^learning_rate must be finite, got nan"),
        ({"backbone_learning_rate": np.inf}, ValueError, "^backbone_learning_rate must be finite, got inf"),
        (
            {"critic_learning_rate": np.float32(-1)},
            ValueError,
            "^critic_learning_rate must be at least 0, got -1.0",
        ),
        ({"critic_warmup_steps": -1}, ValueError, "^critic_warmup_steps must be at least 0, got -1"),
        ({"gamma": 1.01}, ValueError, "^gamma must be at most 1, got 1.01"),
        ({"gae_lambda": -0.1}, ValueError, "^gae_lambda must be at least 0, got -0.1"),
        ({"gae_lambda": np.nan}, ValueError, "^gae_lambda must be finite, got nan"),
        ({"clip_range": 0.0}, ValueError, "^clip_range must be above 0, got 0.0"),
        ({"clip_range": -0.2}, ValueError, "^clip_range must be above 0, got -0.2"),
        ({"noise_scale": 0.0}, ValueError, "^noise_scale must be above 0, got 0.0"),
        ({"noise_scale": lambda remaining: remaining}, ValueError, "^noise_scale at the end.* must be above 0, got 0.0"),
        ({"noise_scale": 0.5}, ValueError, "noise_scale=0.5 needs VLAPolicy: ActorCriticPolicy can't"),
        ({"critic_learning_rate": 1e-3}, ValueError, "critic_learning_rate.*VLAPolicy.*ActorCriticPolicy.*learning_rate"),
        ({"backbone_learning_rate": 1e-3}, ValueError, "backbone_learning_rate.*VLAPolicy.*learning_rate"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        PPOSelfBC("MlpPolicy", drift(), n_steps=8, batch_size=8, device="cpu", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0, "gamma": 1, "gae_lambda": 0},
        {"learning_rate": lambda progress: 1e-3 * progress, "clip_range": lambda progress: 0.2},
        {"learning_rate": np.float64(1e-3), "clip_range": np.float64(0.1), "gamma": np.float32(0.9), "bc_weight": 0},
    ],
)
def test_what_sb3_takes_is_taken(arguments):
    PPOSelfBC("MlpPolicy", drift(), n_steps=8, batch_size=8, n_epochs=1, device="cpu", **arguments).learn(8)


def test_arguments_are_checked_when_a_model_is_loaded(tmp_path, make_model):
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="critic_learning_rate must be at least 0"):
        PPOSelfBC.load(tmp_path / "model.zip", critic_learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"ratio_per.*'token'"):
        PPOSelfBC.load(tmp_path / "model.zip", ratio_per="token")
    with pytest.raises(TypeError, match=r"policy_kwargs must be a dictionary.*'vision'"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs="vision")
    assert PPOSelfBC.load(tmp_path / "model.zip", replay_buffer_kwargs=None).replay_buffer.episodes_per_task == 100


def test_another_rollout_buffer_is_refused():
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match=r"subclass of ChunkRolloutBuffer.*got RolloutBuffer"):
        PPOSelfBC("MlpPolicy", drift(), rollout_buffer_class=RolloutBuffer, device="cpu")


def test_mse_of_discrete_actions_is_refused():
    with pytest.raises(ValueError, match=r"bc_loss='mse'.*Discrete\(2\).*bc_loss='nll'"):
        PPOSelfBC("MlpPolicy", "CartPole-v1", bc_loss="mse", device="cpu")


def test_another_gamma_inside_the_chunk_is_refused(make_model, make_vec_env):
    message = re.escape("gamma=0.9, PPOSelfBC by gamma=0.99") + ".*ChunkedActionWrapper.*gamma=0.99"
    with pytest.raises(ValueError, match=message):
        make_model(make_vec_env(gamma=0.9), gamma=0.99)
    model = make_model(make_vec_env(gamma=0.9))
    before = model.env
    with pytest.raises(ValueError, match=r"gamma=1\.0, PPOSelfBC by gamma=0\.9"):
        model.set_env(make_vec_env(gamma=1.0))
    assert model.env is before
    model.learn(16)


def test_inside_a_chunk_of_one_nothing_is_discounted():
    PPOSelfBC("MlpPolicy", ChunkedActionWrapper(drift(), 1), n_steps=8, batch_size=8, device="cpu").learn(8)


def test_a_chunk_size_of_another_meaning_is_none():
    env = drift()
    env.unwrapped.chunk_size = 1024
    PPOSelfBC("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(8)


def test_chunks_of_which_nobody_knows_how_much_was_executed_are_refused(make_model, make_env):
    class DropsInfo(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {"is_success": info["is_success"]}

    with pytest.raises(ValueError, match=r"environment 0 takes chunks of 3 actions, but info\['chunk_length'\] does not say"):
        make_model(DropsInfo(make_env())).learn(16)


def test_vla_policy_needs_chunks_images_and_instructions():
    with pytest.raises(ValueError, match=r"chunk.*ChunkedActionWrapper\(env, chunk_size"):
        PPOSelfBC("VLAPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match=r"Dict observation.*'image', 'instruction', 'state'.*CameraObservation"):
        PPOSelfBC("VLAPolicy", ChunkedActionWrapper(drift(), 3, gamma=0.99), device="cpu")

"""What users of SB3 do with a model, done with VLAPolicy (what is not here stands in the tests of PPOSelfBC and VLAPolicy)."""

import copy
import csv
import pickle
import sys
import time
from pathlib import Path

import gymnasium as gym
import moviepy
import numpy as np
import pytest
import torch as th
import wandb
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.integration.sb3 import WandbCallback

from sb3_vla import PPOSelfBC, SharedMemoryVecEnv, SuccessEvalCallback


def same_predictions(first, second, observation) -> bool:
    actions = [model.predict(observation, deterministic=True)[0] for model in (first, second)]
    return np.array_equal(*actions)


class Always(BaseCallback):
    """Makes the policy's mean the same chunk whatever it sees: the toy task succeeds if it is positive."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def _on_step(self):
        layer = self.model.policy.head.mean_net[-1]
        with th.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(self.value)
        return True


# --- Callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluation_class", [EvalCallback, SuccessEvalCallback])
def test_training_stops_at_the_reward_threshold(evaluation_class, make_model, make_env, tmp_path):
    stop = StopTrainingOnRewardThreshold(reward_threshold=0.5)
    evaluation = evaluation_class(
        Monitor(make_env()),
        callback_on_new_best=stop,
        n_eval_episodes=2,
        eval_freq=3,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = make_model().learn(64, callback=[Always(1.0), evaluation])
    assert model.num_timesteps == 6 and evaluation.best_mean_reward > 0.5
    best = PPOSelfBC.load(tmp_path / "best_model.zip")
    assert evaluate_policy(best, Monitor(make_env()), n_eval_episodes=1)[0] > 0.5
    failing = evaluation_class(Monitor(make_env()), callback_on_new_best=stop, eval_freq=3, verbose=0)
    assert make_model().learn(32, callback=[Always(-1.0), failing]).num_timesteps == 32


def test_everything_at_once_and_all_of_it_loads_again(make_model, make_env, make_vec_env, make_demonstrations, tmp_path):
    """As rl_zoo3 goes on with a run: model, demonstrations, normalisation."""
    env = VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9)
    model = make_model(env)
    model.replay_buffer.extend(make_demonstrations(2))
    checkpoints = CheckpointCallback(8, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    evaluated = VecNormalize(DummyVecEnv([lambda: Monitor(make_env())]), norm_obs_keys=["state"], training=False)
    evaluation = SuccessEvalCallback(evaluated, eval_freq=8, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    model.learn(32, callback=CallbackList([checkpoints, evaluation, ProgressBarCallback()]))
    env_again = VecNormalize.load(tmp_path / "rl_model_vecnormalize_32_steps.pkl", make_vec_env())
    assert env_again.obs_rms["state"].count == env.obs_rms["state"].count
    loaded = PPOSelfBC.load(tmp_path / "rl_model_32_steps.zip", env=env_again)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_32_steps.pkl", truncate_last_traj=False)
    assert loaded.replay_buffer.summary() == model.replay_buffer.summary() != {}
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48


def test_progress_bar_counts_every_timestep(make_model, monkeypatch):
    counts = []
    bar = ProgressBarCallback()
    monkeypatch.setattr(bar, "_on_training_end", lambda: (counts.append((bar.pbar.n, bar.pbar.total)), bar.pbar.close()))
    model = make_model().learn(32, callback=bar)
    model.learn(16, callback=bar, reset_num_timesteps=False)
    assert counts == [(32, 32), (16, 16)]
    make_model().learn(16, progress_bar=True)


# --- Environments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vec_env_class", [SubprocVecEnv, SharedMemoryVecEnv])
def test_vec_envs_give_the_same_result(vec_env_class, make_model, make_env, make_vec_env):
    # Forked, as other processes could not import this folder's files
    env = vec_env_class([lambda task=task: make_env(task=task) for task in ("push", "pull")], start_method="fork")
    try:
        model = make_model(env, n_steps=16).learn(32)
        expected = make_model(make_vec_env(), n_steps=16).learn(32)
        observation = expected.env.reset()
        assert same_predictions(model, expected, observation)
        assert model.replay_buffer.summary() == expected.replay_buffer.summary()
    finally:
        env.close()


def test_vec_monitor_writes_episodes(make_model, make_vec_env, tmp_path):
    env = VecMonitor(make_vec_env(), str(tmp_path / "train"), info_keywords=("is_success",))
    model = make_model(env).learn(32)
    env.close()
    lines = (tmp_path / "train.monitor.csv").read_text().splitlines()[1:]
    rows = list(csv.DictReader(lines))
    assert len(rows) == len(model.ep_info_buffer) > 2
    assert [float(row["r"]) for row in rows] == pytest.approx([info["r"] for info in model.ep_info_buffer], abs=1e-5)
    assert [row["is_success"] == "True" for row in rows] == list(model.ep_success_buffer)


class Picture(gym.Wrapper):
    """Renders a picture that gets brighter with each chunk."""

    render_mode = "rgb_array"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def reset(self, **kwargs):
        self.n_chunks = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.n_chunks += 1
        return super().step(action)

    def render(self):
        return np.full((64, 64, 3), 60 * self.n_chunks, np.uint8)


def test_video_recorder_writes_a_film_that_plays(make_model, make_env, tmp_path):
    env = VecVideoRecorder(
        DummyVecEnv([lambda: Picture(make_env())]), str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=4
    )
    make_model(env).learn(8)
    env.close()
    (film,) = tmp_path.glob("*.mp4")
    with moviepy.VideoFileClip(str(film)) as clip:
        assert clip.size == [64, 64] and clip.fps == 5
        frames = [frame.mean() for frame in clip.iter_frames()]
    # A frame at the start and one after each chunk; the episode ends with the second or third, the next begins in the dark
    assert len(frames) == 5
    assert frames[:2] == pytest.approx([0, 60], abs=4)


# --- Logs -------------------------------------------------------------------------------------------------------------


def test_tensorboard_and_csv(make_model, make_env, tmp_path):
    def evaluation():
        return SuccessEvalCallback(Monitor(make_env()), n_eval_episodes=1, eval_freq=8, verbose=0)

    # SB3's own folder, named after us
    make_model(tensorboard_log=str(tmp_path / "tb")).learn(32, callback=evaluation())
    events = EventAccumulator(str(tmp_path / "tb/PPOSelfBC_1")).Reload()
    names = {"rollout/success_rate", "train/bc_weight", "train/approx_kl", "time/primitive_steps"}
    names |= {"eval/mean_reward", "eval/success_rate", "eval/success_rate/push"}
    assert names <= set(events.Tags()["scalars"])
    # The last update's are never dumped, in SB3 either
    assert [event.step for event in events.Scalars("train/bc_weight")] == [32]
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [16, 32]

    model = make_model()
    model.set_logger(configure(str(tmp_path / "logs"), ["csv", "tensorboard"]))
    model.learn(32, callback=evaluation())
    model.logger.close()
    rows = list(csv.DictReader((tmp_path / "logs/progress.csv").open()))
    assert {"train/bc_weight", "eval/success_rate/push"} <= set(rows[0])
    assert [row["time/total_timesteps"] for row in rows] == ["16", "16", "32", "32"]
    assert [float(row["train/n_updates"]) for row in rows if row["train/n_updates"]] == [1]


def leveldb_content(log: bytes) -> bytes:
    """What is in a log of LevelDB's format, W&B's: blocks cut records in pieces, each with a header of seven bytes."""
    content, position = b"", 7  # after the file's own header
    while position + 7 <= len(log):
        if (rest := -position % 32768) and rest < 7:  # too little is left of the block for a header
            position += rest
            continue
        length = int.from_bytes(log[position + 4 : position + 6], "little")
        content += log[position + 7 : position + 7 + length]
        position += 7 + length
    return content


def logged_offline(make_model, folder: Path) -> bytes:
    """:return: What W&B has written of a run"""
    settings = wandb.Settings(console="off")
    run = wandb.init(project="sb3-vla", mode="offline", dir=str(folder), sync_tensorboard=True, settings=settings)
    time.sleep(1.1)  # it passes over event files that are older than the run, in whole seconds
    try:
        model = make_model(tensorboard_log=str(folder / "tb"))
        callback = WandbCallback(model_save_path=str(folder / "models"), model_save_freq=8, gradient_save_freq=2)
        model.learn(32, callback=callback)
        assert run.config["algo"] == "PPOSelfBC" and run.config["bc_weight"] == "constant"
        time.sleep(5)  # it follows the event file at its leisure
    finally:
        run.finish()
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert PPOSelfBC.load(folder / "models/model.zip").num_timesteps == 32
    return leveldb_content(log.read_bytes())


def test_weights_and_biases_offline(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "exit", sys.exit)  # wandb hooks into it
    monkeypatch.setenv("WANDB_SILENT", "true")
    for attempt in range(3):  # on a busy machine it ends without a last look at the event file
        folder = tmp_path / str(attempt)
        folder.mkdir()
        monkeypatch.chdir(folder)
        content = logged_offline(make_model, folder)
        if b"train/bc_weight" in content:
            break
    assert b"train/bc_weight" in content and b"gradients/" in content


# --- Models -----------------------------------------------------------------------------------------------------------


def test_spaces_are_pickled(make_model):
    model = make_model()
    for space in (model.observation_space, model.action_space):
        assert pickle.loads(pickle.dumps(space)) == space


def test_custom_objects_replace_what_was_saved(make_model, make_vec_env, tmp_path):
    model = make_model(learning_rate=lambda progress: 1e-3 * progress, clip_range=0.3).learn(16)
    with pytest.warns(UserWarning, match="saved without its learning_rate"):
        model.save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match=r"could not hold .*learning_rate.*lambda.*load\(path, learning_rate=\.\.\.\)"):
        PPOSelfBC.load(tmp_path / "model.zip")
    custom_objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.1, "n_epochs": 3}
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=make_vec_env(), custom_objects=custom_objects)
    assert loaded.learning_rate == 0.0 and loaded.clip_range(1.0) == 0.1 and loaded.n_epochs == 3
    observation = loaded.env.reset()
    loaded.learn(16)
    assert same_predictions(loaded, model, observation), "nothing was learnt at rate 0"


def test_parameters_round_trip_by_name(make_model):
    model, other = make_model().learn(16), make_model(seed=1)
    parameters = copy.deepcopy(model.get_parameters())
    assert set(parameters) == {"policy", "policy.optimizer"}
    observation = model.env.reset()
    other.set_parameters(parameters)
    assert same_predictions(model, other, observation)
    model.learn(16)
    assert not same_predictions(model, other, observation)
    model.set_parameters(parameters)
    assert same_predictions(model, other, observation)
    for ours, theirs in zip(*(m.policy.optimizer.state_dict()["param_groups"] for m in (model, other)), strict=True):
        assert ours == theirs
    with pytest.raises(ValueError, match="policy"):
        model.set_parameters({"policy": parameters["policy"]}, exact_match=True)


def test_evaluate_policy_takes_model_or_policy(make_model, make_env):
    model = make_model(VecFrameStack(DummyVecEnv([make_env]), 2)).learn(8)
    stacked = VecFrameStack(VecMonitor(DummyVecEnv([make_env])), 2)
    results = [evaluate_policy(who, stacked, n_eval_episodes=3, return_episode_rewards=True) for who in (model, model.policy)]
    assert results[0] == results[1] and len(results[0][0]) == 3

"""A training that is interrupted and goes on ends where it would have ended without, bit for bit."""

import os
import signal
from functools import partial

import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.runs import training
from sb3_vla.runs.checkpoint import newest_checkpoint
from sb3_vla.runs.config import load_config
from sb3_vla.runs.interruption import Interrupted
from sb3_vla.runs.training import post_train, resume_training
from sb3_vla_envs import make_env_fns

pytest.importorskip("metaworld")

UPDATES, CHUNKS = 4, 8  # chunks of both environments an update


@pytest.fixture
def config(tiny_config):
    """Two environments with pictures, a tiny policy, and rewards that differ from step to step."""
    policy = {"backbone_kwargs": {"config": tiny_config}, "head_kwargs": {"hidden_dim": 16}, "critic_net_arch": [16]}
    camera = {"name": "corner4", "height": 16, "width": 16}
    training = {
        "n_envs": 2,
        "n_steps": CHUNKS // 2,
        "batch_size": 4,
        "n_epochs": 2,
        "bc_batch_size": 4,
        "critic_warmup_steps": 0,
    }
    return load_config(
        None,
        None,
        "drawer-close-v3,button-press-topdown-v3",
        device="cpu",
        policy=policy,
        wrapping={"chunk_size": 4, "cameras": [camera]},
        simulation={"reward": "dense", "horizon": 30, "n_goals": 5},
        train={**training, "total_timesteps": UPDATES * CHUNKS, "checkpoint_every": 1, "validate_every": None},
    )


def _in_this_process(tasks, n_envs, seed, vec_env_cls=None, **settings):
    """The same environments as in worker processes, which take longer to start."""
    return DummyVecEnv([partial(_monitored, make) for make in make_env_fns(tasks, n_envs, seed=seed, **settings)])


def _monitored(make):
    return Monitor(make())


def _new_folder(path, config):
    return RunFolder.create(path, "sb3-vla train", config.to_dict())


def _state(model):
    """Weights, and what the optimizer keeps of each."""
    tensors = dict(model.policy.state_dict())
    for number, moments in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in moments.items()}
    return tensors


def _stop_in_update(patch, timesteps):
    def train(model):
        if model.num_timesteps == timesteps:
            os.kill(os.getpid(), signal.SIGTERM)
        update(model)

    update = PPOSelfBC.train
    patch.setattr(PPOSelfBC, "train", train)


def _stop_in_rollout(patch, timesteps):
    def store(model, *args):
        if model.num_timesteps == timesteps:
            os.kill(os.getpid(), signal.SIGTERM)
        bootstrap(model, *args)

    bootstrap = PPOSelfBC._bootstrap_timeouts
    patch.setattr(PPOSelfBC, "_bootstrap_timeouts", store)


def test_from_pixels_through_an_update_and_a_rollout_cut_short(config, tmp_path, monkeypatch, recwarn):
    uninterrupted = post_train(config, _new_folder(tmp_path / "whole", config), progress=False)

    monkeypatch.setattr(training, "make_vla_vec_env", _in_this_process)
    folder = _new_folder(tmp_path / "parts", config)
    with monkeypatch.context() as patch:
        _stop_in_update(patch, 2 * CHUNKS)
        with pytest.raises(Interrupted):
            post_train(config, folder, progress=False)
    checkpoint = newest_checkpoint(folder.checkpoints)
    assert checkpoint.name == str(2 * CHUNKS)
    with monkeypatch.context() as patch:
        _stop_in_rollout(patch, 3 * CHUNKS + 4)
        with pytest.raises(Interrupted):
            resume_training(config, folder, checkpoint, progress=False)
    checkpoint = newest_checkpoint(folder.checkpoints)
    assert checkpoint.name == str(3 * CHUNKS)
    resumed = resume_training(config, folder, checkpoint, progress=False)

    assert not [str(warning.message) for warning in recwarn if "begin new ones" in str(warning.message)]
    assert resumed.num_timesteps == uninterrupted.num_timesteps == UPDATES * CHUNKS
    first, second = _state(uninterrupted), _state(resumed)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert th.equal(value, second[name]), name

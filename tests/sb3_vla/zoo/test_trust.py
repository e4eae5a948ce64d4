"""What the zoo and its users write is read without being trusted."""

from collections import OrderedDict
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3
import yaml
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import sb3_vla
from sb3_vla.common.trusted_names import UntrustedError
from sb3_vla.zoo.trust import RunFolderLoader, check_hyperparams, load_statistics

CONFIGS = [
    path
    for folder in (files("sb3_vla.zoo_configs"), files(rl_zoo3) / "hyperparams")
    for path in folder.iterdir()
    if path.name.endswith(".yml")
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-2:]))
def test_packaged_configurations_need_no_trust(path):
    for hyperparams in yaml.safe_load(path.read_text()).values():
        try:
            check_hyperparams(hyperparams, str(path))
        except ModuleNotFoundError as error:  # of packages that are not installed, or of another version
            assert error.name in ("minigrid", "gymnasium.wrappers.time_limit")
        except UntrustedError as error:  # which is in no package
            assert "ae.wrapper.AutoencoderWrapper" in str(error)


@pytest.mark.parametrize(
    "text", ["dict(a=-1, b=[1, (2.5, 'x')], c={'d': None})", " dict([('a', True)])", "dict(f=nn.ReLU, o=RMSpropTFLike)", "{}"]
)
def test_literals_and_networks_need_no_trust(text):
    check_hyperparams({"policy_kwargs": text, "policy": "MlpPolicy"}, "mine.yml")


def test_classes_of_the_libraries_need_no_trust():
    names = {
        "policy": "sb3_vla.VLAPolicy",
        "callback": ["sb3_vla.SFTCallback", {"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 1}}],
        "env_wrapper": {"sb3_vla_envs.ChunkedActionWrapper": {"chunk_size": 2}},
        "vec_env_wrapper": "stable_baselines3.common.vec_env.VecMonitor",
        "env_kwargs": {"suite": "metaworld"},
    }
    check_hyperparams({**names, "normalize": True, "monitor_kwargs": None}, "mine.yml")


def test_what_the_zoo_writes_of_a_run_comes_back(tmp_path):
    kwargs = {"size": (2, (3, 4)), "cameras": ["corner4"], "rate": 1e-3}
    written = OrderedDict(env="Pendulum-v1", env_kwargs=kwargs, hyperparams={"f": nn.Tanh, "env_kwargs": kwargs}, seed=None)
    (tmp_path / "args.yml").write_text(yaml.dump(written))
    with open(tmp_path / "args.yml") as file:
        read = yaml.load(file, Loader=RunFolderLoader)
    assert read == written and type(read) is OrderedDict


class Mine(nn.ReLU):
    pass


def test_a_class_of_ones_own_in_a_run_folder_can_be_trusted(monkeypatch):
    monkeypatch.setattr("sb3_vla.common.trusted_names._trusted", {})
    content = yaml.dump({"f": Mine})
    with pytest.raises(ValueError, match=r"--trust"):
        yaml.load(content, Loader=RunFolderLoader)
    sb3_vla.trust(Mine)
    assert yaml.load(content, Loader=RunFolderLoader) == {"f": Mine}


class Observing(gym.Env):
    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.5, False, False, {}


PARTS = {"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3), "c": spaces.MultiBinary(3), "d": spaces.MultiDiscrete([2, 3])}


@pytest.mark.parametrize("space", [PARTS["a"], spaces.Dict(PARTS)], ids=["box", "dict"])
def test_statistics_come_back(space, tmp_path):
    def make():
        return DummyVecEnv([lambda: Observing(space)])

    space.seed(1)
    normalizer = VecNormalize(make(), norm_obs_keys=["a"] if isinstance(space, spaces.Dict) else None)
    normalizer.reset()
    normalizer.step(np.zeros((1, 2)))
    normalizer.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = load_statistics(str(tmp_path / "vecnormalize.pkl"), make())
    observation = loaded.venv.reset()
    expected, given = normalizer.normalize_obs(observation), loaded.normalize_obs(observation)
    for key in PARTS if isinstance(space, spaces.Dict) else [...]:
        np.testing.assert_array_equal(given[key], expected[key])
    loaded.reset()

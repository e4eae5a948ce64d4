"""Toy environments and models, small enough for many updates a second; and what all tests begin with."""

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC
from sb3_vla_envs import ChunkedActionWrapper, Demonstration, encode_instruction

from .web_page import look_at  # noqa: F401  # a fixture

# Worker processes and ranks fork from one that begins now to import all that they need: each would import torch otherwise
_BACKBONES = ["sb3_vla.policies.backbones.smolvlm", "transformers.models.smolvlm.modeling_smolvlm"]
multiprocessing.get_context("forkserver").set_forkserver_preload(["sb3_vla.api", *_BACKBONES])
multiprocessing.forkserver.ensure_running()

# A hang-up has an effect when the tests themselves run under nohup, too, and Ctrl-C when they run in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that tests start can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# One 8 x 8 image becomes one token
TINY_CONFIG = {
    "model_type": "smolvlm",
    "scale_factor": 2,
    "image_token_id": 383,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        # Must stay off in training
        "attention_dropout": 0.5,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 384,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "attention_dropout": 0.5,
        # Large enough for the prompt to show in the features of an untrained model
        "initializer_range": 0.3,
    },
}
POLICY_KWARGS = {"backbone_kwargs": {"config": TINY_CONFIG}, "head_kwargs": {"hidden_dim": 16}, "critic_net_arch": (16,)}
INSTRUCTIONS = {"push": "push", "pull": "pull the lever"}


@pytest.fixture(autouse=True)
def _one_thread():
    th.set_num_threads(1)


class ToyVLAEnv(gym.Env):
    """
    Primitive actions of two numbers. A step with a positive first number is progress; the episode succeeds after ``goal``
    such steps, with reward 1, and is cut off after ``horizon`` steps.
    """

    def __init__(self, task: str = "push", goal: int = 4, horizon: int = 7, privileged: bool = True) -> None:
        self.task, self.goal, self.horizon, self.privileged = task, goal, horizon, privileged
        observations: dict[str, spaces.Space] = {
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "state": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "instruction": spaces.Box(0, 255, (16,), np.uint8),
        }
        if privileged:
            observations["privileged"] = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict(observations)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.t = self.progress = 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        assert self.action_space.contains(action), "the action must be clipped to its bounds"
        self.t += 1
        self.progress += int(action[0] > 0)
        success = self.progress >= self.goal
        info: dict[str, Any] = {"task": self.task, "is_success": success}
        if success:
            info["steps_to_success"] = self.t
        return self._observation(), float(success), success, not success and self.t >= self.horizon, info

    def get_state(self) -> list[int]:
        return [self.t, self.progress]

    def set_state(self, state: list[int]) -> None:
        self.t, self.progress = state

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.random.default_rng(100 * self.t + self.progress).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        observation = {
            "image": image,
            "state": np.array([self.t / 10, self.progress / 10, 1.0], np.float32),
            "instruction": encode_instruction(INSTRUCTIONS[self.task], 16),
        }
        if self.privileged:
            observation["privileged"] = np.array([self.t, self.progress], np.float32)
        return observation


def _make_env(chunk_size: int = 3, gamma: float = 0.9, **kwargs: Any) -> gym.Env:
    return ChunkedActionWrapper(ToyVLAEnv(**kwargs), chunk_size, gamma=gamma)


def _make_vec_env(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    """Two tasks in turn."""
    return DummyVecEnv([lambda task=task: _make_env(task=task, **kwargs) for task in (["push", "pull"] * n_envs)[:n_envs]])


def _make_model(env: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> PPOSelfBC:
    settings: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, gamma=0.9, seed=0, device="cpu")
    return PPOSelfBC(
        "VLAPolicy",
        _make_vec_env() if env is None else env,
        policy_kwargs={**POLICY_KWARGS, **(policy_kwargs or {})},
        **{**settings, **kwargs},
    )


def _make_demonstrations(n: int = 4, task: str = "push", chunk_size: int = 3, **kwargs: Any) -> list[Demonstration]:
    """Expert episodes of the toy environment; the second number of an action tells apart the episodes."""
    demonstrations = []
    for i in range(n):
        env = _make_env(chunk_size, task=task, **kwargs)
        observation, _ = env.reset()
        observations, lengths, done = [], [], False
        action = np.tile(np.array([0.8, -0.1 * (i % 3)], np.float32), (chunk_size, 1))
        while not done:
            observations.append(observation)
            observation, _, terminated, truncated, info = env.step(action)
            lengths.append(info["chunk_length"])
            done = terminated or truncated
        demonstrations.append(
            Demonstration(
                task=task,
                observations={key: np.stack([obs[key] for obs in observations]) for key in observations[0]},
                actions=np.stack([action] * len(lengths)),
                chunk_lengths=np.array(lengths, dtype=np.int64),
                success=True,
            )
        )
    return demonstrations


class LastDump(KVWriter):
    """Keeps what was logged last."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values = dict(key_values)

    def close(self) -> None:
        pass


def _record_logs(model: Any) -> list[dict[str, Any]]:
    writer = LastDump()
    model.set_logger(Logger(None, [writer]))
    updates, train = [], model.train

    def train_and_record() -> None:
        # SB3 dumps what it logged of a rollout before it trains on it
        train()
        rollout = {key: value for key, value in writer.values.items() if not key.startswith(("train/", "demos/"))}
        updates.append({**rollout, **model.logger.name_to_value})

    model.train = train_and_record
    return updates


class _RunOnLoading:
    """Does something when it is unpickled."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call, ()


def _free_port() -> int:
    """:return: A port below those that the operating system gives away itself: meanwhile others may get one of them"""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("there is no free port")


def _run_rank(function: Callable[[], Any], variables: dict[str, str], answer: Path) -> None:
    os.environ.update(variables)
    th.set_num_threads(1)
    try:
        result = function()
    except Exception as error:
        traceback.print_exc()
        result = error
    answer.write_bytes(cloudpickle.dumps(result))


class RankProcesses:
    """
    Runs a function in several processes, which find in their environment what ``torchrun`` tells those that it starts; forked
    from one that has imported everything, they start at once.
    """

    def __init__(self, folder: Path, function: Callable[..., Any], size: int, *args: Any) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        port = _free_port()
        self.answers = [folder / f"rank{rank}_of_{port}" for rank in range(size)]
        self.processes = []
        for rank, answer in enumerate(self.answers):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
            variables = {name: str(number) for name, number in numbers.items()}
            variables |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            call = partial(_run_rank, partial(function, *args), variables, answer)
            self.processes.append(context.Process(target=cloudpickle.loads, args=(cloudpickle.dumps(_RunOnLoading(call)),)))
            self.processes[-1].start()

    def results(self, timeout: float = 120.0) -> list[Any]:
        """What the function returned or raised on each rank, ``None`` of a rank that was killed."""
        for process in self.processes:
            process.join(timeout)
        running = [process for process in self.processes if process.is_alive()]
        for process in running:
            process.kill()
        assert not running, "the ranks wait for each other for ever"
        return [pickle.loads(answer.read_bytes()) if answer.exists() else None for answer in self.answers]


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RankProcesses]:
    """Run a function with arguments on so many ranks."""
    return partial(RankProcesses, tmp_path_factory.mktemp("ranks"))


def put_environments_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """
    Of commands and of what evaluates: workers take seconds to import MetaWorld, and give the same (tests/sb3_vla/vec_env).
    """
    patch.setattr("sb3_vla.vec_env.make.SharedMemoryVecEnv", lambda env_fns, probe_steps=0: DummyVecEnv(list(env_fns)))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    put_environments_in_this_process(monkeypatch)


@pytest.fixture
def make_env() -> Callable[..., gym.Env]:
    """The toy environment under ``ChunkedActionWrapper``."""
    return _make_env


@pytest.fixture
def make_vec_env() -> Callable[..., DummyVecEnv]:
    return _make_vec_env


@pytest.fixture
def make_model() -> Callable[..., PPOSelfBC]:
    return _make_model


@pytest.fixture
def make_demonstrations() -> Callable[..., list[Demonstration]]:
    return _make_demonstrations


@pytest.fixture
def record_logs() -> Callable[[Any], list[dict[str, Any]]]:
    """Give a model a logger and get a list that grows by a dictionary at each update."""
    return _record_logs


@pytest.fixture
def policy_kwargs() -> dict[str, Any]:
    return dict(POLICY_KWARGS)


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    return TINY_CONFIG

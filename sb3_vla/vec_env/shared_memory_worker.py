"""What a worker process of :class:`SharedMemoryVecEnv` does: it runs some of the environments, on command."""

import faulthandler
import os
import pickle
import random
import signal
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.common.vec_env.util import obs_space_info

from .env_state import EnvState, get_env_state, set_env_state
from .shared_memory_room import check_room, reserve, step_sizes

END = b"end"  # instead of a command
# Upon which a worker says where it is; Windows has no such signal
STACK_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)


class WorkerFailure(NamedTuple):
    """
    The reply to a command that raised an error.

    :param error: The error, or a ``RuntimeError`` with its text if it can't be pickled
    :param traceback: Where it was raised, as text, beginning with the number of the environment
    """

    error: Exception
    traceback: str


class StepArrays:
    """
    What the environments last observed and were rewarded with.

    :param n_envs: Number of environments
    :param observation_space: Of one environment, any that SB3 supports
    """

    def __init__(self, n_envs: int, observation_space: spaces.Space[Any]) -> None:
        keys, layout = _layout(n_envs, observation_space)
        self._hold(keys, [np.zeros(shape, dtype) for shape, dtype in layout])

    def _hold(self, keys: Sequence[Any], arrays: Sequence[Any]) -> None:
        #: Each part of the observation, shape (n_envs, ...); a space without parts has one, named None
        self.observations: dict[Any, Any] = dict(zip(keys, arrays[:-2], strict=True))
        #: float32 like DummyVecEnv's, so that both give the same numbers
        self.rewards, self.dones = arrays[-2:]

    @property
    def arrays(self) -> list[Any]:
        """All of them."""
        return [*self.observations.values(), self.rewards, self.dones]

    def write_observation(self, index: int, observation: Any) -> None:
        """
        :param index: Which environment
        :param observation: What it observed
        :raises ValueError: If that doesn't fit the space
        """
        for key, array in self.observations.items():
            name = "The observation" if key is None else f"The observation's part {key!r}"
            try:
                part = np.asarray(observation if key is None else observation[key])
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{name} is missing, which the observation space of environment 0 has.") from error
            if part.shape != array.shape[1:]:
                raise ValueError(
                    f"{name} has shape {part.shape}, but the observation space of environment 0 says {array.shape[1:]}. "
                    "All environments must have the same space and return what it says."
                )
            array[index] = part

    def pack(self, indices: Sequence[int]) -> bytes:
        """
        :param indices: Which environments
        :return: Their rows of all arrays
        """
        return b"".join(array[list(indices)].tobytes() for array in self.arrays)

    def unpack(self, indices: Sequence[int], packed: bytes) -> None:
        """
        :param indices: Which environments
        :param packed: What :meth:`pack` has made of them elsewhere
        """
        start = 0
        for array in self.arrays:
            rows = np.frombuffer(packed, array.dtype, len(indices) * array[0].size, start)
            array[indices] = rows.reshape(len(indices), *array.shape[1:])
            start += rows.nbytes

    def close(self) -> None:
        """Let go of what has to be let go of."""


class SharedSteps(StepArrays):
    """
    The same in memory that several processes share.

    :param n_envs: Number of environments
    :param observation_space: Of one environment, any that SB3 supports
    :param name: Of the memory, if another process has made it already
    :raises RuntimeError: If there is not enough of it
    """

    def __init__(self, n_envs: int, observation_space: spaces.Space[Any], name: str | None = None) -> None:
        keys, layout = _layout(n_envs, observation_space)
        sizes = step_sizes(n_envs, observation_space)
        if name is None:
            check_room(sum(sizes))
        self._memory = SharedMemory(name, create=name is None, size=sum(sizes))
        if name is None:
            try:
                reserve(self._memory.name, sum(sizes))
            except RuntimeError:
                self._memory.unlink()
                raise
        self.name = self._memory.name
        offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        arrays = [
            np.ndarray(shape, dtype, self._memory.buf, offset=offset)
            for (shape, dtype), offset in zip(layout, offsets, strict=True)
        ]
        self._hold(keys, arrays)

    def unlink(self) -> None:
        """Take away the memory's name: it goes with the last process that uses it, however that ends."""
        self._memory.unlink()

    def close(self) -> None:
        """Let go of the memory."""
        self.observations, self.rewards, self.dones = {}, None, None  # SharedMemory can't close while arrays use it
        self._memory.close()

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self.close()


def _layout(n_envs: int, observation_space: spaces.Space[Any]) -> tuple[list[Any], list[tuple[tuple[int, ...], Any]]]:
    """:return: Names of the parts of an observation; shapes and types of their arrays, of the rewards' and of the dones'"""
    keys, shapes, dtypes = obs_space_info(observation_space)
    layout: list[tuple[tuple[int, ...], Any]] = [((n_envs, *shapes[key]), np.dtype(dtypes[key])) for key in keys]
    return keys, [*layout, ((n_envs,), np.dtype(np.float32)), ((n_envs,), np.dtype(bool))]


class GlobalRandomness:
    """
    One environment's own stream of Python's and NumPy's global random numbers, so that environments that use them don't
    depend on which others run in their process.
    """

    def __init__(self) -> None:
        self._python = random.Random().getstate()
        self._numpy: Any = np.random.MT19937()

    def resume(self) -> None:
        """Let the global random numbers be this stream."""
        random.setstate(self._python)
        set_bit_generator(self._numpy)  # takes 0.2 us, where get_state and set_state take 100

    def pause(self) -> None:
        """Keep where the stream is now."""
        self._python = random.getstate()
        self._numpy = get_bit_generator()


class EnvWorker:
    """
    Runs some of the environments. Its methods are the commands: each is told which environments, by their numbers among
    those of all workers, and replies with a list, in that order.

    :param cleanup: Gets what there is to close in the end
    """

    def __init__(self, cleanup: ExitStack) -> None:
        self.running: int | None = None  # which environment
        self._cleanup = cleanup
        self._envs: dict[int, gym.Env[Any, Any]] = {}
        self._randomness: defaultdict[int, GlobalRandomness] = defaultdict(GlobalRandomness)
        self._steps: StepArrays

    def measure(self, env_fns: Mapping[int, bytes], n_steps: int) -> list[float]:
        """
        :param env_fns: Pickled functions that build an environment; what is built here is closed again
        :param n_steps: Random steps to take in each
        :return: Seconds a step
        """
        seconds = [_measure(pickle.loads(env_fns[index])(), n_steps) for index in self._each(env_fns)]
        self._randomness.clear()  # as if this had not happened
        return seconds

    def build(self, env_fns: Mapping[int, bytes]) -> list[tuple[spaces.Space[Any], spaces.Space[Any]]]:
        """
        :param env_fns: Pickled functions that build an environment
        :return: Observation and action spaces
        """
        for index in self._each(env_fns):
            self._envs[index] = env = _patch_env(pickle.loads(env_fns[index])())
            self._cleanup.callback(env.close)
        return [(env.observation_space, env.action_space) for env in self._envs.values()]

    def share(self, indices: Sequence[int], n_envs: int, observation_space: spaces.Space[Any], name: str) -> list[None]:
        """
        :param indices: Which environments
        :param n_envs: Number of environments of all workers
        :param observation_space: Of one of them
        :param name: Of the shared memory
        :return: One None each
        """
        steps = SharedSteps(n_envs, observation_space, name)
        self._cleanup.callback(steps.close)
        self._steps = steps
        return [None] * len(indices)

    def hold(self, indices: Sequence[int], n_envs: int, observation_space: spaces.Space[Any]) -> list[None]:
        """
        :param indices: Which environments
        :param n_envs: Number of environments of all workers
        :param observation_space: Of one of them
        :return: One None each
        """
        self._steps = StepArrays(n_envs, observation_space)
        return [None] * len(indices)

    def last_steps(self, indices: Sequence[int]) -> bytes:
        """
        :param indices: Which environments
        :return: What they last observed and were rewarded with, for :meth:`StepArrays.unpack`
        """
        return self._steps.pack(indices)

    def reset(self, arguments: Mapping[int, tuple[int | None, dict[str, Any]]]) -> list[dict[str, Any]]:
        """
        :param arguments: Seed and options for each environment
        :return: Infos
        """
        infos = []
        for index in self._each(arguments):
            seed, options = arguments[index]
            maybe_options = {"options": options} if options else {}  # some environments take none
            observation, info = self._envs[index].reset(seed=seed, **maybe_options)
            self._steps.write_observation(index, observation)
            infos.append(info)
        return infos

    def step(self, actions: Mapping[int, Any]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        """
        :param actions: One for each environment
        :return: Infos, each with the info of the reset where an episode ended
        """
        infos = []
        for index in self._each(actions):
            env, reset_info = self._envs[index], None
            observation, reward, terminated, truncated, info = env.step(actions[index])
            done = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                observation, reset_info = env.reset()
            self._steps.write_observation(index, observation)
            self._steps.rewards[index], self._steps.dones[index] = reward, done
            infos.append((info, reset_info))
        return infos

    def render(self, indices: Sequence[int]) -> list[Any]:
        """
        :param indices: Which environments
        :return: What ``env.render()`` gives
        """
        return [self._envs[index].render() for index in self._each(indices)]

    def env_method(self, indices: Sequence[int], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """
        :param indices: Which environments
        :param name: Of the method
        :param args: Its arguments
        :param kwargs: Its arguments by name
        :return: What it returns
        """
        return [self._envs[index].get_wrapper_attr(name)(*args, **kwargs) for index in self._each(indices)]

    def get_attr(self, indices: Sequence[int], name: str) -> list[Any]:
        """
        :param indices: Which environments
        :param name: Of the attribute, which may be of a wrapped environment
        :return: Its values
        """
        return [self._envs[index].get_wrapper_attr(name) for index in self._each(indices)]

    def has_attr(self, indices: Sequence[int], name: str) -> list[bool]:
        """
        :param indices: Which environments
        :param name: Of the attribute
        :return: Whether they have it; unlike its value, that can always be pickled
        """
        return [_has_attr(self._envs[index], name) for index in self._each(indices)]

    def set_attr(self, indices: Sequence[int], name: str, value: Any) -> list[None]:
        """
        :param indices: Which environments
        :param name: Of the attribute
        :param value: Its new value
        :return: One None each
        """
        for index in self._each(indices):
            setattr(self._envs[index], name, value)
        return [None] * len(indices)

    def get_state(self, indices: Sequence[int]) -> list[EnvState]:
        """
        :param indices: Which environments
        :return: What they go on from
        """
        return [get_env_state(self._envs[index]) for index in self._each(indices)]

    def set_state(self, states: Mapping[int, EnvState]) -> list[None]:
        """
        :param states: What each environment is to go on from
        :return: One None each
        """
        for index in self._each(states):
            set_env_state(self._envs[index], states[index])
        return [None] * len(states)

    def is_wrapped(self, indices: Sequence[int], wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]]) -> list[bool]:
        """
        :param indices: Which environments
        :param wrapper_class: The class of a wrapper
        :return: Whether it is among their wrappers
        """
        return [is_wrapped(self._envs[index], wrapper_class) for index in self._each(indices)]

    def _each(self, indices: Iterable[int]) -> Iterator[int]:
        """Go through environments: errors are the current one's, and so are the global random numbers."""
        for index in indices:
            self.running = index
            self._randomness[index].resume()
            yield index
            self._randomness[index].pause()
        self.running = None


def run_worker(remote: Connection, stack_remote: Connection, inherited: Sequence[Connection]) -> None:
    """
    The main function of a worker process: does what it is told, until it is told to end or nobody is left to tell it.

    :param remote: Where commands come from and replies go to
    :param stack_remote: Where it says where it is, when it is asked by a signal
    :param inherited: Other ends of connections, which a forked process got without asking
    """
    for connection in inherited:
        connection.close()
    # Ctrl-C, the end of a terminal and of a job are for the parent, which closes its workers when it has come to a good point
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if STACK_SIGNAL is not None:
        faulthandler.register(STACK_SIGNAL, stack_remote.fileno())
    # There is a worker for each CPU: more threads would get in their way. Mesa reads this with the first OpenGL context.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    th.set_num_threads(1)
    with ExitStack() as cleanup:
        worker = EnvWorker(cleanup)
        try:
            while (message := remote.recv_bytes()) != END:
                remote.send_bytes(reply_to(worker, message))
        except (EOFError, ConnectionError):
            pass  # the parent is gone


def reply_to(worker: EnvWorker, message: bytes) -> bytes:
    """
    :param worker: Runs the environments
    :param message: Pickled command and its arguments
    :return: Pickled reply, a :class:`WorkerFailure` if the command raised an error
    """
    try:
        command, arguments = pickle.loads(message)
        return _pickled(getattr(worker, command)(*arguments))
    except Exception as error:
        where = "a worker process" if worker.running is None else f"environment {worker.running}"
        worker.running = None
        failure = WorkerFailure(_as_picklable(error), f"In {where}:\n{traceback.format_exc()}")
        return pickle.dumps(failure)


def _pickled(reply: Any) -> bytes:
    try:
        return pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        return cloudpickle.dumps(reply)  # slower; an attribute may hold a function of a user's script


def _as_picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # some can be pickled but not unpickled
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _measure(env: gym.Env[Any, Any], n_steps: int) -> float:
    env = _patch_env(env)
    seconds = []
    try:
        env.reset()
        for _ in range(n_steps):
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            seconds.append(time.perf_counter() - start)
            if terminated or truncated:
                env.reset()
    finally:
        env.close()
    return float(np.median(seconds))  # not the mean: it would believe whatever else the machine did meanwhile


def _has_attr(env: gym.Env[Any, Any], name: str) -> bool:
    try:
        env.get_wrapper_attr(name)
        return True
    except AttributeError:
        return False

"""A vectorised environment whose environments run somewhere else, on command."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_vla_envs.argument_checks import Limits

from .env_state import EnvState
from .shared_memory_worker import StepArrays

# What workers may take to close their environments. After an error they should not keep it from being raised.
_SECONDS_TO_CLOSE = 10.0
SECONDS_TO_CLOSE_AFTER_ERROR = 2.0


def check_workers(n_workers: int | None, timeout: float | None) -> None:
    """
    :param n_workers: Number of workers, ``None`` for as many as there is room for
    :param timeout: Seconds to wait for an answer, ``None`` to wait for ever
    :raises TypeError: If one is neither a number nor ``None``
    :raises ValueError: If one is out of range
    """
    Limits(at_least=1, whole=True, others=(None,)).check("n_workers", n_workers)
    Limits(above=0, others=(None,)).check("timeout", timeout)


class WorkerTraceback(Exception):
    """The cause of an error that a worker process raised: its traceback there, with the number of the environment."""


class WorkerVecEnv(VecEnv):
    """
    What :class:`~sb3_vla.SharedMemoryVecEnv` and :class:`~sb3_vla.RayVecEnv` have in common: SB3's interface, made of commands
    to workers, each of which runs some of the environments.
    """

    #: What the environments last observed and were rewarded with
    _steps: StepArrays | None = None

    def reset(self) -> VecEnvObs:
        """
        Reset all environments, with the seeds and options set before. A step under way is dropped.

        :return: Observations
        """
        self._receive()
        self.waiting = False
        arguments = list(zip(self._seeds, self._options, strict=True))
        self.reset_infos = self._ask("reset", range(self.num_envs), values=arguments)
        # Seeds and options are only used once
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step. One that was interrupted (Ctrl-C) before anyone had its results is dropped.

        :param actions: One for each environment
        """
        self._receive()
        if len(actions) != self.num_envs:
            raise ValueError(f"Got {len(actions)} actions for {self.num_envs} environments: give one for each.")
        self._tell("step", range(self.num_envs), values=actions)
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observations, rewards, dones, infos: copies, which later steps leave alone
        """
        if not self.waiting:
            raise RuntimeError("There is no step to wait for: call step_async() first.")
        results = self._hear(range(self.num_envs))
        self.waiting = False
        assert self._steps is not None
        for index, (_, reset_info) in enumerate(results):
            if reset_info is not None:
                self.reset_infos[index] = reset_info
        return self._observations(), self._steps.rewards.copy(), self._steps.dones.copy(), [info for info, _ in results]

    def close(self) -> None:
        """Close the environments and end the workers, also in the middle of a step."""
        self._shut_down(_SECONDS_TO_CLOSE)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: What each environment renders, or None if that isn't pictures
        """
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self._ask("render", range(self.num_envs), closes=False)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Of a method of the environments or of a wrapper
        :param method_args: Its arguments
        :param indices: Of environments, all by default
        :param method_kwargs: Its arguments by name
        :return: What it returns, one for each environment
        """
        return self._ask("env_method", self._numbers(indices), method_name, method_args, method_kwargs)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Of an attribute of the environments or of a wrapper
        :param indices: Of environments, all by default
        :return: Its values
        :raises AttributeError: If an environment doesn't have it
        """
        return self._ask("get_attr", self._numbers(indices), attr_name, closes=False)

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Of an attribute of the environments or of a wrapper
        :return: Whether all have it
        """
        return all(self._ask("has_attr", range(self.num_envs), attr_name, closes=False))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Of an attribute
        :param value: Its new value, set on the outermost wrapper
        :param indices: Of environments, all by default
        """
        self._ask("set_attr", self._numbers(indices), attr_name, value, closes=False)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Of environments, all by default
        :return: Which of them have it
        """
        return self._ask("is_wrapped", self._numbers(indices), wrapper_class, closes=False)

    def get_states(self) -> list[EnvState]:
        """
        :return: What each environment goes on from
        :raises NotImplementedError: If an environment, or one of its wrappers, can't tell
        """
        return self._ask("get_state", range(self.num_envs), closes=False)

    def set_states(self, states: Sequence[EnvState]) -> None:
        """
        :param states: What :meth:`get_states` returned, also in another process; what is observed shows with the next step
        :raises ValueError: If the environments are others
        """
        self._ask("set_state", range(self.num_envs), values=states)

    def _numbers(self, indices: VecEnvIndices) -> list[int]:
        """Numbers from 0, where indices may count from the end."""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    def _observations(self) -> VecEnvObs:
        assert self._steps is not None
        return dict_to_obs(self.observation_space, {key: array.copy() for key, array in self._steps.observations.items()})

    def _ask(self, command: str, numbers: Sequence[int], *args: Any, values: Any = None, closes: bool = True) -> list[Any]:
        """
        Have a command done and wait for it.

        :param command: A method of :class:`EnvWorker`
        :param numbers: Of the environments
        :param args: Further arguments of the command
        :param values: What environment i is to get as ``values[i]``, instead of only its number
        :param closes: Whether an error closes everything
        :return: One reply for each environment
        """
        self._tell(command, numbers, *args, values=values)
        return self._hear(numbers, closes)

    @abstractmethod
    def _tell(self, command: str, numbers: Sequence[int], *args: Any, values: Any = None) -> None:
        """Begin what :meth:`_ask` says."""

    @abstractmethod
    def _hear(self, numbers: Sequence[int], closes: bool = True) -> list[Any]:
        """
        Wait for the end of what was begun.

        :param numbers: Of the environments
        :param closes: Whether an error closes everything
        :return: One reply for each environment
        """

    @abstractmethod
    def _receive(self, closes: bool = True) -> Any:
        """Wait for the replies of all busy workers, if there are any."""

    @abstractmethod
    def _shut_down(self, seconds: float) -> None:
        """
        :param seconds: How long the workers may take to close their environments
        """

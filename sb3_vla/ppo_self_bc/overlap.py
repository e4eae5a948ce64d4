"""Collecting the next rollout while the last one is learned from."""

import copy
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from ..policies.adapter import PolicyAdapter
from .actor import Actor, EnvStep


def check_overlap(env: VecEnv) -> None:
    """
    :param env: The environments, which are to be stepped by another thread than the one that made them
    :raises ValueError: If they run in this process
    """
    if isinstance(env.unwrapped, DummyVecEnv):
        raise ValueError(
            "overlap=True needs environments in processes of their own, got DummyVecEnv, whose environments would keep the "
            "learner waiting and draw their pictures on another thread: use make_vla_vec_env, SharedMemoryVecEnv, RayVecEnv "
            "or SB3's SubprocVecEnv"
        )


class ActingCopy:
    """
    A policy as it was when it was last brought up to date, which acts while the policy itself learns. Frozen weights exist
    only once.

    :param adapter: Of the policy, between two updates
    """

    def __init__(self, adapter: PolicyAdapter) -> None:
        policy = adapter.policy
        self._learns = _trainable(adapter)
        shared: dict[int, Any] = {id(weight): weight for weight in policy.parameters() if not weight.requires_grad}
        acting = copy.deepcopy(policy, {**shared, id(policy.optimizer): None})
        acting.set_training_mode(False)
        self._of_policy = adapter
        self.adapter = copy.copy(adapter)
        self.adapter.policy = acting
        #: Where a GPU acts, so as not to wait for all that the update has in line
        self.stream = th.cuda.Stream(policy.device) if policy.device.type == "cuda" else None

    def update(self) -> None:
        """
        Become what the policy is now.

        :raises RuntimeError: If it does not learn the same weights any more
        """
        if _trainable(self._of_policy) != self._learns:
            raise RuntimeError(
                "overlap=True: parameters were frozen, unfrozen or replaced in the midst of learn(), which the copy of the "
                "policy that acts can't follow: do so between two calls of learn(), or turn overlap off"
            )
        policy, acting = self._of_policy.policy, self.adapter.policy
        parameters = zip(acting.parameters(), policy.parameters(), strict=True)
        buffers = zip(acting.buffers(), policy.buffers(), strict=True)
        with th.no_grad():
            for own, new in (*parameters, *buffers):
                if own is not new:
                    own.copy_(new)


def _trainable(adapter: PolicyAdapter) -> list[tuple[int, bool]]:
    return [(id(weight), weight.requires_grad) for weight in adapter.policy.parameters()]


class ActorAhead(Actor):
    """
    Takes the steps of a rollout at once, in a thread of its own, and hands them out later. Whatever else is done with a
    rollout is left to who asks for them, so that nothing but environments and copy belongs to that thread.

    :param env: The environments, for this alone until :meth:`begin` has returned
    :param acting: Who acts
    :param normalizer: Of the environments; a copy stays as it is, for who learns meanwhile
    :param obs: What the environments have shown last
    :param n_steps: Length of the rollout
    :param settings: Further arguments of :class:`Actor`
    """

    def __init__(
        self, env: VecEnv, acting: ActingCopy, normalizer: VecNormalize | None, obs: Any, n_steps: int, **settings: Any
    ) -> None:
        # From the global generator, so that its seed is that of all
        seed = int(th.randint(2**63 - 1, ()))
        generator = th.Generator(acting.adapter.policy.device).manual_seed(seed)
        super().__init__(env, acting.adapter, **settings, generator=generator)
        #: What normalises observations as before this rollout
        self.normalizer_before = copy.deepcopy(normalizer)
        #: What the environments have shown last, and whose episodes begin there, if that has changed
        self.reached: tuple[Any, np.ndarray] | None = None
        self._taken: deque[EnvStep] = deque()
        self._error: BaseException | None = None
        self._stops = threading.Event()
        self._stream = acting.stream
        if self._stream is not None:
            self._stream.wait_stream(th.cuda.current_stream(self._stream.device))
        self._thread = threading.Thread(target=self._collect, args=(obs, n_steps), name="rollout", daemon=True)
        self._thread.start()

    def _collect(self, obs: Any, n_steps: int) -> None:
        # Autocast keeps what it has rounded in one place for all threads, and empties it when a thread's outermost one ends:
        # the learner would round some weights again, and add up the gradients of both roundings in another precision. So none
        # is the outermost here; what is kept of the copy's weights stays right until they change
        th.autocast_increment_nesting()
        try:
            with nullcontext() if self._stream is None else th.cuda.stream(self._stream):
                super().begin()
                for step in super().steps(obs, n_steps):
                    self._taken.append(step)
                    self.reached = step.new_obs, step.dones
                    if self._stops.is_set():
                        break
        except BaseException as error:
            self._error = error

    def begin(self) -> None:
        """Wait for the last step."""
        self._thread.join()
        th.clear_autocast_cache()  # of the copy's weights
        if self._stream is not None:
            th.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def steps(self, obs: Any, n_steps: int) -> Iterator[EnvStep]:
        """
        :param obs: Where the rollout began
        :param n_steps: Its length
        :return: Iterator over the steps taken
        :raises Exception: After them, what has kept the next one from being taken
        """
        while self._taken:
            yield self._taken.popleft()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Take no further step than the one under way."""
        self._stops.set()
        self.begin()

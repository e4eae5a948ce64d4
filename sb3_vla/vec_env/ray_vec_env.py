"""A vectorised environment whose environments run on the nodes of a Ray cluster."""

import pickle
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.util import dict_to_obs

from ..common.launch import launched_as
from ..common.lost_episode import lost_info
from .ray_cluster import check_object_store, connect, count_places, import_ray
from .ray_worker import RayWorker
from .shared_memory_worker import StepArrays, WorkerFailure
from .worker_vec_env import SECONDS_TO_CLOSE_AFTER_ERROR, WorkerTraceback, WorkerVecEnv, check_workers

# Commands after which there is something new to observe
_STEPPING = ("reset", "step")
# Ray sends objects of up to 100 KiB (its max_direct_call_object_size) along with the reply, which is quicker than the store.
# Infos need some of it
_BYTES_SENT_ALONG = 90_000
_SECONDS_BETWEEN_LOOKS = 1.0


class RayVecEnv(WorkerVecEnv):
    """
    Runs environments on the nodes of a Ray cluster, for those that have outgrown one machine: several in each worker, an actor
    of Ray. Observations of more than 90 kB go through Ray's object store, smaller ones come along with the reply. Otherwise it
    is like :class:`~sb3_vla.SharedMemoryVecEnv`, which is quicker on one machine.

    A worker that is lost, with its node or alone, is replaced wherever there is room, also on a node that is yet to come. The
    episodes of its environments end as truncated; a step that got lost counts as none, see
    ``sb3_vla.common.lost_episode.lost_info``. What ``set_attr`` and ``env_method`` changed in them is lost, too.

    :param env_fns: Functions that each build an environment; they are called in the workers
    :param n_workers: Number of workers, by default as many as the cluster has room for; of several processes that train one
        model, each takes its part of that
    :param resources: What each worker occupies of its node: ``CPU``, ``GPU``, and names of your own that ``ray start
        --resources`` gave to nodes; by default one ``CPU``
    :param address: Of the cluster, ``"HOST:PORT"``; by default that of ``RAY_ADDRESS``, and without such this machine alone. A
        process that has called ``ray.init()`` stays where it is
    :param timeout: Seconds after which a worker that has not answered is given up, with all others, also one that waits for
        room; ``None`` waits for ever
    :raises ImportError: If Ray is not installed
    :raises ConnectionError: If the cluster can't be reached
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If there is no environment, an argument is out of range, there is no node with such resources, or the
        observations don't fit into the object store
    :raises RuntimeError: If a worker is lost again before its first step
    :raises TimeoutError: If a worker does not answer
    :raises Exception: What an environment raises
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        resources: Mapping[str, float] | None = None,
        address: str | None = None,
        timeout: float | None = 600.0,
    ) -> None:
        if len(env_fns) == 0:
            raise ValueError("There are no environments to run: give at least one function that builds one.")
        check_workers(n_workers, timeout)
        self.num_envs = len(env_fns)
        self.timeout = timeout
        self.resources = {"CPU": 1.0} if resources is None else dict(resources)
        self.waiting = False
        self.closed = False
        #: How often a worker was lost and replaced
        self.n_lost_workers = 0
        self._env_fns = [cloudpickle.dumps(env_fn) for env_fn in env_fns]
        # By environment: what was seen last of an episode that was lost, and info of the reset after it, until a step has told
        self._lost: dict[int, tuple[Any, dict[str, Any]]] = {}
        connect(address)
        n_places = max(1, count_places(self.resources) // launched_as()[1])
        n_workers = min(n_workers or n_places, self.num_envs)
        self._workers = [_Worker(list(range(self.num_envs))[number::n_workers]) for number in range(n_workers)]
        self._worker_of = [self._workers[number % n_workers] for number in range(self.num_envs)]
        try:
            for worker in self._workers:
                worker.actor = self._start_actor()
            everywhere = range(self.num_envs)
            observation_space, action_space = self._ask("build", everywhere, values=self._env_fns)[0]
            self._steps = StepArrays(self.num_envs, observation_space)
            # Environments whose observations together are small enough
            self._n_sent_along = _BYTES_SENT_ALONG // sum(array[0].nbytes for array in self._steps.arrays)
            if self._n_sent_along == 0:
                check_object_store(sum(array.nbytes for array in self._steps.arrays))
            self._ask("hold", everywhere, self.num_envs, observation_space)
            super().__init__(self.num_envs, observation_space, action_space)
            self.metadata = self.get_attr("metadata", indices=0)[0]
        except BaseException:
            self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
            raise

    def _start_actor(self) -> Any:
        needs = dict(self.resources)
        options = {"num_cpus": needs.pop("CPU", 0.0), "num_gpus": needs.pop("GPU", 0.0), "resources": needs}
        return import_ray().remote(RayWorker).options(**options, scheduling_strategy="SPREAD").remote()

    def _tell(self, command: str, numbers: Sequence[int], *args: Any, values: Any = None) -> None:
        if self.closed:
            raise RuntimeError(f"Can't do '{command}': this vectorised environment is closed.")
        if any(worker.reply is not None for worker in self._workers):
            raise RuntimeError(f"Can't do '{command}' in the middle of a step: call step_wait() or reset() first.")
        if command == "reset":
            self._lost.clear()
        shares: dict[_Worker, list[int]] = defaultdict(list)
        for number in numbers:
            if command != "step" or number not in self._lost:
                shares[self._worker_of[number]].append(number)
        for worker, share in shares.items():
            which = share if values is None else {number: values[number] for number in share}
            self._begin(worker, command, pickle.dumps((command, (which, *args)), pickle.HIGHEST_PROTOCOL), share)

    def _begin(self, worker: "_Worker", command: str, message: bytes, share: list[int]) -> None:
        """
        :param worker: Who does it
        :param command: What
        :param message: The same, pickled, with its arguments
        :param share: For which of its environments
        """
        worker.command, worker.message, worker.share = command, message, share
        worker.parts = self._parts(share) if command in _STEPPING else []
        references = worker.actor.do.options(num_returns=max(1, len(worker.parts))).remote(message, worker.parts)
        worker.reply, *worker.more = references if len(worker.parts) > 1 else [references]

    def _parts(self, share: list[int]) -> list[list[int]]:
        """
        :param share: Environments
        :return: The same in parts, of whose observations each is an object of Ray
        """
        length = self._n_sent_along or len(share)
        return [share[start : start + length] for start in range(0, len(share), length)]

    def _hear(self, numbers: Sequence[int], closes: bool = True) -> list[Any]:
        replies = {id(worker): iter(reply) for worker, reply in self._receive(closes)}
        return [
            self._tell_of_loss(number) if number in self._lost and self.waiting else next(replies[id(self._worker_of[number])])
            for number in numbers
        ]

    def _tell_of_loss(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :param number: Of an environment that began anew
        :return: Info of the step that never came, and of the reset
        """
        last_observation, reset_info = self._lost.pop(number)
        assert self._steps is not None
        self._steps.rewards[number], self._steps.dones[number] = 0.0, True
        return lost_info(last_observation), reset_info

    def _receive(self, closes: bool = True) -> list[tuple["_Worker", Any]]:
        ray = import_ray()
        replies: list[tuple[_Worker, Any]] = []
        failure: WorkerFailure | None = None
        deadline = time.monotonic() + (np.inf if self.timeout is None else self.timeout)
        while busy := {worker.reply: worker for worker in self._workers if worker.reply is not None}:
            ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0 if replies else _SECONDS_BETWEEN_LOOKS)
            if not ready:
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            if not ready and time.monotonic() > deadline:
                raise self._silence_of(list(busy.values()))
            for reference in ready:
                reply = self._reply_of(busy[reference], reference)
                if isinstance(reply, WorkerFailure):
                    failure = failure or reply
                elif reply is not None:
                    replies.append((busy[reference], reply))
            if failure is not None and closes:
                self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
                break
        if failure is not None:
            raise failure.error from WorkerTraceback(failure.traceback)
        return replies

    def _reply_of(self, worker: "_Worker", reference: Any) -> Any:
        """
        :param worker: A worker
        :param reference: Of the reply that it has given, or never will
        :return: The reply, ``None`` if the worker was lost with it and does the same again, or has nothing to do any more
        """
        ray = import_ray()
        try:
            (message, first), *others = ray.get([reference, *worker.more])
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError) as error:
            self._replace(worker, error)
            return None
        worker.reply = None
        for part, packed in zip(worker.parts, [first, *others], strict=False):  # of other commands there are none
            self._steps.unpack(part, packed)  # type: ignore[union-attr]
        worker.has_stepped |= worker.command == "step"
        return pickle.loads(message)

    def _replace(self, worker: "_Worker", error: Exception) -> None:
        """
        Run a worker's environments elsewhere, from a reset on, and have done what it was doing, but for a step.

        :param worker: Whose actor is lost
        :param error: What Ray says of it
        """
        command, message, share = worker.command, worker.message, worker.share
        reason = " ".join(str(error).split())[:300]
        if not worker.has_stepped:
            self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
            raise RuntimeError(
                f"the worker of environments {worker.numbers} was lost before its first step, and is not replaced once more: "
                f"{reason}. If it was killed, its node may be out of memory"
            )
        self.n_lost_workers += 1
        warnings.warn(f"the worker of environments {worker.numbers} was lost and is replaced: {reason}", stacklevel=2)
        worker.actor, worker.has_stepped = self._start_actor(), False
        last = {number: self._observation(number) for number in worker.numbers}
        self._have_done(worker, "build", {number: self._env_fns[number] for number in worker.numbers})
        self._have_done(worker, "hold", worker.numbers, self.num_envs, self.observation_space)
        seeds = np.random.SeedSequence([self.n_lost_workers, *worker.numbers]).generate_state(len(worker.numbers))
        arguments: dict[int, Any] = {number: (int(seed), {}) for number, seed in zip(worker.numbers, seeds, strict=True)}
        infos = self._have_done(worker, "reset", arguments)
        if command != "reset":  # which ends the episodes itself
            for number, info in zip(worker.numbers, infos, strict=True):
                first_lost, _ = self._lost.get(number, (last[number], None))
                self._lost[number] = first_lost, info
        if command != "step":
            self._begin(worker, command, message, share)

    def _have_done(self, worker: "_Worker", command: str, which: Any, *args: Any) -> Any:
        """
        Have one worker do a command for all of its environments, whatever the others are doing.

        :param worker: The worker
        :param command: A method of :class:`EnvWorker`
        :param which: Numbers of the environments, or what each is to get
        :param args: Further arguments
        :return: The reply
        """
        self._begin(worker, command, pickle.dumps((command, (which, *args)), pickle.HIGHEST_PROTOCOL), worker.numbers)
        ready, _ = import_ray().wait([worker.reply], timeout=self.timeout)
        if not ready:
            raise self._silence_of([worker])
        reply = self._reply_of(worker, worker.reply)
        if isinstance(reply, WorkerFailure):
            self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
            raise reply.error from WorkerTraceback(reply.traceback)
        return reply

    def _observation(self, number: int) -> Any:
        assert self._steps is not None
        parts = {key: array[number].copy() for key, array in self._steps.observations.items()}
        return dict_to_obs(self.observation_space, parts)

    def _silence_of(self, workers: Sequence["_Worker"]) -> TimeoutError:
        numbers = sorted(number for worker in workers for number in worker.numbers)
        self._shut_down(0.0)
        return TimeoutError(
            f"Environments {numbers} have not answered for {self.timeout:g} seconds, and all were closed: a simulator hangs, "
            f"or no node has room for a worker, which needs {self.resources}. Add nodes, or give a longer timeout."
        )

    def _shut_down(self, seconds: float) -> None:
        if self.closed:
            return
        self.closed = True
        self.waiting = False
        for worker in self._workers:
            worker.reply = None  # what it owes no longer matters
        ray = import_ray()
        if not ray.is_initialized():
            return
        actors = [worker.actor for worker in self._workers if worker.actor is not None]
        if seconds:
            with suppress(ray.exceptions.RayError):
                ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=seconds)
        for actor in actors:
            ray.kill(actor)


@dataclass(eq=False)
class _Worker:
    numbers: list[int]  # of its environments
    actor: Any = None
    reply: Any = None  # a reference to what it owes, with the first part of what is observed
    more: list[Any] = field(default_factory=list)  # the others
    # What it was told last
    command: str = ""
    message: bytes = b""
    share: list[int] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=list)  # of the share, see _parts
    has_stepped: bool = False

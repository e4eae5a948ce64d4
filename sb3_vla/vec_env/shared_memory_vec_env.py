"""A vectorised environment in a few worker processes, whose observations come through shared memory."""

import math
import multiprocessing
import os
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
import gymnasium as gym

from sb3_vla_envs.argument_checks import check_choice, check_count

from ..common.launch import launched_on_machine
from .shared_memory_worker import END, STACK_SIGNAL, SharedSteps, WorkerFailure, run_worker
from .worker_vec_env import SECONDS_TO_CLOSE_AFTER_ERROR, WorkerTraceback, WorkerVecEnv, check_workers

_SECONDS_TO_PRINT = 0.5

# What most often keeps workers from starting
_MAIN_GUARD = (
    "Workers import the script that starts them: what it does, beyond definitions, must stand in an "
    "`if __name__ == '__main__':` block, or each of them would begin to do it again."
)


class SharedMemoryVecEnv(WorkerVecEnv):
    """
    Runs environments in worker processes as SB3's ``SubprocVecEnv`` does, but several in each, and with observations in
    shared memory instead of pickled through pipes. One worker for each CPU starts sooner and steps quicker than a process
    for each environment, above all where environments share what a process holds only once: imported libraries, compiled
    models, an OpenGL context.

    Results don't depend on the number of workers, and are those of ``DummyVecEnv`` for environments that have random numbers
    of their own (``np_random``). Those that use Python's or NumPy's global ones get a stream each, which is not seeded.

    What an environment raises is raised here, with the worker's traceback as its cause. An error in ``reset``, ``step`` or
    ``env_method``, or a dead worker, also closes all environments.

    .. note::

        As for ``SubprocVecEnv``, a script's code must stand in an ``if __name__ == "__main__":`` block.

    :param env_fns: Functions that each build an environment; they are called in the workers
    :param n_workers: Number of worker processes, by default one for each CPU that this process may use, of
        several processes that ``torchrun`` has started its part of them
    :param start_method: How to start them, see ``multiprocessing.get_all_start_methods()``; by default ``"forkserver"``
        where there is such a thing, else ``"spawn"``
    :param probe_steps: With 0 the workers get environments in turn. Otherwise each environment is first built only to take
        so many random steps, and closed: the workers then get about equal cost. For environments that differ in cost and
        don't mind (files, ports, robots) being built twice
    :param timeout: Seconds after which a worker that has not answered is given up, with all others; ``None`` waits for ever
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If there is no environment, or an argument is out of range
    :raises RuntimeError: If a worker dies
    :raises TimeoutError: If one does not answer: its simulator hangs, or the process was stopped
    :raises Exception: What an environment raises
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        start_method: str | None = None,
        probe_steps: int = 0,
        timeout: float | None = 600.0,
    ) -> None:
        if len(env_fns) == 0:
            raise ValueError("There are no environments to run: give at least one function that builds one.")
        check_workers(n_workers, timeout)
        check_count("probe_steps", probe_steps, least=0)
        check_choice("start_method", start_method, (None, *multiprocessing.get_all_start_methods()))
        self.num_envs = len(env_fns)
        self.timeout = timeout
        self.waiting = False
        self.closed = False
        self._workers: list[_Worker] = []
        # Before multiprocessing ends what is left when the interpreter does, by a signal that workers ignore
        self._finalizer = Finalize(self, _end, (self._workers, SECONDS_TO_CLOSE_AFTER_ERROR), exitpriority=1)
        # One by one: environments must not share objects only because they are in one process
        pickled_env_fns = [cloudpickle.dumps(env_fn) for env_fn in env_fns]
        try:
            self._start_workers(min(n_workers or _own_cpus(), self.num_envs), start_method)
            self._worker_of = self._assign([1.0] * self.num_envs)
            everywhere = range(self.num_envs)
            if probe_steps > 0 and 1 < len(self._workers) < self.num_envs:
                self._worker_of = self._assign(self._ask("measure", everywhere, probe_steps, values=pickled_env_fns))
            observation_space, action_space = self._ask("build", everywhere, values=pickled_env_fns)[0]
            self._steps = SharedSteps(self.num_envs, observation_space)
            try:
                self._ask("share", everywhere, self.num_envs, observation_space, self._steps.name)
            finally:
                self._steps.unlink()  # so soon, so that nothing can be left behind
            super().__init__(self.num_envs, observation_space, action_space)
            self.metadata = self.get_attr("metadata", indices=0)[0]  # VecVideoRecorder looks for the pictures a second here
        except BaseException:
            self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
            raise

    @property
    def processes(self) -> list[Any]:
        """The worker processes."""
        return [worker.process for worker in self._workers]

    def _start_workers(self, n_workers: int, start_method: str | None) -> None:
        if start_method is None:
            # Fork is not safe where there are threads (https://github.com/DLR-RM/stable-baselines3/issues/217)
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(start_method)
        inherited: list[connection.Connection] = []
        for _ in range(n_workers):
            remote, work_remote = context.Pipe()
            stack_remote, work_stack_remote = context.Pipe(duplex=False)
            if start_method == "fork":
                # A worker must not hold this side of any pipe, or it would not see this process end. And it needs the
                # tracker of shared memory that is ours: its own would complain of what we unlink.
                inherited.append(remote)
                resource_tracker.ensure_running()
            process = context.Process(target=run_worker, args=(work_remote, work_stack_remote, inherited), daemon=True)
            try:
                process.start()
            except (EOFError, OSError) as error:
                raise RuntimeError(
                    f"Worker {len(self._workers)} of {n_workers} could not be started ({type(error).__name__}: {error}). "
                    f"What starts it may have ended, or the machine may be out of processes or memory. {_MAIN_GUARD}"
                ) from error
            self._workers.append(_Worker(process, remote, stack_remote))
            work_remote.close()  # so that its end is noticed here
            work_stack_remote.close()

    def _assign(self, costs: Sequence[float]) -> list["_Worker"]:
        """The worker of each environment."""
        return [self._workers[number] for number in balance(costs, len(self._workers))]

    def _tell(self, command: str, numbers: Sequence[int], *args: Any, values: Any = None) -> None:
        if self.closed:
            raise RuntimeError(f"Can't do '{command}': this vectorised environment is closed.")
        if any(worker.busy for worker in self._workers):
            raise RuntimeError(f"Can't do '{command}' in the middle of a step: call step_wait() or reset() first.")
        shares = defaultdict(list)
        for number in numbers:
            shares[self._worker_of[number]].append(number)
        for worker, share in shares.items():
            which = share if values is None else {number: values[number] for number in share}
            message = pickle.dumps((command, (which, *args)), pickle.HIGHEST_PROTOCOL)
            try:
                worker.remote.send_bytes(message)
            except OSError:
                raise self._death_of(worker) from None
            worker.busy = True

    def _hear(self, numbers: Sequence[int], closes: bool = True) -> list[Any]:
        replies = {worker: iter(reply) for worker, reply in self._receive(closes).items()}
        return [next(replies[self._worker_of[number]]) for number in numbers]

    def _receive(self, closes: bool = True) -> dict["_Worker", Any]:
        """Wait for the replies of all busy workers, in whatever order they come."""
        replies: dict[_Worker, Any] = {}
        failure: WorkerFailure | None = None
        while busy := {worker.remote: worker for worker in self._workers if worker.busy}:
            ready = connection.wait(busy, self.timeout)
            if not ready:
                error, cause = self._silence_of(list(busy.values()))
                raise error from cause
            for remote in ready:
                worker = busy[remote]  # type: ignore[index]  # of the things that one can wait for, there are only these
                try:
                    message = worker.remote.recv_bytes()
                except (EOFError, OSError):
                    raise self._death_of(worker) from None
                worker.busy = False
                replies[worker] = pickle.loads(message)
                if isinstance(replies[worker], WorkerFailure):
                    failure = failure or replies[worker]
            if failure is not None and closes:
                self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
                break
        if failure is not None:
            raise failure.error from WorkerTraceback(failure.traceback)
        return replies

    def _death_of(self, worker: "_Worker") -> RuntimeError:
        worker.process.join(SECONDS_TO_CLOSE_AFTER_ERROR)  # its pipe is closed: it has ended, or is just about to
        code = worker.process.exitcode or 0
        numbers = self._numbers_of(worker)
        how = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        hint = (
            "If it was killed by signal 9, the machine may be out of memory; if it crashed, PYTHONFAULTHANDLER=1 in the "
            "process's environment shows where."
        )
        if code > 0 and self._steps is None:
            hint = f"It had not built an environment yet. {_MAIN_GUARD}"
        self._shut_down(SECONDS_TO_CLOSE_AFTER_ERROR)
        return RuntimeError(f"The worker process of environments {numbers} {how}. It may have printed why, above. {hint}")

    def _silence_of(self, workers: Sequence["_Worker"]) -> tuple[TimeoutError, WorkerTraceback]:
        stacks = [f"In environments {self._numbers_of(worker)}:\n{worker.stack()}" for worker in workers]
        where = "; ".join(f"{self._numbers_of(worker)} in process {worker.process.pid}" for worker in workers)
        self._shut_down(0.0)
        error = TimeoutError(
            f"Environments {where} have not answered for {self.timeout:g} seconds, and all were closed. Where they hang "
            "stands above, unless the process was stopped. For slow ones give a longer timeout."
        )
        return error, WorkerTraceback("\n".join(stacks))

    def _numbers_of(self, worker: "_Worker") -> list[int]:
        return [number for number, runs_in in enumerate(self._worker_of) if runs_in is worker]

    def _shut_down(self, seconds: float) -> None:
        if self.closed:
            return
        self.closed = True
        self.waiting = False
        self._finalizer.cancel()
        _end(self._workers, seconds)
        if self._steps is not None:
            self._steps.close()


@dataclass(eq=False)
class _Worker:
    process: Any  # the class of processes differs between start methods
    remote: connection.Connection
    stack_remote: connection.Connection
    busy: bool = False  # owes a reply

    def stack(self) -> str:
        """:return: Where it is, unless the process was stopped"""
        if STACK_SIGNAL is None:
            return ""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, STACK_SIGNAL)
        time.sleep(_SECONDS_TO_PRINT)
        # Python's fault handler writes bytes, not messages
        return os.read(self.stack_remote.fileno(), 1 << 16).decode() if self.stack_remote.poll() else ""


def _end(workers: Sequence[_Worker], seconds: float) -> None:
    """
    :param workers: Those to end
    :param seconds: What they may take to close their environments
    """
    for worker in workers:
        worker.busy = False  # what it owes no longer matters
        with suppress(OSError):  # it may be dead
            worker.remote.send_bytes(END)
        worker.remote.close()  # so that it is not held up by a reply that nobody reads
        worker.stack_remote.close()
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(1.0)


def balance(costs: Sequence[float], n_workers: int) -> list[int]:
    """
    Deal out work, the most costly piece first, always to the worker who has the least and room for more.

    :param costs: Of the pieces
    :param n_workers: Number of workers
    :return: Number of the worker of each piece; equal pieces are dealt in turn, and no worker gets more than
        ``ceil(len(costs) / n_workers)``
    """
    room = math.ceil(len(costs) / n_workers)
    shares: list[list[float]] = [[] for _ in range(n_workers)]
    workers = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        workers[piece] = min(
            (worker for worker in range(n_workers) if len(shares[worker]) < room),
            key=lambda worker: (sum(shares[worker]), len(shares[worker])),
        )
        shares[workers[piece]].append(costs[piece])
    return workers


def _own_cpus() -> int:
    """:return: CPUs that this process may use, of several that train one model its part of them"""
    # In a container they are fewer than the machine has
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_cpus // launched_on_machine())

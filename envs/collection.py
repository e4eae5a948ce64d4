"""Demonstrations from the expert of a suite."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .argument_checks import Limits, check_count
from .demonstrations import Demonstration
from .progress import Progress
from .suite import Suite, find_suite
from .wrappers.episode_progress import EpisodeProgress

# A task is given up once it has had this many attempts and fewer than one in ten succeeded.
_MIN_ATTEMPTS = 20
_MIN_SUCCESS_RATE = 0.1


class Attempt(NamedTuple):
    """One episode to try: which task, and the how-manieth attempt at it."""

    task: str
    number: int


class Noise(NamedTuple):
    """Disturbance of executed actions: standard deviation and correlation, see :func:`collect_demonstrations`."""

    deviation: float
    correlation: float


Attempts = Callable[[Iterable[Attempt]], Iterator[Demonstration]]


def collect_demonstrations(
    tasks: str | Sequence[str],
    n_per_task: int,
    *,
    action_noise: float = 0.1,
    noise_correlation: float = 0.0,
    every_step: bool = False,
    seed: int = 0,
    n_workers: int = 1,
    progress: bool = True,
    suite: str | Suite | None = None,
    **settings: Any,
) -> list[Demonstration]:
    """
    Let a suite's experts act, and keep the episodes that succeed, up to their success.

    Gaussian noise disturbs the executed actions, while the actions to imitate are the expert's own, within the bounds of the
    action space: so the policy learns how to recover from its own small errors (DART, Laskey et al. 2017). The observations
    are exactly those of :func:`make_vla_env` with the same arguments.

    The result depends on the arguments, but not on ``n_workers``. With more than one worker, a script must guard its main
    part by ``if __name__ == "__main__":``, since workers import it.

    :param tasks: Task, group, comma-separated names or a sequence of them
    :param n_per_task: How many successful episodes of each task
    :param action_noise: Standard deviation of the noise on each executed action, as a part of half the range that the action
        space gives it (of 1 where that is infinite)
    :param noise_correlation: Correlation of the noise of successive steps, in [0, 1): near 1 it pushes the expert off its way
        instead of shaking it
    :param every_step: Observe before every primitive step, and not only before every chunk: demonstrations of single steps,
        from which a policy learns chunks of any size that begin at each of them (:meth:`Demonstration.chunk`)
    :param seed: Seeds goals and noise
    :param n_workers: Number of processes; 1 works in this one
    :param progress: Whether to show a progress bar
    :param suite: The suite of tasks or its name; by default the one that has these
    :param settings: Further arguments of :func:`make_vla_env`
    :return: ``n_per_task`` demonstrations of each task, task by task
    :raises TypeError: If an argument is unknown or of another type
    :raises ValueError: If an argument is out of range, or there is no expert for a task
    :raises ExpertFailure: If an expert hardly ever succeeds; it holds what was collected
    :raises RuntimeError: If a worker process dies
    """
    found = find_suite(tasks, suite)
    names = found.resolve_tasks(tasks)
    check_count("n_per_task", n_per_task)
    check_count("n_workers", n_workers)
    check_count("seed", seed, least=0)
    Limits(at_least=0).check("action_noise", action_noise)
    Limits(at_least=0, below=1).check("noise_correlation", noise_correlation)
    if every_step:
        settings = {**settings, "chunk_size": 1, "n_action_steps": None}
    without_expert = [name for name in names if not found.has_expert(name)]
    if without_expert:
        raise ValueError(
            f"The suite {found.name!r} has no expert for {', '.join(without_expert)}: leave it out, or make demonstrations "
            "in another way (sb3_vla_envs.Demonstration)"
        )
    found.split_settings(settings)
    # By name, as a worker finds it; a suite that is not registered goes there itself
    noise = Noise(float(action_noise), float(noise_correlation))
    build = (suite if isinstance(suite, Suite) else found.address, names, noise, seed, settings)
    with (
        _attempts(build, n_workers) as attempt,
        Progress(len(names) * n_per_task, "expert demonstrations", "episode", progress) as bar,
    ):
        trials = _keep_successes(names, n_per_task, attempt, bar)
    demonstrations = [demo for trial in trials.values() for demo in trial.kept]
    if failed := [f"{name} in only {len(trial.kept)} of {trial.tried}" for name, trial in trials.items() if trial.is_hopeless]:
        raise ExpertFailure(
            f"Experts succeeded too rarely, that of {', of '.join(failed)} attempts: lower action_noise, raise horizon, or "
            "leave these tasks out",
            demonstrations,
        )
    return demonstrations


class ExpertFailure(RuntimeError):
    """
    An expert hardly ever succeeds.

    :param message: Which one
    :param demonstrations: What was collected: all of the other tasks, and what there is of its own
    """

    def __init__(self, message: str, demonstrations: list[Demonstration]) -> None:
        super().__init__(message)
        self.demonstrations = demonstrations


@dataclass
class _Trials:
    """The attempts at a task."""

    kept: list[Demonstration] = field(default_factory=list)
    tried: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether the task is given up."""
        return self.tried >= _MIN_ATTEMPTS and len(self.kept) < _MIN_SUCCESS_RATE * self.tried


def _round_size(n_per_task: int, trial: _Trials) -> int:
    missing = n_per_task - len(trial.kept)
    # Not all of them before anyone knows whether the expert can do it
    return min(missing, _MIN_ATTEMPTS - trial.tried) if trial.tried < _MIN_ATTEMPTS else missing


def _keep_successes(names: Sequence[str], n_per_task: int, attempt: Attempts, bar: Progress) -> dict[str, _Trials]:
    """
    Try in rounds, each of which makes as many attempts at a task as it still lacks successes.

    Thus the attempts kept are the first that succeed, whatever process made them and however many there are.
    """
    trials = {name: _Trials() for name in names}
    n_steps = []
    while todo := [
        Attempt(name, trial.tried + i)
        for name, trial in trials.items()
        if not trial.is_hopeless
        for i in range(_round_size(n_per_task, trial))
    ]:
        for demo in attempt(todo):
            trial = trials[demo.task]
            if trial.is_hopeless:  # what was asked for before that showed
                continue
            trial.tried += 1
            if demo.success:
                trial.kept.append(demo)
                n_steps.append(demo.n_steps)
            tried = sum(each.tried for each in trials.values())
            steps = sum(n_steps) / len(n_steps) if n_steps else None
            bar.update(int(demo.success), success=len(n_steps) / tried, steps=steps)
    return trials


class ExpertActions(gym.Wrapper):
    """
    Ignores the actions it is given and takes the expert's with noise, inside the chunks: whatever is wrapped around it
    sees exactly what a policy acting like that would see.

    :param env: A :class:`MultiTaskEnv`, wrapped or not
    :param suite: Its suite
    :param noise: What disturbs the executed actions
    :raises TypeError: If its actions are no vectors
    """

    def __init__(self, env: gym.Env, suite: Suite, noise: Noise) -> None:
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box):
            raise TypeError(f"Demonstrations are of actions in a Box, the suite {suite.name!r} has {env.action_space}")
        self.suite = suite
        self.low, self.high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
        half_range = self.high / 2 - self.low / 2
        self.deviation = noise.deviation * np.where(np.isfinite(half_range), half_range, 1.0)
        self.correlation = noise.correlation
        self.begin(np.random.default_rng())

    def begin(self, rng: np.random.Generator) -> None:
        """
        Begin an episode.

        :param rng: Source of the noise
        """
        self.rng = rng
        self.taken: list[NDArray[Any]] = []
        self._noise: NDArray[Any] | None = None

    def step(self, action: Any) -> Any:
        """
        Take the expert's step.

        :param action: Ignored
        :return: What the environment returns
        """
        clean = self.suite.expert_action(self.env)
        self.taken.append(clean)
        fresh = self.rng.standard_normal(clean.shape)
        if self._noise is None:
            self._noise = fresh
        else:  # first-order autoregressive, of the same variance at each step
            self._noise = self.correlation * self._noise + (1 - self.correlation**2) ** 0.5 * fresh
        noisy = clean + self._noise * self.deviation
        return self.env.step(np.clip(noisy, self.low, self.high).astype(clean.dtype))


class ExpertRunner:
    """
    Makes attempts, in one process.

    :param suite: The suite or its name
    :param tasks: The tasks it may be asked for
    :param noise: What disturbs the executed actions
    :param seed: Seeds goals and noise
    :param settings: Of simulation and wrapping
    """

    def __init__(self, suite: str | Suite, tasks: Sequence[str], noise: Noise, seed: int, settings: dict[str, Any]) -> None:
        found = find_suite(tasks, suite)
        simulation, wrapping = found.split_settings(settings)
        self.seed = seed
        self.goals_in_order = simulation.get("goal_order") == "sequential"
        self.expert = ExpertActions(found.make_simulation(tasks, **simulation), found, noise)
        self.env = found.wrap(self.expert, **wrapping)

    def __call__(self, attempt: Attempt) -> Demonstration:
        """
        Play one episode, up to its success where it has one.

        :param attempt: Which one
        :return: The episode, successful or not
        """
        # Everything random in the episode follows from these numbers, not from what this process did before.
        entropy = np.random.SeedSequence([self.seed, zlib.crc32(attempt.task.encode()), attempt.number])
        self.expert.begin(np.random.default_rng(entropy))
        options: dict[str, Any] = {"task": attempt.task}
        if self.goals_in_order:  # which each seed would begin anew
            options["goal_index"] = attempt.number % self.expert.get_wrapper_attr("n_goals")
        observation, _ = self.env.reset(seed=int(entropy.generate_state(1)[0]), options=options)
        observations, actions, lengths, rewards = [], [], [], []
        nothing = np.zeros(self.env.action_space.shape or (), dtype=np.float32)
        progress = EpisodeProgress()
        done = False
        while not done:
            # An environment may go on writing into the same arrays
            observations.append({key: np.array(part) for key, part in observation.items()})
            self.expert.taken.clear()
            before = progress.steps
            observation, reward, terminated, truncated, info = self.env.step(nothing)
            progress.add(info)
            # Success ends a demonstration, in mid-chunk too, even where it does not end the episode
            executed = (progress.steps if progress.steps_to_success is None else progress.steps_to_success) - before
            chunk = nothing.copy()
            chunk[:executed] = self.expert.taken[:executed]
            actions.append(chunk)
            lengths.append(executed)
            rewards.append(reward)
            done = bool(progress.success) or terminated or truncated
        return Demonstration(
            task=attempt.task,
            observations={key: np.stack([seen[key] for seen in observations]) for key in observations[0]},
            actions=np.stack(actions),
            chunk_lengths=np.array(lengths, dtype=np.int64),
            success=bool(progress.success),
            rewards=np.array(rewards, dtype=np.float32),
        )


@contextmanager
def _attempts(build: tuple[Any, ...], n_workers: int) -> Iterator[Attempts]:
    """Something that makes attempts and gives the episodes in the order asked for, here or in several processes."""
    if n_workers == 1:
        runner = ExpertRunner(*build)
        try:
            yield lambda todo: map(runner, todo)
        finally:
            runner.env.close()
        return
    # Not forked from this process: an OpenGL context does not survive that. From a fork server, where the platform has one,
    # which spares workers the import of what the application lets it preload (multiprocessing.set_forkserver_preload).
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    try:
        ForkingPickler.dumps(build)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the suite or a setting can't be sent to the processes of n_workers={n_workers} ({error}): use functions with a "
            "name, in a module that they can import, or n_workers=1"
        ) from error
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker, initargs=build)
    try:
        yield lambda todo: pool.map(_attempt_in_worker, todo)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process that collects demonstrations died. Its own message is above, if it had time for one; perhaps "
            "it ran out of memory (use fewer n_workers), or the script lacks `if __name__ == '__main__':`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a worker process keeps between attempts."""

    build: tuple[Any, ...]
    runner: ExpertRunner | None = None


def _start_worker(*build: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which waits for the episodes under way
    _Worker.build = build


def _attempt_in_worker(attempt: Attempt) -> Demonstration:
    # Built here, not when the process starts: an error (an unknown camera, say) then reaches the caller as it is.
    if _Worker.runner is None:
        _Worker.runner = ExpertRunner(*_Worker.build)
    return _Worker.runner(attempt)

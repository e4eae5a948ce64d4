"""The buffer of good episodes that behaviour cloning imitates."""

import os
from collections.abc import Collection, Iterable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration, load_demonstrations, save_demonstrations

from .demonstration_set import DemonstrationSamples, DemonstrationSet
from .feature_cache import FeatureCache


class DemonstrationBuffer:
    """
    Keeps the best successful episodes of each task and samples observation-chunk pairs from them.

    An episode is better the fewer primitive steps it took. While a task has room its successful episodes are admitted;
    after that an episode must be shorter than the longest one that the task holds, and takes its place. Each task has the
    same quota, and a batch is drawn uniformly over tasks first, so that easy tasks don't crowd out hard ones.

    :param observation_space: Observations that the model reads
    :param action_space: Action space of the model
    :param episodes_per_task: Quota of each task
    :param device: Where samples go
    :param seed: Seed of the sampling, which is independent of NumPy's global state (so that a run with behaviour cloning
        off draws the same mini-batches as SB3's PPO)
    :raises ValueError: If ``episodes_per_task`` is not positive
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        episodes_per_task: int = 100,
        device: th.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        if episodes_per_task < 1:
            raise ValueError(f"episodes_per_task must be at least 1, got {episodes_per_task}")
        self.episodes_per_task = episodes_per_task
        self.device = device
        self.rng = np.random.default_rng(seed)
        # Best (shortest) first
        self._held = DemonstrationSet(observation_space, action_space)
        self._index: dict[str, np.ndarray] = {}

    @property
    def episodes(self) -> dict[str, list[Demonstration]]:
        """The episodes of each task, the best first."""
        return self._held.episodes

    def __len__(self) -> int:
        """Number of observation-chunk pairs."""
        return len(self._held)

    def __repr__(self) -> str:
        held = ", ".join(f"{task!r}: {len(demos)}" for task, demos in self.episodes.items())
        return f"DemonstrationBuffer({{{held}}}, episodes_per_task={self.episodes_per_task})"

    def add(self, demonstration: Demonstration) -> bool:
        """
        Offer an episode.

        :param demonstration: The episode, see :meth:`DemonstrationSet.match`
        :return: Whether it was admitted
        :raises ValueError: If an observation key is missing, or a shape is not that of the model's spaces
        """
        return self.admit(demonstration) is not None

    def admit(self, demonstration: Demonstration) -> Demonstration | None:
        """
        Like :meth:`add`, for whoever wants to know the episode that is held now.

        :param demonstration: The episode
        :return: The episode with the observations that the model reads, ``None`` if it was not admitted
        :raises ValueError: If an observation key is missing, or a shape is not that of the model's spaces
        """
        if not demonstration.success:
            return None
        demonstration = self._held.match(demonstration)
        if not self.admits(demonstration.task, demonstration.n_steps):
            return None
        held = self.episodes.setdefault(demonstration.task, [])
        if len(held) >= self.episodes_per_task:
            held.pop()
        held.append(demonstration)
        held.sort(key=lambda demo: demo.n_steps)
        self._index[demonstration.task] = np.array([(i, t) for i, demo in enumerate(held) for t in range(len(demo))])
        return demonstration

    def admits(self, task: str, n_steps: int) -> bool:
        """
        :param task: Name of a task
        :param n_steps: Primitive steps of a successful episode
        :return: Whether it would be admitted
        """
        held = self.episodes.get(task, [])
        return len(held) < self.episodes_per_task or n_steps < held[-1].n_steps

    def extend(self, demonstrations: Iterable[Demonstration]) -> int:
        """
        Offer episodes, e.g. those of an expert.

        :param demonstrations: The episodes
        :return: How many were admitted
        """
        return sum(self.add(demonstration) for demonstration in demonstrations)

    def sample(
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        cache: FeatureCache | None = None,
        host_keys: Collection[str] = (),
    ) -> DemonstrationSamples:
        """
        Draw pairs, uniformly over the tasks and then over the pairs of a task.

        :param batch_size: Number of pairs
        :param env: Normalises the observations, which the buffer holds as they were
        :param cache: What a policy's frozen parts make of an observation comes in place of what they read (without ``env``
            only)
        :param host_keys: Observations of a dictionary that stay on the CPU, see :class:`PolicyAdapter`
        :return: The batch, on the buffer's device
        :raises ValueError: If the buffer is empty
        """
        tasks = [task for task, held in self.episodes.items() if held]
        if not tasks:
            raise ValueError("the demonstration buffer is empty: add demonstrations, or wait for a success")
        pairs = []
        for task in self.rng.integers(len(tasks), size=batch_size):
            index = self._index[tasks[task]]
            episode, step = index[self.rng.integers(len(index))]
            pairs.append((self.episodes[tasks[task]][episode], step))
        return self._held.batch(pairs, self.device, env, cache, host_keys)

    def summary(self) -> dict[str, dict[str, float]]:
        """
        :return: For each task the number of episodes and the mean, smallest and largest number of primitive steps
        """
        result = {}
        for task, held in sorted(self.episodes.items()):
            if held:
                steps = [demo.n_steps for demo in held]
                result[task] = {
                    "episodes": len(held),
                    "mean_steps": float(np.mean(steps)),
                    "min_steps": min(steps),
                    "max_steps": max(steps),
                }
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the episodes to a file in the format of :func:`sb3_vla_envs.save_demonstrations` (no pickle).

        :param path: Where to write
        """
        save_demonstrations(path, [demo for held in self.episodes.values() for demo in held])

    def load(self, path: str | os.PathLike[str]) -> None:
        """
        Replace the episodes by those of a file.

        :param path: What :meth:`save` wrote
        :raises ValueError: If the file is truncated, of another format, or does not fit the spaces
        """
        loaded = DemonstrationBuffer(self._held.observation_space, self._held.action_space, self.episodes_per_task)
        loaded.extend(load_demonstrations(path))
        self._held, self._index = loaded._held, loaded._index

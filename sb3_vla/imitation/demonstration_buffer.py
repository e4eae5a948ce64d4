"""The buffer of good episodes that behaviour cloning imitates."""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration, load_demonstrations, save_demonstrations

from ..common.device_transfer import observations_to_device, to_device
from ..policies.vla_policy import VLAPolicy

# Demonstrations hold dictionaries; an array observation goes by this key
ARRAY_KEY = "observation"


class DemonstrationSamples(NamedTuple):
    """A batch of observation-chunk pairs; ``chunk_lengths`` ``(batch,)`` tells how many steps of each chunk count."""

    observations: PyTorchObs
    actions: th.Tensor
    chunk_lengths: th.Tensor


# Observations that a policy's frozen parts look at together
_MAX_ENCODED = 64
# An episode and the number of a chunk in it
_Pair = tuple[Demonstration, int]


class DemonstrationBuffer:
    """
    Keeps the best successful episodes of each task and samples observation-chunk pairs from them.

    An episode is better the fewer primitive steps it took. While a task has room its successful episodes are admitted;
    after that an episode must be shorter than the longest one that the task holds, and takes its place. Each task has the
    same quota, and a batch is drawn uniformly over tasks first, so that easy tasks don't crowd out hard ones.

    :param observation_space: Observation space of the model
    :param action_space: Action space of the model
    :param episodes_per_task: Quota of each task
    :param device: Where samples go
    :param seed: Seed of the sampling, which is independent of NumPy's global state (so that a run with behaviour cloning
        off draws the same mini-batches as SB3's PPO)
    :raises ValueError: if ``episodes_per_task`` is not positive
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
        self.observation_space = observation_space
        self.action_space = action_space
        self.episodes_per_task = episodes_per_task
        self.device = device
        self.rng = np.random.default_rng(seed)
        # Best (shortest) first
        self.episodes: dict[str, list[Demonstration]] = {}
        self._index: dict[str, np.ndarray] = {}
        # What a policy's frozen parts made of an episode, with it, by its id: that of a copy is another's
        self._precomputed: dict[int, tuple[Demonstration, dict[str, th.Tensor]]] = {}
        self._frozen_version: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """Number of observation-chunk pairs."""
        return sum(len(demo) for demos in self.episodes.values() for demo in demos)

    def __repr__(self) -> str:
        held = ", ".join(f"{task!r}: {len(demos)}" for task, demos in self.episodes.items())
        return f"DemonstrationBuffer({{{held}}}, episodes_per_task={self.episodes_per_task})"

    def add(self, demonstration: Demonstration, precomputed: dict[str, th.Tensor] | None = None) -> bool:
        """
        Offer an episode.

        :param demonstration: The episode; its observations may have channels last or first
        :param precomputed: What :meth:`VLAPolicy.precompute` made of its observations, ``(T, ...)`` by key, if that is known
        :return: Whether it was admitted
        :raises ValueError: if an observation key is missing, or a shape is not that of the model's spaces
        """
        if not demonstration.success:
            return False
        demonstration = self._match_spaces(demonstration)
        if not self.admits(demonstration.task, demonstration.n_steps):
            return False
        held = self.episodes.setdefault(demonstration.task, [])
        if len(held) >= self.episodes_per_task:
            self._precomputed.pop(id(held.pop()), None)
        held.append(demonstration)
        if precomputed:
            self._precomputed[id(demonstration)] = demonstration, precomputed
        held.sort(key=lambda demo: demo.n_steps)
        self._index[demonstration.task] = np.array([(i, t) for i, demo in enumerate(held) for t in range(len(demo))])
        return True

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
        self, batch_size: int, env: VecNormalize | None = None, policy: VLAPolicy | None = None
    ) -> DemonstrationSamples:
        """
        Draw pairs, uniformly over the tasks and then over the pairs of a task.

        :param batch_size: Number of pairs
        :param env: Normalises the observations, which the buffer holds as they were
        :param policy: What its frozen parts make of an observation comes in place of what they read, is computed once and kept
            on the policy's device (without ``env`` only)
        :return: The batch, on the buffer's device
        :raises ValueError: if the buffer is empty
        """
        tasks = [task for task, held in self.episodes.items() if held]
        if not tasks:
            raise ValueError("the demonstration buffer is empty: add demonstrations, or wait for a success")
        pairs = []
        for task in self.rng.integers(len(tasks), size=batch_size):
            index = self._index[tasks[task]]
            episode, step = index[self.rng.integers(len(index))]
            pairs.append((self.episodes[tasks[task]][episode], step))
        return DemonstrationSamples(
            # VecNormalize's statistics go on changing, and with them what could be computed once
            observations=self._observations(pairs, env) if policy is None or env else self._precomputed_at(pairs, policy),
            # float32 as in SB3's buffers: log-probabilities of MultiBinary actions need it
            actions=th.as_tensor(np.stack([demo.actions[step] for demo, step in pairs]), dtype=th.float32, device=self.device),
            chunk_lengths=th.as_tensor([demo.chunk_lengths[step] for demo, step in pairs], device=self.device),
        )

    def _observations(
        self, pairs: Sequence[_Pair], env: VecNormalize | None = None, keys: Sequence[str] | None = None
    ) -> PyTorchObs:
        """
        :param pairs: Episode and chunk of each sample
        :param env: Normalises the observations
        :param keys: Only these, by default all
        :return: Observations of the samples
        """
        keys = list(self._observation_spaces()) if keys is None else keys
        stacked = {key: np.stack([demo.observations[key][step] for demo, step in pairs]) for key in keys}
        observations: Any = stacked if isinstance(self.observation_space, spaces.Dict) else stacked[ARRAY_KEY]
        if env is not None:
            observations = env.normalize_obs(observations)
        if isinstance(observations, dict):
            return observations_to_device(observations, self.device)
        return to_device(observations, self.device)

    def _precomputed_at(self, pairs: Sequence[_Pair], policy: VLAPolicy) -> dict[str, th.Tensor]:
        """
        :param pairs: Episode and chunk of each sample
        :param policy: Its frozen parts look at every episode that they have not seen
        :return: Observations of the samples that the policy still reads, and what its frozen parts made of the others
        """
        self.forget_outdated(policy)
        known = [(self._known(demo, policy), step) for demo, step in pairs]
        precomputed = {key: th.stack([tensors[key][step] for tensors, step in known]) for key in known[0][0]}
        return {**self._observations(pairs, keys=policy.stored_keys), **precomputed}  # type: ignore[dict-item]

    def _known(self, demo: Demonstration, policy: VLAPolicy) -> dict[str, th.Tensor]:
        """
        :param demo: An episode
        :param policy: Its frozen parts look at the episode, unless they have seen it
        :return: What they made of it, ``(T, ...)`` by key
        """
        seen, precomputed = self._precomputed.get(id(demo), (None, {}))
        if seen is not demo:
            pieces = []
            for start in range(0, len(demo), _MAX_ENCODED):
                observations = {key: value[start : start + _MAX_ENCODED] for key, value in demo.observations.items()}
                pieces.append(policy.precompute(observations_to_device(observations, self.device)))
            precomputed = {key: th.cat([piece[key] for piece in pieces]) for key in pieces[0]}
            self._precomputed[id(demo)] = demo, precomputed
        return precomputed

    def forget_outdated(self, policy: VLAPolicy) -> None:
        """
        Forget what a policy's frozen parts computed before their weights were replaced.

        :param policy: The policy
        """
        if (version := policy.frozen_version()) != self._frozen_version:
            self._precomputed.clear()
            self._frozen_version = version

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
        demonstrations = [demo for held in self.episodes.values() for demo in held]
        # A checkpoint may come before the first success, and the format holds at least one episode
        save_demonstrations(path, demonstrations or [self._empty_failure()])

    def load(self, path: str | os.PathLike[str]) -> None:
        """
        Replace the episodes by those of a file.

        :param path: What :meth:`save` wrote
        :raises ValueError: if the file is truncated, of another format, or does not fit the spaces
        """
        loaded = copy.copy(self)
        loaded.episodes, loaded._index, loaded._precomputed = {}, {}, {}
        loaded.extend(load_demonstrations(path))
        self.episodes, self._index, self._precomputed = loaded.episodes, loaded._index, loaded._precomputed

    def _empty_failure(self) -> Demonstration:
        """
        :return: An episode without pairs, which :meth:`add` refuses: what an empty buffer writes
        """
        return Demonstration(
            task="",
            observations={
                key: np.zeros((0, *(space.shape or ())), space.dtype) for key, space in self._observation_spaces().items()
            },
            actions=np.zeros((0, *(self.action_space.shape or ())), np.float32),
            chunk_lengths=np.zeros(0, np.int64),
            success=False,
        )

    def _observation_spaces(self) -> dict[str, spaces.Space]:
        if isinstance(self.observation_space, spaces.Dict):
            return dict(self.observation_space.spaces)
        return {ARRAY_KEY: self.observation_space}

    def _match_spaces(self, demonstration: Demonstration) -> Demonstration:
        """
        :param demonstration: An episode as an environment or a model sees it
        :return: The episode with the observations that the model's space asks for
        :raises ValueError: if one is missing or has another shape
        """
        wanted = self._observation_spaces()
        missing = set(wanted) - set(demonstration.observations)
        if missing:
            raise ValueError(
                f"a demonstration of task {demonstration.task!r} lacks the observations {sorted(missing)} (it has "
                f"{sorted(demonstration.observations)}): collect it with the cameras and options of this environment"
            )
        observations = {key: _match_space(key, demonstration.observations[key], space) for key, space in wanted.items()}
        actions = demonstration.actions
        if self.action_space.shape is not None and actions.shape[1:] != self.action_space.shape:
            raise ValueError(
                f"a demonstration of task {demonstration.task!r} has actions of shape {actions.shape[1:]}, the model "
                f"{self.action_space.shape}: collect demonstrations with the same chunk_size"
            )
        return Demonstration(
            task=demonstration.task,
            observations=observations,
            actions=actions,
            chunk_lengths=demonstration.chunk_lengths,
            success=demonstration.success,
        )


def _match_space(key: str, values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param key: Name of the observation, for the error message
    :param values: ``(T, ...)``
    :param space: What the model wants
    :return: ``(T, *space.shape)``; images are transposed where the model has channels first (SB3 wraps environments in
        ``VecTransposeImage``)
    :raises ValueError: if the shapes disagree
    """
    if is_image_space(space):
        values = maybe_transpose(values, space)
    if values.shape[1:] != space.shape:
        raise ValueError(
            f"a demonstration's {key!r} has the shape {values.shape[1:]}, the model's is {space.shape}: "
            "collect demonstrations with the tasks (or task_ids), cameras and options of this environment"
        )
    return values

"""The observation-chunk pairs that supervised fine-tuning learns from: which they are, and batches of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration

from ..policies.adapter import PolicyAdapter
from .auxiliary_target import Targets
from .demonstration_set import DemonstrationSamples, DemonstrationSet, Pair


@dataclass
class Pairs:
    """
    Observation-chunk pairs of some episodes.

    :param demonstrations: The set that makes batches of them
    :param episodes: The episodes
    :param adapter: Of the policy that learns them
    :param normalizer: What normalises their observations
    :param targets: What is to be predicted beside the action, if anything
    """

    demonstrations: DemonstrationSet
    episodes: list[Demonstration]
    adapter: PolicyAdapter
    normalizer: VecNormalize | None
    targets: Targets | None = None

    def __post_init__(self) -> None:
        self.pairs: list[Pair] = [(demo, step) for demo in self.episodes for step in range(len(demo))]

    def batches(self, order: np.ndarray, batch_size: int) -> Iterator[tuple[DemonstrationSamples, Targets | None]]:
        """
        :param order: Numbers of pairs
        :param batch_size: Pairs in a batch
        :return: Iterator over batches, and what is to be predicted in each
        """
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            chosen, device = [self.pairs[i] for i in index], self.adapter.policy.device
            batch = self.demonstrations.batch(chosen, device, self.normalizer, host_keys=self.adapter.host_keys)
            yield batch, None if self.targets is None else self.targets.at(index, device)

    def draw(self, batch_size: int, generator: th.Generator) -> tuple[DemonstrationSamples, Targets]:
        """
        :param batch_size: Pairs in a batch
        :param generator: Source of randomness
        :return: A batch, and what is to be predicted in it
        """
        index = th.randint(len(self.pairs), (batch_size,), generator=generator).numpy()
        ((batch, targets),) = self.batches(index, batch_size)
        assert targets is not None
        return batch, targets

    def numbers(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """All observations of some low-dimensional keys, before normalisation."""
        return {key: np.concatenate([demo.observations[key] for demo in self.episodes]) for key in keys}


def split_episodes(
    adapter: PolicyAdapter,
    demonstrations: Sequence[Demonstration],
    targets: Mapping[str, Sequence[int] | None],
    held_out_fraction: float,
    rng: np.random.Generator,
    normalizer: VecNormalize | None,
) -> tuple[Pairs, Pairs]:
    """
    :param adapter: Its policy's spaces are what the demonstrations must fit
    :param demonstrations: Episodes of any number of tasks
    :param targets: Numbers to predict among their observations, which need not be those that the policy reads
    :param held_out_fraction: Part of each task's episodes
    :param rng: Source of randomness
    :param normalizer: What normalises their observations
    :return: Training and held-out pairs
    :raises ValueError: If a task has fewer than two successful episodes
    """
    space = _space_in(demonstrations, adapter)
    matched = DemonstrationSet(space, adapter.policy.action_space, demonstrations, extra_keys=targets)
    if not matched.episodes:
        what = f"successful ones among the {len(demonstrations)} demonstrations" if demonstrations else "demonstrations"
        raise ValueError(
            f"there are no {what}: collect some with sb3_vla_envs.collect_demonstrations, or tell of those "
            "that succeeded by success=True"
        )
    train, held_out = [], []
    for task, episodes in matched.episodes.items():
        if len(episodes) < 2:
            raise ValueError(f"task {task!r} has one successful demonstration: give two or more, one is held out")
        # The shortest first, so that the split does not depend on the order in which they come
        episodes = sorted(episodes, key=lambda demo: demo.n_steps)
        order = rng.permutation(len(episodes))
        n_held_out = min(max(1, round(held_out_fraction * len(episodes))), len(episodes) - 1)
        held_out += [episodes[i] for i in order[:n_held_out]]
        train += [episodes[i] for i in order[n_held_out:]]
    return Pairs(matched, train, adapter, normalizer), Pairs(matched, held_out, adapter, normalizer)


def other_pairs(
    adapter: PolicyAdapter,
    episodes: Sequence[Demonstration],
    targets: Mapping[str, Sequence[int] | None],
    normalizer: VecNormalize | None,
) -> Pairs:
    """
    :param adapter: Its policy's spaces are what the episodes must fit
    :param episodes: Episodes of which only the observations count
    :param targets: Numbers to predict among their observations
    :param normalizer: What normalises their observations
    :return: Their pairs
    :raises ValueError: If there are episodes, but no targets
    """
    if episodes and not targets:
        raise ValueError("auxiliary_episodes teach auxiliary_targets: name some, e.g. {'privileged': [4, 5, 6]}")
    matched = DemonstrationSet(_space_in(episodes, adapter), adapter.policy.action_space, extra_keys=targets)
    return Pairs(matched, [matched.match(episode) for episode in episodes], adapter, normalizer)


def _space_in(episodes: Sequence[Demonstration], adapter: PolicyAdapter) -> spaces.Dict:
    """
    :param episodes: Episodes
    :param adapter: Of the policy
    :return: The observations that it reads, without those of the critic alone that an episode lacks
    """
    space = adapter.read_space
    assert isinstance(space, spaces.Dict)
    lacking = [key for key in adapter.critic_keys or () if any(key not in episode.observations for episode in episodes)]
    return spaces.Dict({key: each for key, each in space.items() if key not in lacking})

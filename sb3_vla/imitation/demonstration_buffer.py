"""The buffer of good episodes that behaviour cloning imitates."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration, load_demonstrations, save_demonstrations
from sb3_vla_envs.argument_checks import FRACTION, SEED, check_choice, check_count

from ..policies.encoded import PolicyInput
from .demonstration_set import DemonstrationSamples, DemonstrationSet, Pair, as_episodes, warn_of_units
from .feature_cache import FeatureCache

# By which a buffer prefers episodes
RULES = ("advantage", "shortest")

# That are held until the critic says which episodes are good: it may have to learn for long first, and pictures are large
_MOST_QUOTAS = 10

#: Gives values ``(batch, 1)`` of observations
Critic = Callable[[PolicyInput], th.Tensor]


class _Lots:
    """
    What the pairs of a task are drawn from.

    :param episodes: Its episodes
    :param probabilities: Of each pair, one episode after the other; by default all alike
    """

    def __init__(self, episodes: Sequence[Demonstration], probabilities: np.ndarray | None = None) -> None:
        self.pairs: list[Pair] = [(demo, t) for demo in episodes for t in range(len(demo))]
        self.probabilities = probabilities

    def draw(self, rng: np.random.Generator) -> Pair:
        """
        :param rng: Source of randomness
        :return: One of the pairs
        """
        n = len(self.pairs)
        return self.pairs[rng.integers(n) if self.probabilities is None else rng.choice(n, p=self.probabilities)]


class DemonstrationBuffer:
    """
    Keeps the best successful episodes of each task and samples observation-chunk pairs from them.

    By the rule ``"advantage"`` an episode is better the more its return exceeds what the critic now expects from its first
    observation, and one that does not exceed it is dropped; of its pairs those are drawn whose own return exceeds their value,
    in proportion to by how much (self-imitation learning, Oh et al. 2018, arXiv 1806.05635). So a far goal counts as much as a
    near one, and what the policy has learned to do anyway is not imitated any more. The critic gives its opinion in
    :meth:`rate`, before each update of the policy but those that come before the critic has learned; until then all episodes
    are kept, ten times the quota at most, and drawn alike. Episodes are kept up to their success, so this is for rewards that
    end there, as a sparse one does.

    By the rule ``"shortest"`` an episode is better the fewer primitive steps it took, whatever its goal and rewards, and pairs
    are drawn uniformly.

    Each task has the same quota, and a batch is drawn uniformly over tasks first, so that easy tasks don't crowd out hard
    ones.

    :param observation_space: Observations that the model reads
    :param action_space: Action space of the model
    :param episodes_per_task: Quota of each task; by the rule ``"advantage"`` there may be up to ten times as many until
        the next :meth:`rate`
    :param rule: ``"advantage"`` or ``"shortest"``
    :param gamma: Discount factor of a primitive step
    :param device: Where samples go
    :param seed: Seed of the sampling, which is independent of NumPy's global state (so that a run with behaviour cloning
        off draws the same mini-batches as SB3's PPO)
    :raises TypeError: If an argument is no number and must be
    :raises ValueError: If one is out of range, or there is no such rule
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        episodes_per_task: int = 100,
        rule: Literal["advantage", "shortest"] = "advantage",
        gamma: float = 0.99,
        device: th.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        check_count("episodes_per_task", episodes_per_task)
        FRACTION.check("gamma", gamma)
        SEED.check("seed", seed)
        check_choice("rule", rule, RULES)
        self.episodes_per_task = episodes_per_task
        self.rule = rule
        self.gamma = gamma
        self.device = device
        self.rng = np.random.default_rng(seed)
        self._held = DemonstrationSet(observation_space, action_space)
        self._lots: dict[str, _Lots] = {}

    @property
    def episodes(self) -> dict[str, list[Demonstration]]:
        """The episodes of each task, the best first; by the rule ``"advantage"`` those that came since :meth:`rate` last."""
        return self._held.episodes

    def __len__(self) -> int:
        """Number of observation-chunk pairs."""
        return len(self._held)

    def __repr__(self) -> str:
        held = ", ".join(f"{task!r}: {len(demos)}" for task, demos in self.episodes.items())
        return f"DemonstrationBuffer({{{held}}}, episodes_per_task={self.episodes_per_task})"

    def add(self, demonstration: Demonstration) -> bool:
        """
        Offer an episode; one of single steps is held in chunks, one after the other, as those of the agent are.

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
        demonstration = self._in_chunks(self._held.match(demonstration))
        if not self.admits(demonstration.task, demonstration.n_steps):
            return None
        if demonstration.rewards is None:  # a file has those of all episodes or of none
            demonstration.rewards = demonstration.sparse_rewards(self.gamma)
        held = self.episodes.setdefault(demonstration.task, [])
        held.append(demonstration)
        if self.rule == "shortest":
            held.sort(key=lambda demo: demo.n_steps)
            del held[self.episodes_per_task :]
        self._lots.pop(demonstration.task, None)
        return demonstration

    def _in_chunks(self, demonstration: Demonstration) -> Demonstration:
        shape = self._held.action_space.shape
        if shape is None or demonstration.actions.shape[1:] == shape:
            return demonstration
        return demonstration.in_chunks(shape[0], self.gamma)

    def admits(self, task: str, n_steps: int) -> bool:
        """
        :param task: Name of a task
        :param n_steps: Primitive steps of a successful episode
        :return: Whether it would be admitted
        """
        held = self.episodes.get(task, [])
        if self.rule == "advantage":
            return len(held) < _MOST_QUOTAS * self.episodes_per_task
        return len(held) < self.episodes_per_task or n_steps < held[-1].n_steps

    def rate(
        self,
        critic: Critic,
        env: VecNormalize | None = None,
        cache: FeatureCache | None = None,
        host_keys: Collection[str] = (),
        keys: Sequence[str] | None = None,
        batch_size: int = 512,
    ) -> None:
        """
        Let the critic say what is still worth imitating; by the rule ``"shortest"`` this does nothing.

        :param critic: Values observations
        :param env: Normalises observations and rewards as the critic has learned them; the buffer holds them as they were
        :param cache: See :meth:`sample`
        :param host_keys: See :meth:`sample`
        :param keys: Observations that the critic reads, by default all
        :param batch_size: Observations whose values are computed together
        """
        if self.rule == "shortest":
            return
        for task, held in self.episodes.items():
            pairs = [(demo, t) for demo in held for t in range(len(demo))]
            values = []
            for start in range(0, len(pairs), batch_size):
                batch = self._held.batch(pairs[start : start + batch_size], self.device, env, cache, host_keys, keys)
                with th.no_grad():
                    values.append(critic(batch.policy_input).flatten().cpu().numpy())
            if values:
                self._keep_best(task, np.concatenate(values), env)

    def _keep_best(self, task: str, values: np.ndarray, env: VecNormalize | None) -> None:
        """
        :param task: Name of a task
        :param values: What the critic expects at each of its pairs
        :param env: Normalises rewards, if it does
        """
        held = self.episodes[task]
        ends = np.cumsum([len(demo) for demo in held])
        returns = [demo.returns(self.gamma, self._rewards(demo, env)) for demo in held]
        advantages = np.split(np.concatenate(returns) - values, ends[:-1])
        best = sorted(range(len(held)), key=lambda i: -advantages[i][0])[: self.episodes_per_task]
        best = [i for i in best if advantages[i][0] > 0]
        held[:] = [held[i] for i in best]
        self._lots.pop(task, None)
        if best:
            weights = np.concatenate([advantages[i] for i in best]).clip(min=0.0)
            self._lots[task] = _Lots(held, weights / weights.sum())

    @staticmethod
    def _rewards(demonstration: Demonstration, env: VecNormalize | None) -> np.ndarray:
        assert demonstration.rewards is not None  # see admit
        return demonstration.rewards if env is None else env.normalize_reward(demonstration.rewards)

    def extend(self, demonstrations: Iterable[Demonstration]) -> int:
        """
        Offer episodes, e.g. those of an expert.

        :param demonstrations: The episodes; rewards of chunks must be discounted inside by the buffer's ``gamma``:
            ``collect_demonstrations(..., gamma=...)``
        :return: How many were admitted
        :raises TypeError: If these are not episodes
        :raises ValueError: If one does not fit, see :meth:`add`
        """
        episodes = as_episodes("demonstrations", demonstrations)
        n_admitted = sum(self.add(episode) for episode in episodes)
        warn_of_units(episodes, self._held.action_space)
        return n_admitted

    def sample(
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        cache: FeatureCache | None = None,
        host_keys: Collection[str] = (),
    ) -> DemonstrationSamples:
        """
        Draw pairs, uniformly over the tasks and then over the pairs of a task, or as :meth:`rate` found them worth it.

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
        for number in self.rng.integers(len(tasks), size=batch_size):
            task = tasks[number]
            if task not in self._lots:  # as not rated since it changed
                self._lots[task] = _Lots(self.episodes[task])
            pairs.append(self._lots[task].draw(self.rng))
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

    def get_state(self) -> dict[str, Any]:
        """
        :return: What sampling goes on from, beside the episodes: random numbers, and the order of the tasks
        """
        return {"random": self.rng.bit_generator.state, "tasks": list(self.episodes)}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What :meth:`get_state` returned, when it held the episodes that it holds now
        """
        self.rng.bit_generator.state = state["random"]
        in_order = {task: self.episodes.get(task, []) for task in state["tasks"]}  # those of no episode are in no file
        self.episodes.clear()
        self.episodes.update(in_order)

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
        spaces_of_model = self._held.observation_space, self._held.action_space
        loaded = DemonstrationBuffer(*spaces_of_model, self.episodes_per_task, self.rule, self.gamma)
        loaded.extend(load_demonstrations(path))
        self._held, self._lots = loaded._held, {}

"""What follows every episode of a rollout."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import safe_mean

from sb3_vla_envs import Demonstration
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress, task_name

from ..common.lost_episode import is_lost
from ..common.ranks import RankMail, Ranks
from ..imitation.demonstration_buffer import DemonstrationBuffer
from ..imitation.feature_cache import FeatureCache
from ..policies.encoded import NOT_ENCODED, EncodedObservations


class _Chunk(NamedTuple):
    """What an environment saw and did."""

    observation: dict[str, np.ndarray]
    encoded: EncodedObservations
    action: np.ndarray
    length: int
    reward: float


class _Outcome(NamedTuple):
    """How an episode ended; ``success`` is ``None`` for one whose environment was lost."""

    task: str
    success: bool | None
    steps_to_success: int | None


class _Offer(NamedTuple):
    """An episode for the demonstration buffer, and what frozen parts made of its observations."""

    episode: Demonstration
    encoded: EncodedObservations


class EpisodeRecorder:
    """
    Follows the episodes of all environments: counts successes and steps to success, in total and per task, and offers
    successful episodes, up to their success, to the demonstration buffer.

    An environment reports through ``info``: ``chunk_length`` (1 where it is absent), ``task``, ``is_success`` and
    ``steps_to_success``. An episode has succeeded if any of its steps reported success.

    Where several ranks train one model, each follows its own environments and tells the others in :meth:`exchange`.

    :param n_envs: Number of environments
    :param replay_buffer: Where good episodes go, or ``None``
    :param cache: Where what frozen parts made of their observations goes, or ``None`` if that is not worth keeping
    :param stats_window_size: Episodes over which the logged means run, for each task
    :param ranks: Who trains the model
    """

    def __init__(
        self,
        n_envs: int,
        replay_buffer: DemonstrationBuffer | None,
        cache: FeatureCache | None = None,
        stats_window_size: int = 100,
        ranks: Ranks | None = None,
    ) -> None:
        self.n_envs = n_envs
        self.replay_buffer = replay_buffer
        self.cache = cache
        window: Any = partial(deque, maxlen=stats_window_size)
        self.successes: dict[str, deque[bool]] = defaultdict(window)
        self.steps_to_success: dict[str, deque[int]] = defaultdict(window)
        self.ranks = ranks or Ranks()
        self._outcomes: RankMail[_Outcome] = RankMail(self.ranks, self._count)
        self._offers: RankMail[_Offer] = RankMail(self.ranks, self._admit)
        #: Episodes that ended with the machine that simulated them
        self.lost_episodes = 0
        self.begin_episodes()

    def begin_episodes(self) -> None:
        """All environments were reset."""
        # None of an episode whose beginning it has not seen
        self._progress: list[EpisodeProgress | None] = [EpisodeProgress() for _ in range(self.n_envs)]
        # Of the episode under way in each environment; None if it can't be admitted
        self._chunks: list[list[_Chunk] | None] = [[] for _ in range(self.n_envs)]

    def get_state(self) -> dict[str, Any]:
        """
        :return: What it goes on from, but for what frozen parts made of observations
        """
        return {
            "successes": {task: list(successes) for task, successes in self.successes.items()},
            "steps_to_success": {task: list(steps) for task, steps in self.steps_to_success.items()},
            "progress": [None if progress is None else asdict(progress) for progress in self._progress],
            "chunks": [
                None if chunks is None else [(each.observation, each.action, each.length, each.reward) for each in chunks]
                for chunks in self._chunks
            ],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What :meth:`get_state` returned, of as many environments
        """
        self.forget_statistics()
        for task, successes in state["successes"].items():
            self.successes[task].extend(successes)
        for task, steps in state["steps_to_success"].items():
            self.steps_to_success[task].extend(steps)
        self._progress = [None if progress is None else EpisodeProgress(**progress) for progress in state["progress"]]
        self._chunks = [
            None if chunks is None else [_Chunk(seen, NOT_ENCODED, *others) for seen, *others in chunks]
            for chunks in state["chunks"]
        ]

    def forget_statistics(self) -> None:
        """Begin the logged means anew, as SB3 does its own with each ``learn()``."""
        self.successes.clear()
        self.steps_to_success.clear()

    def abandon_episodes(self) -> None:
        """
        A rollout was cut short, so that nobody knows what the environments have done since: the rest of an episode would pass
        for a short one, and neither is kept nor counts.
        """
        self._progress = [None] * self.n_envs
        self._chunks = [None] * self.n_envs

    def record(
        self,
        observations: Mapping[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        infos: Sequence[Mapping[str, Any]],
        dones: np.ndarray,
        encoded: EncodedObservations,
    ) -> dict[int, EpisodeProgress | None]:
        """
        :param observations: What the environments showed before the step, ``(n_envs, ...)`` by key, before ``VecNormalize``
        :param actions: What was sampled, in the environment's units and before clipping: the mean of clipped samples would
            shrink
        :param rewards: ``(n_envs,)``, what the step was worth, before ``VecNormalize``
        :param infos: What they reported after it
        :param dones: Which episodes ended with it
        :param encoded: What frozen parts made of the observations
        :return: By the environment's number, the episodes that ended, ``None`` for one that was abandoned
        """
        ended = {}
        for i, (info, done) in enumerate(zip(infos, dones, strict=True)):
            if is_lost(info):
                self._outcomes.send(_Outcome("", None, None))
                self._progress[i] = self._chunks[i] = None
            progress = self._progress[i]
            if progress is not None:
                before, had_succeeded = progress.steps, bool(progress.success)
                progress.add(info)
                if self.replay_buffer is not None and not had_succeeded and self._chunks[i] is not None:
                    # Copies, as a view would keep the observations of all environments
                    copies = {key: values[i].copy() for key, values in observations.items()}
                    kept = NOT_ENCODED if self.cache is None else encoded.map(itemgetter(i)).map(th.clone)
                    chunk = _Chunk(copies, kept, actions[i], progress.steps - before, float(rewards[i]))
                    self._record_chunk(i, progress, task_name(info), chunk)
            if done:
                if progress is not None and progress.success is not None:
                    self._outcomes.send(_Outcome(task_name(info), progress.success, progress.steps_to_success))
                self._progress[i], self._chunks[i] = EpisodeProgress(), []
                ended[i] = progress
        return ended

    def _record_chunk(self, i: int, progress: EpisodeProgress, task: str, chunk: _Chunk) -> None:
        """
        :param i: Environment
        :param progress: Of its episode, this chunk included
        :param task: Its task
        :param chunk: What it saw and did
        """
        chunks = self._chunks[i]
        assert self.replay_buffer is not None and chunks is not None
        chunks.append(chunk)
        if not self.replay_buffer.admits(task, progress.steps_to_success or progress.steps):
            self._chunks[i] = None
        elif progress.success:
            self._offer(task, chunks, progress)
            self._chunks[i] = None

    def _offer(self, task: str, chunks: list[_Chunk], progress: EpisodeProgress) -> None:
        """
        :param task: Name of the task
        :param chunks: The episode until its success was reported
        :param progress: Says when it succeeded; what came after is not worth imitating
        """
        episode = Demonstration(
            task=task,
            observations={key: np.stack([chunk.observation[key] for chunk in chunks]) for key in chunks[0].observation},
            actions=np.stack([chunk.action for chunk in chunks]),
            chunk_lengths=np.array([chunk.length for chunk in chunks], dtype=np.int64),
            success=True,
            rewards=np.array([chunk.reward for chunk in chunks], dtype=np.float32),
            steps_to_success=progress.steps_to_success,
        )
        encoded = NOT_ENCODED
        if self.cache is not None and chunks[0].encoded.tensors:
            encoded = EncodedObservations.join((chunk.encoded for chunk in chunks), th.stack)
            if self.ranks.size > 1:  # whose devices are not this one's
                encoded = encoded.map(th.Tensor.cpu)
        self._offers.send(_Offer(episode, encoded))

    def exchange(self) -> None:
        """Tell the other ranks, and hear from them, which episodes ended and which may be worth imitating."""
        self._outcomes.exchange()
        self._offers.exchange()

    def _admit(self, offer: _Offer) -> None:
        assert self.replay_buffer is not None
        admitted = self.replay_buffer.admit(offer.episode)
        if admitted is not None and self.cache is not None and offer.encoded.tensors:
            device = self.cache.device
            self.cache.put(admitted, offer.encoded.map(lambda tensor: tensor[: len(admitted)].to(device)))

    def _count(self, outcome: _Outcome) -> None:
        if outcome.success is None:
            self.lost_episodes += 1
            return
        self.successes[outcome.task].append(outcome.success)
        if outcome.steps_to_success is not None:
            self.steps_to_success[outcome.task].append(outcome.steps_to_success)

    @property
    def success_rate(self) -> float | None:
        """Of the last episodes of each task, averaged over the tasks; ``None`` before the first one ended."""
        rates = [np.mean(successes) for successes in self.successes.values() if successes]
        return float(np.mean(rates)) if rates else None

    def log(self, logger: Logger) -> None:
        """
        :param logger: Gets success rates and steps to success
        """
        if self.lost_episodes:
            logger.record("rollout/lost_episodes", self.lost_episodes)
        if self.steps_to_success:
            means = [safe_mean(steps) for steps in self.steps_to_success.values()]
            logger.record("rollout/steps_to_success", np.mean(means))
        for task in self.successes:
            if task:
                # Not on the console, whose keys are cut at 36 characters and must stay different
                exclude = ("stdout", "log")
                logger.record(f"rollout/success_rate/{task}", safe_mean(self.successes[task]), exclude=exclude)
                if task in self.steps_to_success:
                    steps = safe_mean(self.steps_to_success[task])
                    logger.record(f"rollout/steps_to_success/{task}", steps, exclude=exclude)

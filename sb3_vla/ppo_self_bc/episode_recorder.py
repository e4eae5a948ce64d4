"""The callback that follows every episode of a rollout."""

from collections import defaultdict, deque
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from sb3_vla_envs import Demonstration

from ..imitation.demonstration_buffer import ARRAY_KEY, DemonstrationBuffer
from ..policies.vla_policy import VLAPolicy
from .rollout_buffer import ChunkRolloutBuffer


class _Chunk(NamedTuple):
    """What an environment saw and did."""

    observation: dict[str, np.ndarray]
    precomputed: dict[str, th.Tensor]
    action: np.ndarray
    length: int


class EpisodeRecorder(BaseCallback):
    """
    Tells the rollout buffer how long each chunk ran, offers successful episodes to the demonstration buffer, and logs success
    and steps to success, in total and per task.

    An environment reports through ``info``: ``chunk_length`` (1 where it is absent), ``task``, ``is_success`` and
    ``steps_to_success``. Success is counted by SB3 itself; here it is split by task.

    :param replay_buffer: Where good episodes go, or ``None``
    :param stats_window_size: Episodes over which the logged means run, for each task
    """

    def __init__(self, replay_buffer: DemonstrationBuffer | None, stats_window_size: int = 100) -> None:
        super().__init__()
        self.replay_buffer = replay_buffer
        window = stats_window_size
        self.successes: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=window))
        self.steps_to_success: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=window))

    def _on_training_start(self) -> None:
        # The episode under way in each environment: observation, action, length of each chunk; None if it can't be admitted.
        # learn(reset_num_timesteps=False) goes on in the middle of episodes, whose rest would pass for short ones.
        starts = self.model._last_episode_starts  # type: ignore[attr-defined]
        assert starts is not None
        self._episodes: list[list[_Chunk] | None] = [[] if start else None for start in starts]
        self._n_steps = [0] * len(starts)
        self._observation = self._latest_observation()
        if self.replay_buffer is not None and isinstance(self.model.policy, VLAPolicy):
            self.replay_buffer.forget_outdated(self.model.policy)

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        lengths = [info.get("chunk_length", 1) for info in infos]
        rollout_buffer: ChunkRolloutBuffer = self.locals["rollout_buffer"]
        rollout_buffer.record_chunks(lengths, self.locals["rewards"], [info.get("task", "") for info in infos])
        if self._precomputed:
            rollout_buffer.record_precomputed(self._precomputed)  # type: ignore[attr-defined]
        self.model.num_primitive_steps += sum(lengths)  # type: ignore[attr-defined]
        for i, (info, done) in enumerate(zip(infos, self.locals["dones"], strict=True)):
            if self.replay_buffer is not None:
                self._record_chunk(i, info.get("task", ""), lengths[i], self.replay_buffer)
            if done:
                self._end_episode(i, info)
        self._observation = self._latest_observation(self.locals["new_obs"])
        return True

    @property
    def _precomputed(self) -> dict[str, th.Tensor]:
        """What VLAPolicy's frozen parts made of the observations before this step, by key, ``(n_envs, ...)``."""
        policy = self.model.policy
        return policy.precomputed if isinstance(policy, VLAPolicy) else {}

    def _on_rollout_start(self) -> None:
        rollout_buffer: ChunkRolloutBuffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        if isinstance(self.model.policy, VLAPolicy):
            missing = set(self.model.policy.stored_keys) - set(rollout_buffer.observation_space)  # type: ignore[call-overload]
            if missing:
                raise ValueError(
                    f"the policy reads {sorted(missing)}, which the rollout buffer does not keep, as what reads it was frozen "
                    "when the model was made: instead of unfreezing parameters, make or load the model with other "
                    "policy_kwargs=dict(frozen=...)"
                )

    def _latest_observation(self, new_obs: Any = None) -> dict[str, np.ndarray]:
        """
        :param new_obs: What the environments returned, by default at the last step
        :return: The observations of all environments, by key; before ``VecNormalize``, whose statistics go on changing
        """
        if (normalizer := self.model.observation_normalizer) is not None:  # type: ignore[attr-defined]
            new_obs = normalizer.get_original_obs()
        elif new_obs is None:
            new_obs = self.model._last_obs  # type: ignore[attr-defined]
        return new_obs if isinstance(new_obs, dict) else {ARRAY_KEY: new_obs}

    def _record_chunk(self, i: int, task: str, length: int, replay_buffer: DemonstrationBuffer) -> None:
        """
        :param i: Environment
        :param task: Its task
        :param length: Primitive steps that its chunk executed
        :param replay_buffer: Where the episode may go
        """
        episode = self._episodes[i]
        if episode is None:
            return
        # Copies, as a view would keep the observations of all environments; and the sampled action before clipping, as the
        # likelihood sees it: the mean of clipped samples shrinks
        copies = {key: values[i].copy() for key, values in self._observation.items()}
        # VecNormalize goes on changing what it was computed from
        kept = self._precomputed if self.model.observation_normalizer is None else {}  # type: ignore[attr-defined]
        precomputed = {key: values[i].clone() for key, values in kept.items()}
        episode.append(_Chunk(copies, precomputed, self.locals["actions"][i], length))
        self._n_steps[i] += length
        if not replay_buffer.admits(task, self._n_steps[i]):
            self._episodes[i] = None

    def _end_episode(self, i: int, info: dict[str, Any]) -> None:
        """
        :param i: Environment whose episode ended
        :param info: Its last info
        """
        episode, self._episodes[i] = self._episodes[i], []
        self._n_steps[i] = 0
        success = info.get("is_success")
        if success is None:
            return
        task = info.get("task", "")
        self.successes[task].append(bool(success))
        if success and "steps_to_success" in info:
            self.steps_to_success[task].append(info["steps_to_success"])
        if success and episode and self.replay_buffer is not None:
            keys = episode[0].precomputed
            precomputed = {key: th.stack([chunk.precomputed[key] for chunk in episode]) for key in keys}
            self.replay_buffer.add(_to_demonstration(task, episode), precomputed)

    def _on_rollout_end(self) -> None:
        self.logger.record("time/primitive_steps", self.model.num_primitive_steps)  # type: ignore[attr-defined]
        if self.steps_to_success:
            means = [safe_mean(steps) for steps in self.steps_to_success.values()]
            self.logger.record("rollout/steps_to_success", np.mean(means))
        for task in self.successes:
            if task:
                # Not on the console, whose keys are cut at 36 characters and must stay different
                exclude = ("stdout", "log")
                self.logger.record(f"rollout/success_rate/{task}", safe_mean(self.successes[task]), exclude=exclude)
                if task in self.steps_to_success:
                    steps = safe_mean(self.steps_to_success[task])
                    self.logger.record(f"rollout/steps_to_success/{task}", steps, exclude=exclude)


def _to_demonstration(task: str, chunks: list[_Chunk]) -> Demonstration:
    """
    :param task: Name of the task
    :param chunks: Observation, action and length of each chunk
    :return: The episode
    """
    return Demonstration(
        task=task,
        observations={key: np.stack([chunk.observation[key] for chunk in chunks]) for key in chunks[0].observation},
        actions=np.stack([chunk.action for chunk in chunks]),
        chunk_lengths=np.array([chunk.length for chunk in chunks], dtype=np.int64),
        success=True,
    )

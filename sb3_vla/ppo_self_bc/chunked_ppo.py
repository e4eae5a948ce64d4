"""SB3's PPO with rollouts of chunks, and any policy's frozen parts computed once."""

import os
from collections.abc import Collection
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TensorDict
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_vla_envs.wrappers.episode_progress import task_name

from ..common.launch import launched_to_shard
from ..common.observation_normalization import check_frame_stack
from ..common.ranks import RankMail, join_ranks
from ..imitation.demonstration_buffer import DemonstrationBuffer
from ..imitation.feature_cache import FeatureCache
from ..policies.adapter import PolicyAdapter, adapt, adapter_class_of
from ..policies.observation_checks import check_bounded
from .actor import Actor
from .agreement import SharedNormalization, check_models_alike, share_weights
from .environment_checks import (
    check_chunk_lengths,
    check_chunks,
    check_no_text,
    check_normalization,
    check_normalized_alike,
    check_numbering,
)
from .episode_recorder import EpisodeRecorder
from .finite import check_observations, check_rewards
from .overlap import ActingCopy, ActorAhead, check_overlap
from .portable_ppo import PortablePPO
from .rollout_buffer import ChunkDictRolloutBuffer, ChunkRolloutBuffer
from .sharding import LayerSharding, Sharding


class ChunkedPPO(PortablePPO):
    """
    What :class:`~sb3_vla.PPOSelfBC` changes of SB3's :class:`~stable_baselines3.PPO` (this file follows version 2.9.2) before
    its update: one timestep is a chunk, discounted by ``gamma ** k`` for the k primitive steps it executed; a recorder follows
    the episodes; the policy's adapter says what is kept of an observation. Without chunks all of it is PPO's, bit for bit.

    Started by ``torchrun`` or ``accelerate launch``, several processes, the ranks, train one model: each has environments and
    a rollout of its own, and all take the step that one process with all rollouts would take (DD-PPO, Wijmans et al. 2020,
    arXiv 1911.00357). The first one logs, prints and saves.
    """

    rollout_buffer: ChunkRolloutBuffer
    replay_buffer: DemonstrationBuffer | None
    bc_loss: str
    bc_weight: Any
    overlap: bool
    shard: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.replay_buffer = None
        self.num_primitive_steps = 0
        # num_timesteps begins anew with each learn(), but a value function warms up once
        self.lifetime_timesteps = 0
        #: Observations that VecNormalize standardises
        self.normalized_keys: tuple[str, ...] = ()
        self._env_normalized_keys: tuple[str, ...] = ()
        self._recorder: EpisodeRecorder | None = None
        self._rollout_complete = True
        self._normalization: SharedNormalization | None = None
        self._sharding = Sharding()
        self._acting: ActingCopy | None = None
        self._ahead: ActorAhead | None = None
        self._holds_rollout = False

    def _setup_model(self) -> None:
        self.ranks = join_ranks(self.device)
        self._primitive_steps: RankMail[int] = RankMail(self.ranks, self._count_primitive_steps)
        self._ended_infos: RankMail[tuple[list[dict[str, Any]], np.ndarray]] = RankMail(self.ranks, self._receive_infos)
        if not self.ranks.is_first:
            self.verbose, self.tensorboard_log = 0, None
            self.set_logger(Logger(None, []))
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = ChunkDictRolloutBuffer if is_dict else ChunkRolloutBuffer
        elif not issubclass(self.rollout_buffer_class, ChunkRolloutBuffer):
            raise ValueError(
                f"rollout_buffer_class must be a subclass of ChunkRolloutBuffer or ChunkDictRolloutBuffer, which know how "
                f"long each chunk ran, got {self.rollout_buffer_class.__name__}"
            )
        if self.env is not None:  # which else shows only in what the policy does not understand
            self._env_normalized_keys = self._normalized_in(self.env)
        if not hasattr(self, "_given_policy_kwargs"):  # a model that is loaded keeps what it was made with
            self._given_policy_kwargs = {**self.policy_kwargs}
            self.normalized_keys = self._env_normalized_keys
        super()._setup_model()
        if self.ranks.size > 1:  # the same weights, but other actions
            self.set_random_seed(self.rank_seed)
        self._adapt()
        # What is saved must rebuild with no network and no checkpoint at hand
        self.policy_kwargs = {**self.policy_kwargs, **self.adapter.portable_kwargs()}
        if self.adapter.stored_space != self.observation_space:
            self.rollout_buffer = self._make_rollout_buffer(self.adapter.stored_space)
        self.rollout_buffer.host_keys = self.adapter.host_keys

    @property
    def rank_seed(self) -> int | None:
        """The seed of this rank's random numbers: its environments are seeded as those of one process with all would be."""
        return None if self.seed is None else self.seed + self.ranks.rank * (self.n_envs or 1)

    def set_logger(self, logger: Logger) -> None:
        super().set_logger(logger if self.ranks.is_first else Logger(None, []))

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_no_text(env.observation_space)
        check_bounded(env.action_space)
        check_numbering(env.action_space)
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _adapt(self) -> None:
        """
        Look at the policy and the environment, and see that they fit.

        :raises ValueError: If they don't
        """
        chunk_size = None if self.env is None else self._chunk_size_of(self.env)
        self.adapter: PolicyAdapter = adapt(self.policy, self.bc_loss, chunk_size)
        self.adapter.note_normalized(self.normalized_keys)
        self._cache = FeatureCache(self.adapter, self.device)
        self._recorder = None

    def _chunk_size_of(self, env: VecEnv) -> int | None:
        """
        :param env: An environment
        :return: Primitive actions of its chunks; see :func:`check_chunks`
        """
        return check_chunks(env, self.gamma, adapter_class_of(type(self.policy)).needs_chunks)

    def _make_rollout_buffer(self, observation_space: spaces.Space) -> ChunkRolloutBuffer:
        """
        :param observation_space: The observations that the policy reads in training
        :return: A rollout buffer like that of SB3's ``_setup_model``, but without the observations that the policy does not
            read or that frozen parts of it have encoded
        """
        assert self.rollout_buffer_class is not None
        buffer = self.rollout_buffer_class(
            self.n_steps,
            observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )
        assert isinstance(buffer, ChunkRolloutBuffer)
        return buffer

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        env = self._wrap_env(env, self.verbose)
        keys = self._normalized_in(env)
        # All that may be wrong with it before it takes the place of the one before
        self._chunk_size_of(env)
        self._check_frame_stack(env, keys)
        if self._has_learned:
            check_normalized_alike(self.normalized_keys, keys)
        super().set_env(env, force_reset)
        self._env_normalized_keys = keys
        self._adapt()
        self._hold_against_training()

    @property
    def _has_learned(self) -> bool:
        return self.lifetime_timesteps > 0 or getattr(self.policy, "is_fine_tuned", False)

    def _normalized_in(self, env: VecEnv) -> tuple[str, ...]:
        """
        :param env: An environment
        :return: The observations that its ``VecNormalize`` normalises
        :raises ValueError: If pictures or prompts are among them; see :func:`check_normalization`
        """
        return check_normalization(env, adapter_class_of(self.policy_class).byte_keys(env.observation_space))

    def _hold_against_training(self) -> None:
        """
        See that the environment normalises what the model has learned with; one that has not learned takes what it gets.

        :raises ValueError: If it does not
        """
        if self.env is None:
            return
        if self._has_learned:
            check_normalized_alike(self.normalized_keys, self._env_normalized_keys)
        self.normalized_keys = self._env_normalized_keys
        self.adapter.note_normalized(self.normalized_keys)

    def _on_loaded(self) -> None:
        self._hold_against_training()  # only now its weights say whether it was fine-tuned

    def _check_frame_stack(self, env: VecEnv, normalized_keys: Collection[str]) -> None:
        """
        :param env: An environment
        :param normalized_keys: What its ``VecNormalize`` normalises
        :raises ValueError: If frames are stacked in the wrong place; see :func:`check_frame_stack`
        """
        if self.replay_buffer is not None and normalized_keys:
            check_frame_stack(env, "behaviour cloning", "; or pass bc_weight=0")

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps:
            self.num_primitive_steps = 0
        self._begin_sharing()
        self._share_normalization()
        before = self._last_obs
        progress_bar = progress_bar and self.ranks.is_first
        if self.overlap and self.env is not None:
            check_overlap(self.env)
        self._holds_rollout = False
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if self._last_obs is not before and self._recorder is not None:
            self._recorder.begin_episodes()
            self._rollout_complete = True
        if reset_num_timesteps and self._recorder is not None:
            self._recorder.forget_statistics()
        return result

    @property
    def is_sharded(self) -> bool:
        """Whether from the first ``learn()`` on each rank has a part of a layer's, so that :meth:`save` needs all ranks."""
        return self.ranks.size > 1 and (self.shard or launched_to_shard())

    def _begin_sharing(self) -> None:
        """Begin with the weights of the first rank; what is sharded from then on was shared before."""
        if isinstance(self._sharding, LayerSharding):
            return
        check_models_alike(self.ranks, self)
        share_weights(self.ranks, self.policy)
        if self.is_sharded:
            self._sharding = LayerSharding(self.policy, self.adapter.layers_to_shard(), self.ranks)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        :return: ``state_dict()`` of policy and optimizer, by name. With ``shard`` all ranks have to ask for them, and the
            first one alone gets what is sharded
        """
        return self._sharding.whole(super().get_parameters())

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        if isinstance(self._sharding, LayerSharding):
            raise RuntimeError("the weights are sharded, from the first learn() on: load the model anew to give it others")
        super().set_parameters(load_path_or_dict, exact_match, device)

    def share_with_ranks(self) -> None:
        """
        Give all ranks the weights and the statistics of ``VecNormalize`` that the first one has: what a callback calls, on all
        ranks, after it has changed them.
        """
        share_weights(self.ranks, self.policy)
        self._normalization = SharedNormalization(self.ranks, self._vec_normalize_env)

    def _share_normalization(self) -> None:
        if self._normalization is None or self._normalization.normalizer is not self._vec_normalize_env:
            self._normalization = SharedNormalization(self.ranks, self._vec_normalize_env)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experience with the current policy, as SB3 does, and let the recorder follow the episodes.

        :param env: The training environment
        :param callback: Callback that is called at each step, and at the beginning and the end of the rollout
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Steps (chunks) to collect in each environment
        :return: Whether the rollout is complete, ``False`` if the callback has ended it, here or on another rank
        :raises FloatingPointError: If an observation or a reward is not finite
        """
        assert self._last_obs is not None, "No previous observation was provided"
        assert isinstance(rollout_buffer, ChunkRolloutBuffer)
        self.policy.set_training_mode(False)
        self._prepare_to_act(self.adapter)  # as who acted ahead was: ratios begin with 1
        rollout_buffer.reset()
        actor = self._ahead or Actor(env, self.adapter, self.use_sde, self.sde_sample_freq)
        actor.begin()
        self._check_stored(rollout_buffer)
        self._start_recorder(env.num_envs)
        callback.on_rollout_start()

        # Of a reset no step has told; wrappers have empty infos of their own
        check_observations(self._last_obs, getattr(env.unwrapped, "reset_infos", None) or [{}] * env.num_envs, actor.read_keys)
        n_steps = 0
        stopped = False
        for step in actor.steps(self._last_obs, n_rollout_steps):
            observations, (_, values, log_probs, encoded, extras), actions, clipped_actions, original_rewards, *results = step
            new_obs, rewards, dones, infos = results
            self.num_timesteps += env.num_envs * self.ranks.size
            self.lifetime_timesteps += env.num_envs * self.ranks.size
            check_rewards(rewards, infos)
            check_observations(new_obs, infos, actor.read_keys)
            chunk_lengths = check_chunk_lengths(infos, self.adapter.chunk_size)
            self._primitive_steps.send(int(chunk_lengths.sum()))
            in_env_units = clipped_actions if self.policy.squash_output else actions
            ended = self._recorder.record(  # type: ignore[union-attr]
                observations, in_env_units, original_rewards, infos, dones, encoded
            )

            for i, episode in ended.items():
                if episode is None:  # seen from its middle on
                    infos[i] = {name: value for name, value in infos[i].items() if name != "is_success"}
                elif episode.success is not None:  # at any of its steps
                    infos[i] = {**infos[i], "is_success": episode.success}

            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                stopped = True
                break
            self._update_info_buffer(infos, dones)
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                # Reshape in case of discrete action
                actions = actions.reshape(-1, 1)
            self._bootstrap_timeouts(actor, rewards, dones, infos, chunk_lengths)
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
                chunk_lengths,
                [task_name(info) for info in infos],
                encoded,
                extras,
            )
            self._last_obs = new_obs
            self._last_episode_starts = dones

        if not self.ranks.all(not stopped):
            self._leave_rollout_ahead()
            return False
        self._ahead = None
        self._exchange()
        rollout_buffer.compute_returns_and_advantage(last_values=actor.values(new_obs), dones=dones)
        self._rollout_complete = True
        self.logger.record("time/primitive_steps", self.num_primitive_steps)
        self._recorder.log(self.logger)  # type: ignore[union-attr]
        callback.update_locals(locals())
        callback.on_rollout_end()
        self._begin_rollout_ahead(env, n_rollout_steps)
        return True

    @property
    def rollout_is_ahead(self) -> bool:
        """Whether the environments have gone on with a rollout of which nothing is known yet, see ``overlap``."""
        return self._ahead is not None

    def _prepare_to_act(self, adapter: PolicyAdapter) -> None:
        """
        Called at the beginning of a rollout.

        :param adapter: Of the policy, and with ``overlap`` of the copy of it that acts, too
        """

    def hold_next_rollout(self) -> None:
        """
        To be called in the course of a rollout: even with ``overlap`` the next one is not begun before this one has been
        learned from, so that then the environments stand where the model has seen them last.
        """
        self._holds_rollout = True

    def _begin_rollout_ahead(self, env: VecEnv, n_steps: int) -> None:
        """
        :param env: The environments
        :param n_steps: Length of the rollout
        """
        holds, self._holds_rollout = self._holds_rollout, False
        if not self.overlap or holds or self.num_timesteps >= self._total_timesteps:
            return
        self._acting = self._acting or ActingCopy(self.adapter)
        self._acting.update()
        self._prepare_to_act(self._acting.adapter)
        normalizer = None if self.replay_buffer is None else self._vec_normalize_env
        settings = {"use_sde": self.use_sde, "sde_sample_freq": self.sde_sample_freq}
        self._ahead = ActorAhead(env, self._acting, normalizer, self._last_obs, n_steps, **settings)

    def _leave_rollout_ahead(self) -> None:
        """Of what the environments have done ahead nothing is learned, and they go on from there."""
        self._acting = None
        if self._ahead is None:
            return
        ahead, self._ahead = self._ahead, None
        ahead.stop()
        self._rollout_complete = False
        if ahead.reached is not None:
            self._last_obs, self._last_episode_starts = ahead.reached

    def _exchange(self) -> None:
        """Tell the other ranks what a rollout has brought, and hear it from them."""
        assert self._recorder is not None and self._normalization is not None
        if self.ranks.size == 1:
            return
        self._primitive_steps.exchange()
        self._ended_infos.exchange()
        self._recorder.exchange()
        self._normalization.agree()

    def _count_primitive_steps(self, number: int) -> None:
        self.num_primitive_steps += number

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        ended = np.zeros(len(infos), dtype=bool) if dones is None else dones
        told = [i for i, info in enumerate(infos) if ended[i] or "episode" in info]
        if told:
            kept: list[dict[str, Any]] = [
                {name: infos[i][name] for name in ("episode", "is_success") if name in infos[i]} for i in told
            ]
            self._ended_infos.send((kept, ended[told]))

    def _receive_infos(self, infos_and_dones: tuple[list[dict[str, Any]], np.ndarray]) -> None:
        super()._update_info_buffer(*infos_and_dones)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # The last rollout may go beyond the end, where schedules such as 3e-4 * progress would be negative
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _check_stored(self, rollout_buffer: ChunkRolloutBuffer) -> None:
        stored, kept = self.adapter.stored_space, rollout_buffer.observation_space
        if isinstance(stored, spaces.Dict) and isinstance(kept, spaces.Dict) and (missing := stored.keys() - kept.keys()):
            raise ValueError(
                f"the policy reads {sorted(missing)}, which the rollout buffer does not keep, as what reads it was frozen "
                "when the model was made: instead of unfreezing parameters, make or load the model with other "
                "policy_kwargs=dict(frozen=...); after merge_lora(), save it and load it"
            )

    def _start_recorder(self, n_envs: int) -> None:
        """
        Go on with the episodes of the last rollout, if it came to its end.

        :param n_envs: Number of environments
        """
        if self._recorder is None:
            self._recorder = self._new_recorder(n_envs)
            if not np.all(self._last_episode_starts):
                self._recorder.abandon_episodes()
        elif not self._rollout_complete:
            self._recorder.abandon_episodes()
        self._recorder.replay_buffer = self.replay_buffer
        self._rollout_complete = False

    def _new_recorder(self, n_envs: int) -> EpisodeRecorder:
        # What VecNormalize's statistics go on changing can't be computed once
        cache = None if self._env_normalized_keys else self._cache
        return EpisodeRecorder(n_envs, self.replay_buffer, cache, self._stats_window_size, self.ranks)

    def get_episodes(self) -> dict[str, Any] | None:
        """
        :return: What has been recorded of episodes under way and of those before, ``None`` before the first rollout
        """
        return None if self._recorder is None else self._recorder.get_state()

    def set_episodes(self, episodes: dict[str, Any], under_way: bool) -> None:
        """
        Go on recording.

        :param episodes: What :meth:`get_episodes` returned, between two rollouts
        :param under_way: Whether the environments go on with their episodes
        """
        self._recorder = self._new_recorder(self.n_envs)
        self._recorder.set_state(episodes)
        if not under_way:
            self._recorder.begin_episodes()
        self._rollout_complete = True

    @property
    def _learned_normalizer(self) -> VecNormalize | None:
        """What normalises observations and rewards as in the rollout that is learned from."""
        return self._vec_normalize_env if self._ahead is None else self._ahead.normalizer_before

    def _bootstrap_timeouts(
        self, actor: Actor, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], chunk_lengths: np.ndarray
    ) -> None:
        """
        Handle timeout by bootstrapping with value function, see SB3 issue #633; a chunk of k steps by ``gamma ** k``.

        :param actor: Who has acted
        :param rewards: ``(n_envs,)``, changed in place
        :param dones: Which episodes ended
        :param infos: Say whether it was a timeout, and what was seen last
        :param chunk_lengths: k
        """
        for idx in np.flatnonzero(dones):
            last_value = actor.last_value(infos[idx], int(idx))
            if last_value is not None:
                rewards[idx] += self.gamma ** int(chunk_lengths[idx]) * last_value

    def _excluded_save_params(self) -> list[str]:
        made_again = ["lr_schedule", "adapter", "_cache", "_recorder"]
        of_ranks = ["ranks", "_primitive_steps", "_ended_infos", "_normalization", "_sharding"]
        of_overlap = ["_acting", "_ahead", "_holds_rollout"]
        return [*super()._excluded_save_params(), *made_again, *of_ranks, *of_overlap]

    def save_replay_buffer(self, path: str | os.PathLike[str]) -> None:
        """
        Save the demonstration buffer (``CheckpointCallback(save_replay_buffer=True)`` calls this).

        :param path: File, written without pickle whatever its ending, of several ranks by the first one alone
        :raises ValueError: If behaviour cloning is off
        """
        replay_buffer = self._require_replay_buffer()
        if self.ranks.is_first:
            replay_buffer.save(path)

    def load_replay_buffer(self, path: str | os.PathLike[str], truncate_last_traj: bool = True) -> None:
        """
        Load the demonstration buffer, which is never part of the model's zip file.

        :param path: What :meth:`save_replay_buffer` wrote, or a file of demonstrations
        :param truncate_last_traj: Without meaning here, where episodes are whole; SB3's off-policy algorithms have it, and
            rl_zoo3 passes it
        :raises ValueError: If the file is unusable, or behaviour cloning is off
        """
        self._require_replay_buffer().load(path)

    def _require_replay_buffer(self) -> DemonstrationBuffer:
        if self.replay_buffer is None:
            raise ValueError(f"there is no demonstration buffer: bc_weight={self.bc_weight!r} turns behaviour cloning off")
        return self.replay_buffer

"""PPO on action chunks with self behaviour cloning."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, safe_mean
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ..common.nested_callbacks import nested_callbacks
from ..imitation.demonstration_buffer import DemonstrationBuffer, DemonstrationSamples
from ..policies.vla_policy import VLAPolicy
from .bc_weight import BCWeight, LossWeights, TrainingStatistics, make_bc_weight
from .environment_checks import check_chunks, check_frame_stack
from .episode_recorder import EpisodeRecorder
from .losses import approximate_kl, bc_mse_loss, clipped_surrogate_loss, executed_mask, masked_mean, value_loss
from .micro_batch import batch_share, split_batch
from .raw_observations import keep_images_and_prompts_raw
from .rollout_buffer import ChunkDictRolloutBuffer, ChunkRolloutBuffer, ChunkRolloutBufferSamples

SelfPPOSelfBC = TypeVar("SelfPPOSelfBC", bound="PPOSelfBC")


class PPOLoss(NamedTuple):
    """Terms of PPO's loss on a batch, and what is logged of it: scalars."""

    policy: th.Tensor
    value: th.Tensor
    entropy: th.Tensor
    approx_kl: th.Tensor
    clip_fraction: th.Tensor


# By name, what each optimisation step logs: tensors, as asking for their values would make a GPU wait
_Logs = dict[str, list[th.Tensor]]
_Terms = dict[str, th.Tensor]


class PPOSelfBC(PPO):
    """
    Action-chunked PPO with self behaviour cloning (Wang et al. 2025, arXiv 2509.25718).

    SB3's :class:`~stable_baselines3.PPO` (this file follows version 2.9.2) with three additions. Timesteps are chunks, each
    discounted by ``gamma ** k`` for the k primitive steps it executed. A demonstration buffer keeps the agent's own best
    successful episodes. A behaviour-cloning (BC) loss imitates them, with a weight that adapts online. With
    ``bc_weight=0`` and no chunks this is PPO, bit for bit; any SB3 policy, space and callback works. ``VecNormalize`` leaves
    the images and prompts of a vision-language-action environment alone, with a warning.

    :param policy: The policy model to use (VLAPolicy, MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps (chunks) to run for each environment per update
    :param batch_size: Minibatch size
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor of a primitive step
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator, per chunk
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, ``None`` for no clipping
    :param normalize_advantage: ``True`` standardises the advantages within each minibatch, ``"task"`` within each task over
        the whole rollout
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping, applied to each parameter group of the optimizer by
        itself (SB3's policies have one, VLAPolicy has backbone, head and critic)
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param rollout_buffer_class: Rollout buffer class to use, by default one that knows chunks
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence (of a chunk) between updates, by default there is no limit
    :param ratio_per: Likelihood ratio per primitive ``"step"`` (with a policy that keeps the steps of a chunk apart, as
        VLAPolicy does), or per ``"chunk"``
    :param backbone_learning_rate: Learning rate of VLAPolicy's backbone, by default ``learning_rate``
    :param critic_learning_rate: Learning rate of VLAPolicy's value function, by default ``learning_rate``
    :param critic_warmup_steps: Timesteps during which only the value function learns. VLAPolicy's value function learns alone;
        other policies are trained on the value loss
    :param critic_epochs: Number of epochs of the value function, ``n_epochs`` by default; those beyond ``n_epochs`` train the
        value loss alone, and with privileged observations cost next to nothing
    :param micro_batch_size: Accumulate the gradient over pieces of at most this size (memory); by default a minibatch and the
        demonstrated pairs beside it are one piece
    :param bc_weight: Weight of the BC loss: a number, a rule by name (``"constant"``, ``"tanh"``, ``"success"``,
        ``"gradient_balance"``) or a :class:`~sb3_vla.ppo_self_bc.bc_weight.BCWeight`; 0 turns BC off
    :param bc_weight_kwargs: Arguments of a rule given by name
    :param bc_loss: ``"mse"`` on the mean (Box actions), ``"nll"``, or ``"auto"``: the former where there is a mean
    :param bc_batch_size: Demonstrated pairs beside each minibatch, by default ``batch_size``
    :param replay_buffer_kwargs: Keyword arguments of :class:`~sb3_vla.DemonstrationBuffer`
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, or the environment discounts inside its chunks by another gamma
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, "VLAPolicy": VLAPolicy}
    rollout_buffer: ChunkRolloutBuffer

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["task"] = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        ratio_per: Literal["step", "chunk"] = "step",
        backbone_learning_rate: float | Schedule | None = None,
        critic_learning_rate: float | Schedule | None = None,
        critic_warmup_steps: int = 0,
        critic_epochs: int | None = None,
        micro_batch_size: int | None = None,
        bc_weight: float | str | BCWeight = "constant",
        bc_weight_kwargs: dict[str, Any] | None = None,
        bc_loss: Literal["auto", "mse", "nll"] = "auto",
        bc_batch_size: int | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        _check_choice("ratio_per", ratio_per, ("step", "chunk"))
        _check_choice("bc_loss", bc_loss, ("auto", "mse", "nll"))
        _check_choice("normalize_advantage", normalize_advantage, (True, False, "task"))
        if critic_epochs is not None and critic_epochs < n_epochs:
            raise ValueError(f"critic_epochs={critic_epochs} is less than n_epochs={n_epochs}, in which the critic learns too")
        for name, size in (("micro_batch_size", micro_batch_size), ("bc_batch_size", bc_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,  # type: ignore[arg-type]
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.ratio_per = ratio_per
        self.backbone_learning_rate = backbone_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.critic_warmup_steps = critic_warmup_steps
        self.critic_epochs = critic_epochs
        self.micro_batch_size = micro_batch_size
        self.bc_weight = bc_weight
        self.bc_weight_kwargs = bc_weight_kwargs
        self.bc_loss = bc_loss
        self.bc_batch_size = bc_batch_size
        self.replay_buffer_kwargs = replay_buffer_kwargs or {}
        self.replay_buffer: DemonstrationBuffer | None = None
        self.num_primitive_steps = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_chunks()
        self._bc_rule = make_bc_weight(self.bc_weight, self.bc_weight_kwargs)
        has_mean = isinstance(self.action_space, spaces.Box)
        if self.bc_loss == "mse" and not has_mean:
            raise ValueError(f"bc_loss='mse' needs a Box action space, got {self.action_space}: use bc_loss='nll'")
        self._bc_uses_mean = has_mean and self.bc_loss != "nll"
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = ChunkDictRolloutBuffer if is_dict else ChunkRolloutBuffer
        elif not issubclass(self.rollout_buffer_class, ChunkRolloutBuffer):
            raise ValueError(
                f"rollout_buffer_class must be a subclass of ChunkRolloutBuffer or ChunkDictRolloutBuffer, which know how "
                f"long each chunk ran, got {self.rollout_buffer_class.__name__}"
            )
        super()._setup_model()
        if not self._bc_rule.is_off:
            self.replay_buffer = DemonstrationBuffer(
                self.observation_space, self.action_space, device=self.device, seed=self.seed, **self.replay_buffer_kwargs
            )
            self._check_frame_stack()
        if isinstance(self.policy, VLAPolicy):
            # What is saved must rebuild with no network and no checkpoint at hand
            self.policy_kwargs = {**self.policy_kwargs, **self.policy.portable_kwargs()}
            self.rollout_buffer = self._make_rollout_buffer(self.policy.stored_keys)
        if self.ratio_per == "chunk" and getattr(self.policy, "noise_correlation", 0.0) > 0:
            raise ValueError(
                f"ratio_per='chunk' multiplies the steps' likelihoods, but noise_correlation={self.policy.noise_correlation} "
                "makes the steps dependent: use ratio_per='step', or noise_correlation=0"
            )
        part_rates = {"backbone": self.backbone_learning_rate, "critic": self.critic_learning_rate}
        self._part_schedules = {name: FloatSchedule(rate) for name, rate in part_rates.items() if rate is not None}
        if self._part_schedules and not isinstance(self.policy, VLAPolicy):
            raise ValueError(
                f"{' and '.join(f'{name}_learning_rate' for name in self._part_schedules)} need VLAPolicy, whose optimizer "
                f"has a parameter group for each part; {type(self.policy).__name__} has one: use learning_rate"
            )

    def _make_rollout_buffer(self, keys: Sequence[str]) -> ChunkRolloutBuffer:
        """
        :param keys: The observations that the policy reads in training
        :return: A rollout buffer like that of SB3's ``_setup_model``, but without the observations that frozen parts of the
            policy have encoded
        """
        assert isinstance(self.observation_space, spaces.Dict) and self.rollout_buffer_class is not None
        buffer = self.rollout_buffer_class(
            self.n_steps,
            spaces.Dict({key: self.observation_space[key] for key in keys}),
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )
        assert isinstance(buffer, ChunkRolloutBuffer)
        return buffer

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, VecEnv) and (raw := keep_images_and_prompts_raw(env)):
            normalize = unwrap_vec_normalize(env)
            assert normalize is not None
            warnings.warn(
                f"VecNormalize was to normalise {raw}, but images and prompts of a vision-language-action environment stay as "
                f"they are: create it with norm_obs_keys={normalize.norm_obs_keys}, for the evaluation environment too",
                stacklevel=2,
            )
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        self._check_chunks()
        self._check_frame_stack()

    @property
    def observation_normalizer(self) -> VecNormalize | None:
        """The environment's wrapper that normalises observations, if there is one."""
        normalize = self._vec_normalize_env
        return normalize if normalize is not None and normalize.norm_obs else None

    def _check_chunks(self) -> None:
        """:raises ValueError: if the environment, where there is one, does not fit; see :func:`check_chunks`"""
        needs_chunks = issubclass(self.policy_class, VLAPolicy)
        self._chunked = self.env is not None and check_chunks(self.env, self.gamma, needs_chunks)

    def _check_frame_stack(self) -> None:
        """:raises ValueError: if frames are stacked in the wrong place; see :func:`check_frame_stack`"""
        if self.env is not None and self.replay_buffer is not None and self.observation_normalizer is not None:
            check_frame_stack(self.env)

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
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        if isinstance(self.policy, VLAPolicy):
            for nested in nested_callbacks(callback):
                if isinstance(nested, EvalCallback):
                    # Wrapped like the training environment, so that its VecNormalize can follow that one's. Which keys that
                    # may normalise has been said already.
                    keep_images_and_prompts_raw(nested.eval_env)
                    nested.eval_env = self._wrap_env(nested.eval_env)
        recorder = EpisodeRecorder(self.replay_buffer, self._stats_window_size)
        return super()._init_callback([recorder, callback], progress_bar)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.policy.optimizer.param_groups:
            if group.get("name") in self._part_schedules:
                group["lr"] = self._part_schedules[group["name"]](self._current_progress_remaining)

    def train(self) -> None:
        """
        Update the policy with the rollout buffer, and with demonstrations beside it.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        if self.normalize_advantage == "task":
            self.rollout_buffer.normalize_advantages_per_task()

        logs: _Logs = defaultdict(list)
        n_policy_epochs = 0 if self.num_timesteps <= self.critic_warmup_steps else self.n_epochs
        weights = self._train_policy(n_policy_epochs, clip_range, clip_range_vf, logs)
        for _ in range((self.critic_epochs or self.n_epochs) - n_policy_epochs):
            for rollout_data in self.rollout_buffer.get(self.batch_size, self._critic_keys):
                self._train_critic(rollout_data, clip_range_vf, logs)
        self._log_training(logs, weights, clip_range, clip_range_vf)

    def _train_policy(self, n_epochs: int, clip_range: float, clip_range_vf: float | None, logs: _Logs) -> LossWeights | None:
        """
        Epochs of policy, value function and behaviour cloning together.

        :param n_epochs: At most so many; fewer where the KL limit is passed
        :param clip_range: Clip range of the ratio
        :param clip_range_vf: Clip range of the value, or ``None``
        :param logs: Where the terms of the loss go
        :return: The weights of the losses, ``None`` without an epoch
        """
        weights: LossWeights | None = None
        for epoch in range(n_epochs):
            logs["approx_kl"].clear()
            continue_training = True
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                if weights is None:
                    weights = self._loss_weights(rollout_data, clip_range)
                continue_training = self._train_minibatch(rollout_data, clip_range, clip_range_vf, weights, logs)
                if not continue_training:
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {logs['approx_kl'][-1].item():.2f}")
                    break
            self._n_updates += 1
            if not continue_training:
                break
        return weights

    def _train_minibatch(
        self,
        rollout_data: ChunkRolloutBufferSamples,
        clip_range: float,
        clip_range_vf: float | None,
        weights: LossWeights,
        logs: _Logs,
    ) -> bool:
        """
        One optimisation step.

        :param rollout_data: The minibatch
        :param clip_range: Clip range of the ratio
        :param clip_range_vf: Clip range of the value, or ``None``
        :param weights: Weights of the PPO and the BC loss
        :param logs: Where the terms of the loss go
        :return: Whether to go on: ``False`` where the KL limit is passed, and then the step is not taken
        """
        rollout_data = self._normalize_advantages(rollout_data)
        demonstrations = None
        if weights.bc > 0:
            demonstrations = self._sample_demonstrations(self.bc_batch_size or self.batch_size)
        terms: _Terms = defaultdict(lambda: th.zeros((), device=self.device))
        self.policy.optimizer.zero_grad()
        together = False
        if demonstrations is not None and self.micro_batch_size is None and isinstance(self.policy, VLAPolicy):
            # One pass over both is quicker than two
            first, second = self.policy.encode_together(rollout_data.observations, demonstrations.observations)
            rollout_data = rollout_data._replace(observations=first)
            demonstrations = demonstrations._replace(observations=second)
            together = True
        losses: Iterable[th.Tensor] = self._losses(rollout_data, demonstrations, clip_range, clip_range_vf, weights, terms)
        for loss in [th.stack(list(losses)).sum()] if together else losses:
            loss.backward()
        for name, value in terms.items():
            logs[name].append(value)
        if self.target_kl is not None and terms["approx_kl"].item() > 1.5 * self.target_kl:
            return False
        self._step_optimizer()
        return True

    def _losses(
        self,
        rollout_data: ChunkRolloutBufferSamples,
        demonstrations: DemonstrationSamples | None,
        clip_range: float,
        clip_range_vf: float | None,
        weights: LossWeights,
        terms: _Terms,
    ) -> Iterator[th.Tensor]:
        """
        The loss of a minibatch in parts, each with a graph of its own unless the batches were encoded together.

        :param rollout_data: The minibatch
        :param demonstrations: Demonstrated pairs beside it, or ``None``
        :param clip_range: Clip range of the ratio
        :param clip_range_vf: Clip range of the value, or ``None``
        :param weights: Weights of the PPO and the BC loss
        :param terms: Where the parts of each term are added up
        :return: Iterator over scalars, whose sum is the loss
        """
        for piece in split_batch(rollout_data, self.micro_batch_size):
            ppo = self._ppo_loss(piece, clip_range, clip_range_vf)
            samples = batch_share(piece, rollout_data)
            # A ratio per step is averaged over executed steps, so pieces count by theirs
            steps = batch_share(piece, rollout_data, by_steps=self._ratio_per_step)
            loss = steps * (ppo.policy + self.ent_coef * ppo.entropy) + samples * (self.vf_coef * ppo.value)
            terms["policy_gradient_loss"] += steps * ppo.policy.detach()
            terms["entropy_loss"] += steps * ppo.entropy.detach()
            terms["value_loss"] += samples * ppo.value.detach()
            terms["approx_kl"] += samples * ppo.approx_kl
            terms["clip_fraction"] += steps * ppo.clip_fraction
            terms["loss"] += weights.ppo * loss.detach()
            yield weights.ppo * loss
        if demonstrations is None:
            return
        for demonstrated in split_batch(demonstrations, self.micro_batch_size):
            loss = batch_share(demonstrated, demonstrations, by_steps=self._bc_per_step) * self._bc_loss(demonstrated)
            terms["bc_loss"] += loss.detach()
            terms["loss"] += weights.bc * loss.detach()
            yield weights.bc * loss

    def _sample_demonstrations(self, batch_size: int) -> DemonstrationSamples:
        assert self.replay_buffer is not None
        policy = self.policy if isinstance(self.policy, VLAPolicy) else None
        return self.replay_buffer.sample(batch_size, self.observation_normalizer, policy)

    @property
    def _critic_keys(self) -> Sequence[str] | None:
        """The observations that the value function reads, ``None`` for all."""
        return ("privileged",) if isinstance(self.policy, VLAPolicy) and self.policy.privileged else None

    def _train_critic(self, rollout_data: ChunkRolloutBufferSamples, clip_range_vf: float | None, logs: _Logs) -> None:
        """
        One optimisation step of the value function alone.

        :param rollout_data: The minibatch
        :param clip_range_vf: Clip range of the value, or ``None``
        :param logs: Where the loss goes
        """
        self.policy.optimizer.zero_grad()
        predict = self.policy.critic_values if isinstance(self.policy, VLAPolicy) else self.policy.predict_values
        total = th.zeros((), device=self.device)
        for piece in split_batch(rollout_data, self.micro_batch_size):
            values = predict(piece.observations).flatten()
            loss = batch_share(piece, rollout_data) * value_loss(values, piece.old_values, piece.returns, clip_range_vf)
            loss.backward()
            total += loss.detach()
        self._step_optimizer()
        logs["value_loss"].append(total)

    def _step_optimizer(self) -> None:
        for group in self.policy.optimizer.param_groups:
            th.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
        self.policy.optimizer.step()

    @property
    def _ratio_per_step(self) -> bool:
        """Whether likelihood ratios are per primitive step."""
        return self.ratio_per == "step" and self.rollout_buffer.steps_apart

    @property
    def _bc_per_step(self) -> bool:
        """Whether the BC loss is a mean over executed primitive steps."""
        if self._bc_uses_mean:
            return self._chunked and len(self.action_space.shape or ()) == 2
        return self.rollout_buffer.steps_apart

    def _normalize_advantages(self, rollout_data: ChunkRolloutBufferSamples) -> ChunkRolloutBufferSamples:
        advantages = rollout_data.advantages
        # Normalization does not make sense if mini batchsize == 1, see SB3 issue #325
        if self.normalize_advantage and self.normalize_advantage != "task" and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return rollout_data._replace(advantages=advantages)

    def _ppo_loss(self, rollout_data: ChunkRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> PPOLoss:
        """
        :param rollout_data: A minibatch or a piece of one, advantages normalised
        :param clip_range: Clip range of the ratio
        :param clip_range_vf: Clip range of the value, or ``None``
        :return: The terms of the loss
        """
        actions = rollout_data.actions
        if isinstance(self.action_space, spaces.Discrete):
            # Convert discrete action from float to long
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(rollout_data.observations, actions)
        if entropy is None:
            # Approximate entropy when no analytical form
            entropy = -log_prob
        old_log_prob, mask = rollout_data.old_log_prob, None
        if log_prob.dim() == 2:
            mask = executed_mask(rollout_data.chunk_lengths, log_prob.shape[1])
            if self.ratio_per == "chunk":
                log_prob, old_log_prob = (log_prob * mask).sum(dim=1), (old_log_prob * mask).sum(dim=1)
                entropy = (entropy * mask).sum(dim=1)
                mask = None
        log_ratio = log_prob - old_log_prob
        # ratio between old and new policy, should be one at the first iteration
        ratio = th.exp(log_ratio)
        with th.no_grad():
            approx_kl = approximate_kl(log_ratio, mask)
            clip_fraction = masked_mean((th.abs(ratio - 1) > clip_range).float(), mask)
        return PPOLoss(
            policy=clipped_surrogate_loss(ratio, rollout_data.advantages, clip_range, mask),
            value=value_loss(values.flatten(), rollout_data.old_values, rollout_data.returns, clip_range_vf),
            entropy=-masked_mean(entropy, mask),
            approx_kl=approx_kl,
            clip_fraction=clip_fraction,
        )

    def _bc_loss(self, batch: DemonstrationSamples) -> th.Tensor:
        """
        :param batch: Demonstrated pairs
        :return: Scalar loss, over executed steps only
        """
        if self._bc_uses_mean:
            mask = executed_mask(batch.chunk_lengths, batch.actions.shape[1]) if self._bc_per_step else None
            mean = self.policy.get_distribution(batch.observations).mode()
            # A chunk from a policy that flattens its actions gets its shape back
            return bc_mse_loss(mean.reshape(batch.actions.shape), batch.actions, mask)
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        actions = batch.actions.long().flatten() if is_discrete else batch.actions.flatten(start_dim=1)
        log_prob = self.policy.evaluate_actions(batch.observations, actions)[1]
        mask = executed_mask(batch.chunk_lengths, log_prob.shape[1]) if log_prob.dim() == 2 else None
        return -masked_mean(log_prob, mask)

    def _loss_weights(self, rollout_data: ChunkRolloutBufferSamples, clip_range: float) -> LossWeights:
        """
        Ask the rule for this update's weights.

        :param rollout_data: The update's first minibatch, on which gradients are compared
        :param clip_range: Clip range of the ratio
        :return: The weights; BC counts only once there is a demonstration
        """
        if self.replay_buffer is None or len(self.replay_buffer) == 0:
            return LossWeights(ppo=1.0, bc=0.0)
        ppo_grad_norm = bc_grad_norm = None
        if self._bc_rule.needs_gradient_norms:
            piece = next(split_batch(self._normalize_advantages(rollout_data), self.micro_batch_size))
            bc_loss = self._bc_loss(self._sample_demonstrations(len(piece.advantages)))
            ppo_loss = self._ppo_loss(piece, clip_range, None).policy
            ppo_grad_norm, bc_grad_norm = self._gradient_norms(ppo_loss, bc_loss)
        success_rate = safe_mean(self.ep_success_buffer) if self.ep_success_buffer else None
        return self._bc_rule(TrainingStatistics(self.num_timesteps, success_rate, ppo_grad_norm, bc_grad_norm))

    def _gradient_norms(self, ppo_loss: th.Tensor, bc_loss: th.Tensor) -> tuple[float, float]:
        """
        :param ppo_loss: Policy loss
        :param bc_loss: BC loss
        :return: Norm of either's gradient with respect to the parameters that the BC loss trains
        """
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        bc_gradient = th.autograd.grad(bc_loss, parameters, allow_unused=True)
        ppo_gradient = th.autograd.grad(ppo_loss, parameters, allow_unused=True)
        shared = [(p, b) for p, b in zip(ppo_gradient, bc_gradient, strict=True) if p is not None and b is not None]
        ppo_norm, bc_norm = (th.cat([g.flatten() for g in gradients]).norm().item() for gradients in zip(*shared, strict=True))
        return ppo_norm, bc_norm

    def _log_training(self, logs: _Logs, weights: LossWeights | None, clip_range: float, clip_range_vf: float | None) -> None:
        for name, values in logs.items():
            if values:
                self.logger.record(
                    f"train/{name}", (values[-1] if name == "loss" else th.stack(values).double().mean()).item()
                )
        explained_var = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained_var)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        if self.replay_buffer is not None:
            if weights is not None:
                self.logger.record("train/bc_weight", weights.bc)
                self.logger.record("train/ppo_weight", weights.ppo)
            summary = self.replay_buffer.summary()
            self.logger.record("demos/pairs", len(self.replay_buffer))
            self.logger.record("demos/episodes", sum(row["episodes"] for row in summary.values()))
            if summary:
                self.logger.record("demos/mean_steps", np.mean([row["mean_steps"] for row in summary.values()]))
            for task, row in summary.items():
                if task:
                    self.logger.record(f"demos/mean_steps/{task}", row["mean_steps"], exclude=("stdout", "log"))

    def save_replay_buffer(self, path: str | os.PathLike[str]) -> None:
        """
        Save the demonstration buffer (``CheckpointCallback(save_replay_buffer=True)`` calls this).

        :param path: File, written without pickle whatever its ending
        :raises ValueError: if behaviour cloning is off
        """
        self._require_replay_buffer().save(path)

    def load_replay_buffer(self, path: str | os.PathLike[str], truncate_last_traj: bool = True) -> None:
        """
        Load the demonstration buffer, which is never part of the model's zip file.

        :param path: What :meth:`save_replay_buffer` wrote, or a file of demonstrations
        :param truncate_last_traj: Without meaning here, where episodes are whole; SB3's off-policy algorithms have it, and
            rl_zoo3 passes it
        :raises ValueError: if the file is unusable, or behaviour cloning is off
        """
        self._require_replay_buffer().load(path)

    def _require_replay_buffer(self) -> DemonstrationBuffer:
        if self.replay_buffer is None:
            raise ValueError(f"there is no demonstration buffer: bc_weight={self.bc_weight!r} turns behaviour cloning off")
        return self.replay_buffer

    def learn(
        self: SelfPPOSelfBC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PPOSelfBC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPPOSelfBC:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")

"""PPO on action chunks with self behaviour cloning."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance

from sb3_vla_envs.argument_checks import FLAG, FRACTION, SEED, Limits, check_count

from ..common.argument_checks import check_keywords, check_known
from ..common.device_check import check_device
from ..imitation.demonstration_buffer import DemonstrationBuffer
from ..imitation.demonstration_set import DemonstrationSamples
from ..policies.adapter import PolicyAdapter
from ..policies.encoded import NOT_ENCODED, PolicyInput
from ..policies.vla_policy import VLAPolicy
from .agreement import check_weights_identical
from .bc_weight import BCWeight, LossWeights, TrainingStatistics, make_bc_weight
from .chunked_ppo import ChunkedPPO
from .finite import check_gradients
from .losses import gradient_norms, ppo_loss, value_loss
from .micro_batch import Samples, batch_share, fitting_micro_batch, split_batch
from .rollout_buffer import ChunkRolloutBufferSamples

SelfPPOSelfBC = TypeVar("SelfPPOSelfBC", bound="PPOSelfBC")

# What a learning rate or clip range may become
_NOT_NEGATIVE = Limits(at_least=0)
# By name, what each optimisation step logs: tensors, as asking for their values would make a GPU wait
_Logs = dict[str, list[th.Tensor]]
_Terms = dict[str, th.Tensor]


class PPOSelfBC(ChunkedPPO):
    """
    Action-chunked PPO with self behaviour cloning (Wang et al. 2025, arXiv 2509.25718).

    SB3's :class:`~stable_baselines3.PPO` (this file follows version 2.9.2) with three additions. Timesteps are chunks, each
    discounted by ``gamma ** k`` for the k primitive steps it executed. A demonstration buffer keeps the agent's own best
    successful episodes, see :class:`~sb3_vla.DemonstrationBuffer`. A behaviour-cloning (BC) loss imitates them, with a weight
    that adapts online. With ``bc_weight=0`` and no chunks this is PPO, bit for bit; any SB3 policy, space and callback works.

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
    :param critic_warmup_steps: Timesteps during which only the value function learns, at the beginning of the model's life and
        not of each ``learn()``. VLAPolicy's value function learns alone; other policies are trained on the value loss
    :param critic_epochs: Number of epochs of the value function, by default those of the policy; what ``n_epochs``, or
        ``target_kl`` in their middle, leave of them train on the value loss alone, whatever ``vf_coef``. With VLAPolicy they
        cost little: its value function reads privileged observations, or features that are computed once for all of them
    :param noise_scale: Factor of the noise with which VLAPolicy explores (the standard deviation of a Gaussian head or of the
        steps of a flow head, the temperature of a token head), it can be a function of the current progress remaining that
        stays above 0. Wide noise finds what is far; with little, PPO improves the policy that acts without any: begin with 1
        and let it fall
    :param micro_batch_size: Accumulate the gradient over pieces of at most this size (memory); by default a minibatch and the
        demonstrated pairs beside it are one piece. ``"auto"`` becomes the largest number that fits into what is free when the
        first update begins, and stays it, in saved models too, as other pieces add up to other last digits; not with
        ``overlap``
    :param bc_weight: Weight of the BC loss: a number, a rule by name (``"constant"``, ``"tanh"``, ``"success"``,
        ``"gradient_balance"``) or a :class:`~sb3_vla.ppo_self_bc.bc_weight.BCWeight`; 0 turns BC off
    :param bc_weight_kwargs: Arguments of a rule given by name
    :param bc_loss: ``"mse"`` on the mean (Box actions), ``"nll"``, or ``"auto"``: the former where there is a mean, and with
        VLAPolicy the choice of its head
    :param bc_batch_size: Demonstrated pairs beside each minibatch, by default ``batch_size``
    :param replay_buffer_kwargs: Keyword arguments of :class:`~sb3_vla.DemonstrationBuffer`
    :param overlap: Whether the next rollout is collected, by a copy of the policy in a thread of its own, while this one is
        learned from. What acts is then the policy from before the last update, and likelihood ratios, the KL divergence that
        ``target_kl`` limits and values are held against that one. See "Not waiting" in the documentation's page on scaling
    :param shard: Whether several ranks part the layers of VLAPolicy's backbone among them while they learn, with gradients
        and the optimizer's state (FSDP), where these are too large for each to have all. One process alone has all. So it is
        where ``accelerate launch`` was told to use FSDP. See "Sharding" in the documentation's page on scaling
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run. Unlike in SB3, a GPU that is not there is an error
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises TypeError: If an argument that must be a number is not one
    :raises ValueError: If an argument is out of range, PyTorch can't compute on the device, or the environment discounts
        inside its chunks by another gamma
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**PPO.policy_aliases, "VLAPolicy": VLAPolicy}

    #: What its arguments may be; a schedule may fall to 0
    argument_limits: ClassVar[dict[str, Limits]] = {
        "learning_rate": Limits(at_least=0, or_schedule=True),
        **dict.fromkeys(
            ("backbone_learning_rate", "critic_learning_rate"), Limits(at_least=0, others=(None,), or_schedule=True)
        ),
        **dict.fromkeys(("gamma", "gae_lambda"), FRACTION),
        **dict.fromkeys(("n_steps", "batch_size", "n_epochs"), Limits(at_least=1, whole=True)),
        **dict.fromkeys(("critic_epochs", "bc_batch_size"), Limits(at_least=1, whole=True, others=(None,))),
        "micro_batch_size": Limits(at_least=1, whole=True, others=(None, "auto")),
        "clip_range": Limits(above=0, or_schedule=True),
        "clip_range_vf": Limits(above=0, others=(None,), or_schedule=True),
        "target_kl": Limits(above=0, others=(None,)),
        "noise_scale": Limits(above=0, or_schedule=True),
        "max_grad_norm": Limits(above=0, may_be_infinite=True),
        "ent_coef": Limits(),
        "vf_coef": Limits(at_least=0),
        "critic_warmup_steps": Limits(at_least=0, whole=True),
        "seed": SEED,
        "normalize_advantage": Limits(choices=(True, False, "task")),
        "ratio_per": Limits(choices=("step", "chunk")),
        "bc_loss": Limits(choices=("auto", "mse", "nll")),
        **dict.fromkeys(("overlap", "shard"), FLAG),
    }

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
        noise_scale: float | Schedule = 1.0,
        micro_batch_size: int | Literal["auto"] | None = None,
        bc_weight: float | str | BCWeight = "constant",
        bc_weight_kwargs: dict[str, Any] | None = None,
        bc_loss: Literal["auto", "mse", "nll"] = "auto",
        bc_batch_size: int | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        overlap: bool = False,
        shard: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_keywords("policy_kwargs", policy_kwargs)
        check_device(device)
        check_count("n_steps", n_steps)  # with which SB3 begins to compute
        check_count("batch_size", batch_size)
        check_count("stats_window_size", stats_window_size)
        check_keywords("rollout_buffer_kwargs", rollout_buffer_kwargs)
        if normalize_advantage and min(batch_size, n_steps * getattr(env, "num_envs", 1)) == 1:
            raise ValueError(
                f"n_steps={n_steps} and batch_size={batch_size} give batches of one, whose advantages can't be standardised: "
                "give more, or normalize_advantage=False"
            )
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
        self.noise_scale = noise_scale
        self.micro_batch_size: Any = micro_batch_size
        self.bc_weight = bc_weight
        self.bc_weight_kwargs = bc_weight_kwargs
        self.bc_loss = bc_loss
        self.bc_batch_size = bc_batch_size
        self.replay_buffer_kwargs = replay_buffer_kwargs or {}
        self.overlap = overlap
        self.shard = shard
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        """
        Here and not in the constructor, so that what is changed when a model is loaded is checked, too.

        :raises ValueError: If an argument is out of range; of schedules nothing is known before they are called
        :raises TypeError: If one is no number and must be, or ``DemonstrationBuffer`` has no such argument
        """
        for name, limits in self.argument_limits.items():
            value = getattr(self, name)
            limits.check(name, value)
            if isinstance(value, np.generic):  # SB3 wants Python's own numbers
                setattr(self, name, value.item())
        if self.critic_epochs is not None and self.critic_epochs < self.n_epochs:
            raise ValueError(
                f"critic_epochs={self.critic_epochs} is less than n_epochs={self.n_epochs}, in which the critic learns too"
            )
        if self.overlap and self.micro_batch_size == "auto":
            raise ValueError(
                "micro_batch_size='auto' measures what is free, which the rollout that overlap=True collects meanwhile "
                "changes: give a number of samples, or leave one of the two out"
            )
        self.replay_buffer_kwargs = check_keywords("replay_buffer_kwargs", self.replay_buffer_kwargs)
        own = ("observation_space", "action_space", "gamma", "device", "seed")
        check_known("replay_buffer_kwargs", self.replay_buffer_kwargs, DemonstrationBuffer, own)

    def _setup_model(self) -> None:
        self._check_arguments()
        self._bc_rule = make_bc_weight(self.bc_weight, self.bc_weight_kwargs)
        super()._setup_model()
        if not self._bc_rule.is_off:
            self.replay_buffer = DemonstrationBuffer(
                self.adapter.read_space,
                self.action_space,
                gamma=self.gamma,
                device=self.device,
                seed=self.rank_seed,
                **self.replay_buffer_kwargs,
            )
        if self.env is not None:
            self._check_frame_stack(self.env, self._env_normalized_keys)
        if self.shard or self.is_sharded:
            self._check_sharding()
        if self.ratio_per == "chunk" and not self.adapter.steps_are_independent:
            raise ValueError(
                "ratio_per='chunk' multiplies the steps' likelihoods, but noise_correlation makes the steps dependent: use "
                "ratio_per='step', or head_kwargs=dict(noise_correlation=0)"
            )
        self._noise_schedule = FloatSchedule(self.noise_scale)
        self.argument_limits["noise_scale"].check("noise_scale at the end of the training", self._noise_schedule(0.0))
        self._scale_noise(self.adapter)
        part_rates = {"backbone": self.backbone_learning_rate, "critic": self.critic_learning_rate}
        self._part_schedules = {name: FloatSchedule(rate) for name, rate in part_rates.items() if rate is not None}
        if missing := [name for name in self._part_schedules if name not in self.adapter.parts]:
            raise ValueError(
                f"{' and '.join(f'{name}_learning_rate' for name in missing)} need VLAPolicy, whose optimizer "
                f"has a parameter group for each part; {type(self.policy).__name__} has one: use learning_rate"
            )

    def _check_sharding(self) -> None:
        """:raises ValueError: If another argument does not go with ``shard``"""
        others = {
            "overlap=True": self.overlap,
            "micro_batch_size='auto'": self.micro_batch_size == "auto",
            f"bc_weight={self.bc_weight!r}, which compares gradients": self._bc_rule.needs_gradient_norms,
        }
        if wrong := [text for text, is_given in others.items() if is_given]:
            raise ValueError(f"shard=True does not go with {' nor with '.join(wrong)}: leave one of them out")
        self.adapter.layers_to_shard()

    def _scale_noise(self, adapter: PolicyAdapter) -> None:
        adapter.scale_noise(self._scheduled("noise_scale", self._noise_schedule, self.argument_limits["noise_scale"]))

    def _prepare_to_act(self, adapter: PolicyAdapter) -> None:
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._scale_noise(adapter)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        self._scheduled("learning_rate", self.lr_schedule)
        super()._update_learning_rate(optimizers)
        for group in self.policy.optimizer.param_groups:
            if group.get("name") in self._part_schedules:
                group["lr"] = self._scheduled(f"{group['name']}_learning_rate", self._part_schedules[group["name"]])

    def _scheduled(self, name: str, schedule: Schedule, limits: Limits = _NOT_NEGATIVE) -> float:
        """
        :param name: Of an argument
        :param schedule: What it is
        :param limits: What it may become
        :return: Its value now
        :raises ValueError: If it is not finite, or beyond its limits
        """
        value = schedule(self._current_progress_remaining)
        limits.check(f"{name} at a progress of {1 - self._current_progress_remaining:.3g}", value)
        return value

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_part_schedules", "_noise_schedule", "_bc_rule"]  # made again

    def train(self) -> None:
        """
        Update the policy with the rollout buffer, and with demonstrations beside it.

        :raises FloatingPointError: If a gradient is not finite; the weights are those of before
        :raises ValueError: If a schedule gives what a learning rate or clip range can't be
        """
        self._fit_micro_batch()
        self._rate_demonstrations()  # by the critic as it acts
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self._scheduled("clip_range", self.clip_range)  # type: ignore[arg-type]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self._scheduled("clip_range_vf", self.clip_range_vf)  # type: ignore[arg-type]
        if self.normalize_advantage == "task":
            self.rollout_buffer.normalize_advantages_per_task(self.ranks)

        logs: _Logs = defaultdict(list)
        weights: LossWeights | None = None
        continue_training = True
        n_policy_epochs = 0 if self.lifetime_timesteps <= self.critic_warmup_steps else self.n_epochs
        n_critic_epochs = self.critic_epochs or (0 if n_policy_epochs else self.n_epochs)  # those of the policy come off
        for epoch in range(n_policy_epochs):
            logs["approx_kl"].clear()
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                rollout_data = self._normalize_advantages(rollout_data)
                weights = weights or self._loss_weights(rollout_data, clip_range)
                demonstrations = self._sample_demonstrations(self.bc_batch_size or self.batch_size) if weights.bc > 0 else None
                self.policy.optimizer.zero_grad()
                terms = self._backward(rollout_data, demonstrations, clip_range, clip_range_vf, weights)
                for name, value in terms.items():
                    logs[name].append(value)
                continue_training = not self._exceeds_target_kl(terms["approx_kl"], epoch)
                if not continue_training:
                    break
                self._step_optimizer()
            self._n_updates += 1
            if not continue_training:
                break
            n_critic_epochs -= 1
        logs["value_loss"] += self._train_critic_alone(n_critic_epochs, clip_range_vf)
        check_weights_identical(self.ranks, self.policy)
        self._log_training(logs, weights, clip_range, clip_range_vf)

    def _fit_micro_batch(self) -> None:
        """Find the largest micro-batch, once, if that is wanted."""
        if self.micro_batch_size != "auto":
            return
        imitates = self.replay_buffer is not None
        n_samples = self.batch_size + imitates * (self.bc_batch_size or self.batch_size)
        self.policy.set_training_mode(True)
        fitting = fitting_micro_batch(self.adapter, self.rollout_buffer, n_samples, imitates, self.ratio_per == "step")
        self.policy.set_training_mode(False)
        size = min(self.ranks.all_gather_object(fitting))
        self.logger.log(f"micro_batch_size='auto': {size} of {n_samples} samples at a time fit into memory")
        self.micro_batch_size = None if size == n_samples else size

    def _rate_demonstrations(self) -> None:
        rollout_size = self.n_steps * self.n_envs * self.ranks.size
        # A critic that has not learned yet would drop good demonstrations for good
        if self.replay_buffer is None or self.lifetime_timesteps <= max(self.critic_warmup_steps, rollout_size):
            return
        size = self.micro_batch_size or self.batch_size  # in whose memory an update has room
        keys, host_keys = self.adapter.critic_keys, self.adapter.host_keys
        self.replay_buffer.rate(self._agreed_values, self._learned_normalizer, self._cache, host_keys, keys, size)

    def _agreed_values(self, batch: PolicyInput) -> th.Tensor:
        values = self.adapter.critic_values(batch)
        self.ranks.broadcast_([values])  # else another processor's rounding could make the buffers of two ranks differ
        return values

    def _exceeds_target_kl(self, approx_kl: th.Tensor, epoch: int) -> bool:
        if self.target_kl is None or not approx_kl.item() > 1.5 * self.target_kl:  # NaN is for who checks the gradients
            return False
        if self.verbose >= 1:
            print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl.item():.2f}")
        return True

    def _normalize_advantages(self, rollout_data: ChunkRolloutBufferSamples) -> ChunkRolloutBufferSamples:
        advantages = rollout_data.advantages
        # Normalization does not make sense if mini batchsize == 1, see SB3 issue #325
        if self.normalize_advantage and self.normalize_advantage != "task" and len(advantages) * self.ranks.size > 1:
            of_all = self.ranks.all_gather(advantages)
            advantages = (advantages - of_all.mean()) / (of_all.std() + 1e-8)
        return rollout_data._replace(advantages=advantages)

    def _backward(
        self,
        rollout_data: ChunkRolloutBufferSamples,
        demonstrations: DemonstrationSamples | None,
        clip_range: float,
        clip_range_vf: float | None,
        weights: LossWeights,
    ) -> _Terms:
        """
        The gradient of a minibatch's loss.

        :param rollout_data: The minibatch
        :param demonstrations: Demonstrated pairs beside it, or ``None``
        :param clip_range: Clip range of the ratio
        :param clip_range_vf: Clip range of the value, or ``None``
        :param weights: Weights of the PPO and the BC loss
        :return: The terms of the loss
        """
        together = None
        if demonstrations is not None and self.micro_batch_size is None:
            # One pass over both is quicker than two, but then they have one graph
            together = self.adapter.encode_together(self._read(rollout_data), demonstrations.policy_input)
        if together is not None:
            seen, demonstrated = together
            rollout_data = rollout_data._replace(observations=seen.observations, encoded=seen.encoded)
            demonstrations = demonstrations._replace(  # type: ignore[union-attr]
                observations=demonstrated.observations, encoded=demonstrated.encoded
            )
        terms: _Terms = defaultdict(lambda: th.zeros((), device=self.device))
        losses = self._losses(rollout_data, demonstrations, clip_range, clip_range_vf, weights, terms)
        for loss in losses if together is None else [th.stack(list(losses)).sum()]:
            self._sharding.backward(loss)
        self._add_up_gradients(*terms.values())
        return terms

    def _read(self, batch: ChunkRolloutBufferSamples) -> PolicyInput:
        return batch.policy_input._replace(needed=self.adapter.needed_features(batch.extras))

    def _add_up_gradients(self, *terms: th.Tensor) -> None:
        """
        :param terms: What is added up over the ranks like the gradients, in place
        """
        if self.ranks.size > 1:
            self._sharding.add_up_gradients(self.ranks, self.policy, terms)

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
        ratio_per_step = self.ratio_per == "step"
        # Which part of the minibatch of all ranks this one's is
        samples_here, steps_here = self._shares(rollout_data, self._weighs_steps)
        for piece in split_batch(rollout_data, self.micro_batch_size):
            evaluation = self.adapter.evaluate(self._read(piece), piece.actions, piece.extras)
            ppo = ppo_loss(evaluation, piece, clip_range, clip_range_vf, ratio_per_step)
            samples = samples_here * batch_share(piece, rollout_data)
            steps = steps_here * batch_share(piece, rollout_data, self._weighs_steps)
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
        demonstrations_here = self._shares(demonstrations, self.adapter.imitates_steps)[1]
        for demonstrated in split_batch(demonstrations, self.micro_batch_size):
            share = demonstrations_here * batch_share(demonstrated, demonstrations, self.adapter.imitates_steps)
            loss = share * self._bc_loss(demonstrated)
            terms["bc_loss"] += loss.detach()
            terms["loss"] += weights.bc * loss.detach()
            yield weights.bc * loss

    @property
    def _weighs_steps(self) -> bool:
        """Whether a batch counts by its executed steps, over which a ratio per step is averaged."""
        return self.ratio_per == "step" and self.rollout_buffer.steps_apart

    def _shares(self, batch: Samples, by_steps: bool) -> tuple[float, float | th.Tensor]:
        """
        :param batch: A batch of this rank, of as many samples as those of the others
        :param by_steps: Whether each executed primitive step counts the same, instead of each chunk
        :return: How much its mean counts in the mean over all ranks, sample by sample, and as ``by_steps`` says
        """
        samples = 1 / self.ranks.size
        return samples, self.ranks.share(batch.chunk_lengths.sum()) if by_steps else samples

    def _bc_loss(self, batch: DemonstrationSamples) -> th.Tensor:
        return self.adapter.imitation_loss(batch.policy_input, batch.actions, batch.chunk_lengths)

    def _train_critic_alone(self, n_epochs: int, clip_range_vf: float | None) -> list[th.Tensor]:
        """
        :param n_epochs: Epochs over the rollout
        :param clip_range_vf: Clip range of the value, or ``None``
        :return: The loss of each optimisation step
        """
        keys, encoded = self.adapter.critic_keys, NOT_ENCODED
        if n_epochs > 1 and self.adapter.critic_reads_features:  # once, as the backbone does not learn meanwhile
            keys, size = (), self.micro_batch_size or self.batch_size
            encoded = self.rollout_buffer.encode(self.adapter.critic_features, size)
        epochs = (self.rollout_buffer.get(self.batch_size, keys, encoded) for _ in range(n_epochs))
        return [self._train_critic(rollout_data, clip_range_vf) for epoch in epochs for rollout_data in epoch]

    def _train_critic(self, rollout_data: ChunkRolloutBufferSamples, clip_range_vf: float | None) -> th.Tensor:
        """
        One optimisation step of the value function alone.

        :param rollout_data: The minibatch
        :param clip_range_vf: Clip range of the value, or ``None``
        :return: Its loss
        """
        self.policy.optimizer.zero_grad()
        total = th.zeros((), device=self.device)
        for piece in split_batch(rollout_data, self.micro_batch_size):
            values = self.adapter.critic_values(piece.policy_input).flatten()
            share = batch_share(piece, rollout_data) / self.ranks.size
            loss = share * value_loss(values, piece.old_values, piece.returns, clip_range_vf)
            self._sharding.backward(loss)
            total += loss.detach()
        self._add_up_gradients(total)
        self._step_optimizer()
        return total

    def _step_optimizer(self) -> None:
        norms = {
            group.get("name", "policy"): self._sharding.clip_gradients(group["params"], self.max_grad_norm)
            for group in self.policy.optimizer.param_groups
            if any(parameter.grad is not None for parameter in group["params"])  # the critic may learn alone
        }
        check_gradients(norms)
        self.policy.optimizer.step()
        self._sharding.hand_out()

    def _sample_demonstrations(self, batch_size: int) -> DemonstrationSamples:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, self._learned_normalizer, self._cache, self.adapter.host_keys)

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
            piece = next(split_batch(rollout_data, self.micro_batch_size))
            demonstrations = self._sample_demonstrations(len(piece.advantages))
            bc_loss = self._shares(demonstrations, self.adapter.imitates_steps)[1] * self._bc_loss(demonstrations)
            evaluation = self.adapter.evaluate(self._read(piece), piece.actions, piece.extras)
            policy_loss = ppo_loss(evaluation, piece, clip_range, None, self.ratio_per == "step").policy
            losses = [self._shares(piece, self._weighs_steps)[1] * policy_loss, bc_loss]
            ppo_grad_norm, bc_grad_norm = gradient_norms(losses, self.policy.parameters(), self.ranks)
        success_rate = None if self._recorder is None else self._recorder.success_rate
        weights = self._bc_rule(TrainingStatistics(self.lifetime_timesteps, success_rate, ppo_grad_norm, bc_grad_norm))
        if not np.isfinite([weights.ppo, weights.bc]).all():
            raise FloatingPointError(f"the rule {self._bc_rule} of the BC weight gave {weights}: it must be finite")
        return weights

    def _log_training(self, logs: _Logs, weights: LossWeights | None, clip_range: float, clip_range_vf: float | None) -> None:
        for name, values in logs.items():
            if values:
                self.logger.record(
                    f"train/{name}", (values[-1] if name == "loss" else th.stack(values).double().mean()).item()
                )
        expected = self.ranks.all_gather_object((self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()))
        values_and_returns = (np.concatenate(parts) for parts in zip(*expected, strict=True))
        self.logger.record("train/explained_variance", explained_variance(*values_and_returns))
        for name, metric in self.adapter.metrics().items():
            self.logger.record(f"train/{name}", metric)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        if self.replay_buffer is not None:
            if weights is not None:
                self.logger.record("train/bc_weight", weights.bc)
                self.logger.record("train/ppo_weight", weights.ppo)
            self._log_demonstrations(self.replay_buffer)

    def _log_demonstrations(self, replay_buffer: DemonstrationBuffer) -> None:
        summary = replay_buffer.summary()
        self.logger.record("demos/pairs", len(replay_buffer))
        self.logger.record("demos/episodes", sum(row["episodes"] for row in summary.values()))
        if summary:
            self.logger.record("demos/mean_steps", np.mean([row["mean_steps"] for row in summary.values()]))
        for task, row in summary.items():
            if task:
                self.logger.record(f"demos/mean_steps/{task}", row["mean_steps"], exclude=("stdout", "log"))

    def learn(
        self: SelfPPOSelfBC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PPOSelfBC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPPOSelfBC:
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        finally:
            self._leave_rollout_ahead()

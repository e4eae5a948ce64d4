"""Supervised fine-tuning as the first thing of a training run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_vla_envs import Demonstration, collect_demonstrations, load_demonstrations
from sb3_vla_envs.argument_checks import FLAG, SEED, Limits, check_count

from ..imitation.sft import check_sft_arguments, fine_tune
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC


class SFTCallback(BaseCallback):
    """
    Before post-training begins, fine-tunes VLAPolicy on demonstrations and puts them into the demonstration buffer: the whole
    path in one ``learn()``, e.g. from a configuration of the zoo. A policy that has been fine-tuned or trained before is left
    alone.

    The demonstrations are those of a file, or of the experts of the training environment's suite, collected with the settings
    that it was made with (:func:`~sb3_vla.make_vla_vec_env`, :func:`sb3_vla_envs.make_vla_env`, ``gymnasium.make``). Of the
    wrappers around that, ``VecFrameStack`` and ``VecNormalize`` are followed, others are not. Parts of the backbone that are
    frozen in post-training take part in the fine-tuning. Of several ranks each does the same, and all go on with what the
    first one made.

    :param n_per_task: Demonstrations that the experts give of each task
    :param demonstrations: File of demonstrations (``sb3-vla demos``, :func:`sb3_vla_envs.save_demonstrations`) instead
    :param action_noise: Standard deviation of the noise on the expert's executed actions
    :param every_step: Whether the experts' demonstrations are observed before every primitive step, see
        :func:`sb3_vla_envs.collect_demonstrations`
    :param n_workers: Processes that collect
    :param n_epochs: Passes over the demonstrations
    :param batch_size: Pairs in a batch
    :param learning_rate: Peak learning rate
    :param max_shift: Augmentation: each image is shifted by up to so many pixels, at random
    :param auxiliary_targets: Numbers that the policy's features are to know, too, see :func:`~sb3_vla.fine_tune`
    :param seed: Seed of goals, noise, split and order, by default the model's
    :param verbose: 1 shows progress bars
    :raises TypeError: If an argument that must be a number is not one, or ``auxiliary_targets`` is no dictionary
    :raises ValueError: If one is out of range
    """

    def __init__(
        self,
        n_per_task: int = 50,
        demonstrations: str | Path | None = None,
        action_noise: float = 0.1,
        every_step: bool = False,
        n_workers: int = 1,
        n_epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        max_shift: int = 4,
        auxiliary_targets: Mapping[str, Sequence[int] | None] | None = None,
        seed: int | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        check_count("n_per_task", n_per_task)
        check_count("n_workers", n_workers)
        Limits(at_least=0).check("action_noise", action_noise)
        self.sft_kwargs: dict[str, Any] = {
            "n_epochs": n_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_shift": max_shift,
            "auxiliary_targets": auxiliary_targets,
        }
        check_sft_arguments(self.sft_kwargs)
        FLAG.check("every_step", every_step)
        SEED.check("seed", seed)
        self.n_per_task = n_per_task
        self.demonstrations = demonstrations
        self.action_noise = action_noise
        self.every_step = every_step
        self.n_workers = n_workers
        self.seed = seed

    def _on_training_start(self) -> None:
        model = self.model
        if not (isinstance(model, PPOSelfBC) and isinstance(model.policy, VLAPolicy)):
            raise ValueError(
                f"SFTCallback fine-tunes the VLAPolicy of a PPOSelfBC, got {type(model).__name__} with "
                f"{type(model.policy).__name__}"
            )
        if model._n_updates > 0 or model.policy.is_fine_tuned:
            return
        if model.is_sharded:
            raise ValueError(
                "SFTCallback can't fine-tune layers that are sharded: call fine_tune(model, demonstrations) before learn(), "
                "or go on from what `sb3-vla sft` made"
            )
        seed = self.seed if self.seed is not None else model.seed or 0
        demonstrations = self._demonstrations(seed)
        student = _unfrozen_copy(model) if model.policy.frozen else model
        fine_tune(student, demonstrations, **self.sft_kwargs, seed=seed, progress=self.verbose > 0)
        if student is not model:
            model.policy.load_state_dict(student.policy.state_dict())
        if model.replay_buffer is not None:
            model.replay_buffer.extend(demonstrations)
        model.share_with_ranks()
        if (normalizer := model.get_vec_normalize_env()) is not None:  # whose statistics are others than at the reset
            first: Any = normalizer.normalize_obs(normalizer.get_original_obs())
            model._last_obs = {**model._last_obs, **{key: first[key] for key in model.normalized_keys}}  # type: ignore[dict-item]

    def _demonstrations(self, seed: int) -> list[Demonstration]:
        """
        :param seed: Seed of goals and noise
        :return: What to imitate
        :raises ValueError: If there is no file, and the environment is not of a suite that has experts
        """
        if self.demonstrations is not None:
            return load_demonstrations(self.demonstrations)
        spec = self.training_env.get_attr("spec", indices=0)[0]
        settings = {} if spec is None else {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
        if "tasks" not in settings:
            raise ValueError(
                "SFTCallback asks the expert of the environment's suite for demonstrations, but the environment was not made "
                "by sb3_vla_envs.make_vla_env, sb3_vla.make_vla_vec_env or gymnasium.make with an id of a suite: give it "
                "demonstrations=FILE, as sb3_vla_envs.save_demonstrations writes it"
            )
        # Each of several environments may have a part of the tasks only
        settings["tasks"] = settings.get("task_ids") or settings["tasks"]
        return collect_demonstrations(
            n_per_task=self.n_per_task,
            action_noise=self.action_noise,
            every_step=self.every_step,
            n_workers=self.n_workers,
            seed=seed,
            progress=self.verbose > 0,
            **settings,
        )

    def _on_step(self) -> bool:
        return True


def _unfrozen_copy(model: PPOSelfBC) -> PPOSelfBC:
    """The model as it would be had none of its parts been frozen, in the same environment, which is left as it is."""
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=model.get_env(), device=model.device, seed=None, policy_kwargs={"frozen": ()})

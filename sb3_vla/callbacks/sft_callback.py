"""Supervised fine-tuning as the first thing of a training run."""

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_vla_envs import Demonstration, collect_demonstrations, load_demonstrations

from ..imitation.sft import fine_tune
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC


class SFTCallback(BaseCallback):
    """
    Before post-training begins, fine-tunes VLAPolicy on demonstrations and puts them into the demonstration buffer: the whole
    path in one ``learn()``, e.g. from a configuration of the zoo. A policy that has been fine-tuned or trained before is left
    alone.

    The demonstrations are those of a file, or of MetaWorld's scripted experts, collected with the arguments of the training
    environment (``MetaWorldVLA/...``, :func:`~sb3_vla.make_vla_vec_env`), but without further wrappers around that. Parts of
    the backbone that are frozen in post-training take part in the fine-tuning.

    :param n_per_task: Scripted-expert demonstrations of each task
    :param demonstrations: File of demonstrations (``sb3-vla demos``, :func:`sb3_vla_envs.save_demonstrations`) instead
    :param action_noise: Standard deviation of the noise on the expert's executed actions
    :param n_workers: Processes that collect
    :param n_epochs: Passes over the demonstrations
    :param batch_size: Pairs in a batch
    :param learning_rate: Peak learning rate
    :param seed: Seed of goals, noise, split and order, by default the model's
    :param verbose: 1 shows progress bars
    """

    def __init__(
        self,
        n_per_task: int = 50,
        demonstrations: str | Path | None = None,
        action_noise: float = 0.1,
        n_workers: int = 1,
        n_epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        seed: int | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        self.n_per_task = n_per_task
        self.demonstrations = demonstrations
        self.action_noise = action_noise
        self.n_workers = n_workers
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed

    def _on_training_start(self) -> None:
        model = self.model
        if not (isinstance(model, PPOSelfBC) and isinstance(model.policy, VLAPolicy)):
            raise ValueError(
                f"SFTCallback fine-tunes the VLAPolicy of a PPOSelfBC, got {type(model).__name__} with "
                f"{type(model.policy).__name__}"
            )
        policy = model.policy
        if model._n_updates > 0 or policy.state_normalizer.is_fitted:
            return
        seed = self.seed if self.seed is not None else model.seed or 0
        demonstrations = self._demonstrations(seed)
        # A twin of which all is trained
        twin = VLAPolicy(**{**policy._get_constructor_parameters(), "frozen": ()}).to(policy.device)
        twin.load_state_dict(policy.state_dict())
        fine_tune(
            twin,
            demonstrations,
            n_epochs=self.n_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=seed,
            progress=self.verbose > 0,
        )
        policy.load_state_dict(twin.state_dict())
        if model.replay_buffer is not None:
            model.replay_buffer.extend(demonstrations)

    def _demonstrations(self, seed: int) -> list[Demonstration]:
        """
        :param seed: Seed of goals and noise
        :return: What to imitate
        :raises ValueError: if there is no file, and the environment has no scripted experts
        """
        if self.demonstrations is not None:
            return load_demonstrations(self.demonstrations)
        spec = self.training_env.get_attr("spec", indices=0)[0]
        env_kwargs = {} if spec is None else dict(spec.kwargs)
        if "tasks" not in env_kwargs:
            raise ValueError(
                "the environment is none of MetaWorldVLA/..., whose scripted experts SFTCallback knows: give it "
                "demonstrations=FILE, as sb3_vla_envs.save_demonstrations writes it"
            )
        env_kwargs.pop("render_mode", None)
        # Each of several environments may have a part of the tasks only
        env_kwargs["tasks"] = env_kwargs.get("task_ids") or env_kwargs["tasks"]
        return collect_demonstrations(
            n_per_task=self.n_per_task,
            action_noise=self.action_noise,
            n_workers=self.n_workers,
            seed=seed,
            progress=self.verbose > 0,
            **env_kwargs,
        )

    def _on_step(self) -> bool:
        return True

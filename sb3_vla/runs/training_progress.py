"""How far a training has come, for who watches it."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from sb3_vla_envs.progress import Progress


class TrainingProgress(BaseCallback):
    """
    Shows timesteps done, the success of the last episodes, the primitive steps to it and the time left.

    :param progress: Where it shows; whoever made it closes it, also after an error
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def _on_step(self) -> bool:
        self.progress.update(self.num_timesteps - self.progress.done)
        return True

    def _on_rollout_end(self) -> None:
        successes = self.model.ep_success_buffer
        steps = self.logger.name_to_value.get("rollout/steps_to_success")
        self.progress.update(0, success=safe_mean(successes) if successes else None, steps=steps)

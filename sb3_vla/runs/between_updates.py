"""Things to do now and then in the course of a training, between two updates."""

from abc import ABC, abstractmethod

from stable_baselines3.common.callbacks import BaseCallback


class BetweenUpdates(BaseCallback, ABC):
    """
    Does something after at least so many timesteps, at the one moment at which the last rollout has been learned from and the
    next one has not begun, and at the end of a training that comes to it.

    A subclass implements :meth:`act`.

    :param every: Timesteps between two times
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def _on_training_start(self) -> None:
        self.last = self.num_timesteps

    @property
    def is_due(self) -> bool:
        """Whether it is time, at the end of a rollout, to do something after the update."""
        return self.num_timesteps - self.last >= self.every

    def _on_rollout_start(self) -> None:
        self._act_after(self.every)

    def _on_training_end(self) -> None:
        if self.num_timesteps >= self.model._total_timesteps:
            self._act_after(1)  # not if nothing was done: resuming a run that is complete changes nothing

    def _on_step(self) -> bool:
        return True

    def _act_after(self, timesteps: int) -> None:
        if self.num_timesteps - self.last >= timesteps:
            self.act()
            self.last = self.num_timesteps

    @abstractmethod
    def act(self) -> None:
        """Do it."""

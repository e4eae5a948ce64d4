"""PPO on action chunks with self behaviour cloning."""

from .ppo_self_bc import PPOSelfBC

__all__ = ["PPOSelfBC"]

"""rl-baselines3-zoo with PPOSelfBC, chunks and our environments: ``python -m sb3_vla.zoo COMMAND``, with its arguments."""

"""Hyperparameters for rl-baselines3-zoo: one YAML file an algorithm, keyed by environment id."""

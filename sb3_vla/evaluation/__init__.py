"""Evaluation and films of a policy."""

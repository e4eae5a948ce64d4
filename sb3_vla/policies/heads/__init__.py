"""Heads that turn a backbone's features into a distribution over action chunks."""

"""Demonstrations to learn from: sets, the buffer of good episodes, supervised fine-tuning."""

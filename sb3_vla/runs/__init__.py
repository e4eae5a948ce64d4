"""Runs: command line, configuration, the stages of a run, checkpoints."""

"""The version, for a command line that imports nothing else."""

__version__ = "0.1.0"

"""Worker processes fork from one that has imported sb3_vla once, from the first test on: each would import torch otherwise."""

from sb3_vla.vec_env.make import preload_workers

preload_workers()

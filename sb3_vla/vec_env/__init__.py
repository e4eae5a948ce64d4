"""Many environments at a time."""

from .make import make_vec_env_from_fns, make_vla_vec_env, preload_workers
from .shared_memory_vec_env import SharedMemoryVecEnv

__all__ = ["SharedMemoryVecEnv", "make_vec_env_from_fns", "make_vla_vec_env", "preload_workers"]

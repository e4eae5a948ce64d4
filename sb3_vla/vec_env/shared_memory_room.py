"""Whether there is room for shared memory, of which a container may have little: using more than there is ends a process."""

import errno
import math
import os
import shutil
from pathlib import Path

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.util import obs_space_info

# Where Linux keeps it
_MEMORY = Path("/dev/shm")
_CACHE_LINE = 64  # bytes


def step_sizes(n_envs: int, observation_space: spaces.Space) -> list[int]:
    """
    :param n_envs: Number of environments
    :param observation_space: Of one environment
    :return: Bytes of each part of what they observe and are rewarded with; each begins at a cache line of its own
    """
    _, shapes, dtypes = obs_space_info(observation_space)
    n_bytes = [math.prod(shapes[key]) * np.dtype(dtypes[key]).itemsize for key in shapes]
    n_bytes += [np.dtype(np.float32).itemsize, np.dtype(bool).itemsize]
    return [math.ceil(n_envs * each / _CACHE_LINE) * _CACHE_LINE for each in n_bytes]


def check_room(needed: int) -> None:
    """
    :param needed: Bytes
    :raises RuntimeError: If there are not as many
    """
    if not _MEMORY.is_dir():
        return
    available = shutil.disk_usage(_MEMORY).free
    if needed > available:
        raise _lack(needed, available)


def reserve(name: str, needed: int) -> None:
    """
    Have the operating system give the memory now, so that nobody else gets it before it is written to.

    :param name: Of the shared memory
    :param needed: Bytes
    :raises RuntimeError: If there are not as many
    """
    path = _MEMORY / name.lstrip("/")
    if not path.exists() or not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, needed)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _lack(needed, shutil.disk_usage(_MEMORY).free) from error
    finally:
        os.close(descriptor)


def _lack(needed: int, available: int) -> RuntimeError:
    return RuntimeError(
        f"the environments' observations need {needed} bytes of shared memory, and {_MEMORY} has {available} left: start the "
        "container with more (docker run --shm-size=1g), or take fewer environments or smaller pictures"
    )

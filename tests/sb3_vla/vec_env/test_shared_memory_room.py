import errno
import os
from collections import namedtuple

import numpy as np
import pytest
from gymnasium import spaces

from sb3_vla import SharedMemoryVecEnv
from sb3_vla.vec_env import shared_memory_room
from sb3_vla.vec_env.shared_memory_room import check_room, step_sizes
from sb3_vla.vec_env.shared_memory_worker import SharedSteps

SPACE = spaces.Dict({"image": spaces.Box(0, 255, (10, 10, 3), np.uint8), "state": spaces.Box(-1, 1, (4,), np.float32)})
# Of 3 environments: 900 bytes of images, 48 of states, 12 of rewards and 3 of ends, each in whole lines of 64 bytes
NEEDED = 960 + 64 + 64 + 64


def test_sizes_by_hand():
    assert sorted(step_sizes(3, SPACE)) == [64, 64, 64, 960]


@pytest.fixture
def docker(monkeypatch):
    """64 MB of shared memory, most of it in use."""
    usage = namedtuple("usage", "total used free")(64_000_000, 63_999_900, 100)
    monkeypatch.setattr(shared_memory_room.shutil, "disk_usage", lambda path: usage)


def test_what_does_not_fit_is_an_error_with_both_numbers_and_the_mend(docker):
    message = rf"need {NEEDED} bytes of shared memory, and /dev/shm has 100 left: .*docker run --shm-size"
    with pytest.raises(RuntimeError, match=message):
        SharedSteps(3, SPACE)
    check_room(100)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs Linux")
def test_memory_that_others_take_meanwhile_is_an_error_that_leaves_nothing(monkeypatch, no_memory_left):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_memory_room.os, "posix_fallocate", full)
    with pytest.raises(RuntimeError, match=f"need {NEEDED} bytes of shared memory"):
        SharedSteps(3, SPACE)


def test_a_vectorised_environment_says_so_and_ends_its_workers(docker, make_env):
    with pytest.raises(RuntimeError, match="docker run --shm-size"):
        SharedMemoryVecEnv([make_env] * 4, n_workers=1)

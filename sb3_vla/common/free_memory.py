"""How much memory a device has left."""

import os
from pathlib import Path

import torch as th

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: th.device) -> int:
    """
    :param device: A GPU, or the CPU
    :return: Bytes that this process can still take there; of the CPU's, those of the machine's, or of the container's
    """
    if device.type == "cuda":
        free, _ = th.cuda.mem_get_info(device)
        # What PyTorch holds, but no tensor uses
        return free + th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device)
    if not _MEMINFO.is_file():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used, details = (
            (_CGROUP / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current", "stat")
        )
        # Of files that were read the kernel keeps what nobody else needs
        kept = int(dict(line.split() for line in details.splitlines()).get("inactive_file", 0))
        return max(0, min(free, int(limit) - int(used) + kept))
    except (OSError, ValueError):  # no container, or one without a limit
        return free

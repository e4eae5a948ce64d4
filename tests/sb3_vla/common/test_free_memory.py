import os

import pytest
import torch as th

from sb3_vla.common import free_memory as module
from sb3_vla.common.free_memory import free_memory

CPU = th.device("cpu")


def test_it_is_a_part_of_what_the_machine_has():
    assert 2**20 < free_memory(CPU) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limit", "kept", "expected"),
    [
        ("max", 0, 2048 * 1024),
        ("1000000", 0, 900_000),
        ("4000000", 0, 2048 * 1024),
        ("10", 0, 0),
        ("1000000", 30_000, 930_000),  # of files that were read
    ],
)
def test_a_container_has_what_it_may_take(limit, kept, expected, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:    2048 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("100000\n")
    (tmp_path / "memory.stat").write_text(f"anon 5000\ninactive_file {kept}\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    assert free_memory(CPU) == expected

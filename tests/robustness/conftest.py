"""What the attacks share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .lossy_disk import LossyDisk


@pytest.fixture
def lossy_disk(tmp_path: Path) -> Callable[[], LossyDisk]:
    """Makes a :class:`~.lossy_disk.LossyDisk` of the folder ``tmp_path / "disk"`` as it is then."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    (tmp_path / "disk").mkdir()
    return lambda: LossyDisk(tmp_path / "disk")

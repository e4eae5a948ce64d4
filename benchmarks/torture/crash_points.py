"""A power cut at each write, sync and rename of a training that saves itself again and again."""

import sys
import tempfile
from pathlib import Path

from reading import check_written
from run_settings import ROOT, make_model
from tally import Tally
from writer import write

sys.path.append(str(ROOT))
from tests.robustness.lossy_disk import LossyDisk


def crash_everywhere(n: int) -> Tally:
    """
    :param n: How many different contents of the disk there shall be at least
    :return: What came of them
    """
    tally, model = Tally("power cut at each write, sync and rename"), make_model()
    with tempfile.TemporaryDirectory() as temporary:
        folder, restored = Path(temporary) / "disk", Path(temporary) / "restored"
        folder.mkdir()
        disk, written = LossyDisk(folder), []
        with disk.watch():
            while len(disk.states) < n:
                write(model, folder / "run", len(written) + 1)
                written.append(len(disk.states))  # what comes later has all of it
        for moment, state in enumerate(disk.states):
            disk.restore(state, restored)
            said = sum(states <= moment for states in written)
            if (lost := check_written(restored / "run", said)) is None:
                tally.survived("all that was said to be saved is there")
            else:
                tally.lose(f"moment {moment}: {lost}")
    return tally

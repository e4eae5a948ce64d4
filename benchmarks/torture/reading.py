"""What a run finds again of what writer.py wrote."""

import json
import warnings
from pathlib import Path

from sb3_vla import PPOSelfBC
from sb3_vla.runs.checkpoint import checkpoint_timesteps, newest_checkpoint


def check_written(folder: Path, said: int) -> str | None:
    """
    :param folder: What ``writer.py`` wrote into
    :param said: The last number that it said to be saved
    :return: What is lost, ``None`` if nothing is
    """
    if said == 0:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            checkpoint = newest_checkpoint(folder / "checkpoints")
            numbers = {
                "checkpoint": checkpoint_timesteps(checkpoint),
                "its model": PPOSelfBC.load(checkpoint / "model.zip", device="cpu").num_timesteps,
                "model.zip": PPOSelfBC.load(folder / "model.zip", device="cpu").num_timesteps,
                "results.json": json.loads((folder / "results.json").read_text())["number"],
            }
    except Exception as error:
        return f"{error!r}, after {said}"
    lost = {name: number for name, number in numbers.items() if number < said}
    return f"{lost}, after {said}" if lost else None

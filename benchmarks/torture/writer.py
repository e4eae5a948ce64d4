"""Saves checkpoints of a growing training for ever, and says after each that it is saved: python writer.py FOLDER"""

import itertools
import sys
from pathlib import Path

from run_settings import make_model

from sb3_vla import PPOSelfBC
from sb3_vla.runs.checkpoint import save_checkpoint
from sb3_vla_envs.durable_files import replace_text


def main() -> None:
    """Write until something stops it."""
    model = make_model()
    print("ready", flush=True)
    for number in itertools.count(1):
        write(model, Path(sys.argv[1]), number)
        print(number, flush=True)


def write(model: PPOSelfBC, folder: Path, number: int) -> None:
    """
    :param model: To save
    :param folder: Gets a checkpoint, a model and a text
    :param number: What all of them say
    """
    model.num_timesteps = number
    save_checkpoint(model, folder / "checkpoints")
    model.save(folder / "model.zip")
    replace_text(folder / "results.json", f'{{"number": {number}}}\n')


if __name__ == "__main__":
    main()

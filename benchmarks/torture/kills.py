"""kill -9 at random moments of a training: what it had said to be saved is there, and it goes on."""

import random
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

from run_settings import ENVIRONMENT, TRAIN, write_settings
from tally import Tally

from sb3_vla.common.run_folder import RunFolder
from sb3_vla.ppo_self_bc.model_file import open_model
from sb3_vla.runs.checkpoint import checkpoint_timesteps, newest_checkpoint

_SECONDS_TO_START = 120.0


def kill_trainings(n: int, seed: int) -> Tally:
    """
    :param n: Kills
    :param seed: Of the moments
    :return: What came of them
    """
    tally, rng = Tally("`kill -9` of a training at a random moment, then `--resume`"), random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        config = write_settings(Path(temporary) / "config.yml", 10**9)
        arguments, done = ["--config", str(config), "--out", str(folder.path)], 0
        for number in range(n):
            errors = _run_and_kill(arguments, folder, rng.uniform(0.0, 3.0), done)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # the newest one must be whole: nothing but a kill has happened
                    checkpoint = newest_checkpoint(folder.checkpoints)
                with open_model(checkpoint / "model.zip"):
                    pass
            except Exception as error:
                tally.lose(f"kill {number} of seed {seed}: {error!r}; {errors[-500:]}")
                continue
            if checkpoint_timesteps(checkpoint) < done:
                tally.lose(f"kill {number} of seed {seed}: back from {done} to {checkpoint}")
            else:
                tally.survived("goes on")
            done = checkpoint_timesteps(checkpoint)
            arguments = ["--resume", str(folder.path)]
    return tally


def _run_and_kill(arguments: list[str], folder: RunFolder, seconds: float, done: int) -> str:
    """
    :param arguments: Of ``sb3-vla train``
    :param folder: Of the run
    :param seconds: When to kill it, after it has written a checkpoint that was not there before
    :param done: Timesteps of the newest one
    :return: What it said
    """
    command = [*TRAIN, *arguments]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=said)
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline and process.poll() is None:
            names = [path.name for path in folder.checkpoints.glob("*") if path.name.isdecimal()]
            if any(int(name) > done for name in names):
                break
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        process.wait()
        said.seek(0)
        return said.read()

"""Everything that a run needs to go on where it stopped."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv

from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .between_updates import BetweenUpdates


def save_checkpoint(model: PPOSelfBC, folder: str | os.PathLike[str]) -> None:
    """
    Write model, optimizer, demonstration buffer and random states to a folder, all or nothing: a folder of that name is
    replaced only once the new one is complete.

    :param model: The model, between two updates
    :param folder: Where to write
    """
    folder = Path(folder)
    new, old = _complete_swap(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    model.save(new / "model.zip")
    if model.replay_buffer is not None:
        model.save_replay_buffer(new / "replay_buffer.npz")
    th.save(_random_states(model), new / "random_states.pt")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | os.PathLike[str], env: VecEnv, device: str = "auto") -> PPOSelfBC:
    """
    Continue from what :func:`save_checkpoint` wrote: step count, weights, optimizer, schedules, demonstration buffer and the
    random states of Python, NumPy, torch and the buffer. The environments begin new episodes.

    :param folder: The checkpoint
    :param env: Environments like those of the run
    :param device: Where the model goes
    :return: The model
    :raises FileNotFoundError: If there is no complete checkpoint
    """
    folder = find_checkpoint(folder)
    model = PPOSelfBC.load(folder / "model.zip", env=env, device=device)
    if model.replay_buffer is not None:
        model.load_replay_buffer(folder / "replay_buffer.npz")
    _restore_random_states(model, th.load(folder / "random_states.pt", weights_only=True))
    return model


def find_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """
    :param folder: Where :func:`save_checkpoint` wrote, even if it was killed while doing so
    :return: The folder, with a complete checkpoint in it
    :raises FileNotFoundError: If there is no complete checkpoint
    """
    folder = Path(folder)
    _complete_swap(folder)
    if not (folder / "model.zip").exists():
        raise FileNotFoundError(
            f"there is no checkpoint in {str(folder)!r}: the run stopped before its first; remove its folder and start anew"
        )
    return folder


def checkpoint_timesteps(folder: str | os.PathLike[str]) -> int:
    """
    :param folder: Where :func:`save_checkpoint` wrote
    :return: Timesteps that the run had done by then
    :raises FileNotFoundError: If there is no complete checkpoint
    """
    data, _, _ = load_from_zip_file(find_checkpoint(folder) / "model.zip", device="cpu")
    assert data is not None
    return int(data["num_timesteps"])


class RunCheckpoint(BetweenUpdates):
    """
    Saves a checkpoint between two updates, after at least so many timesteps.

    :param folder: Where to write
    :param every: Timesteps between two checkpoints
    """

    def __init__(self, folder: str | os.PathLike[str], every: int) -> None:
        super().__init__(every)
        self.folder = Path(folder)

    def act(self) -> None:
        """Save it."""
        assert isinstance(self.model, PPOSelfBC)
        save_checkpoint(self.model, self.folder)


class ResumableCSV(CSVOutputFormat):
    """
    SB3's CSV log, which goes on where the file ends instead of emptying it.

    :param filename: The file
    :param last_timestep: Rows after this timestep are dropped: they were logged after the checkpoint that is resumed
    """

    def __init__(self, filename: str, last_timestep: int) -> None:
        lines = Path(filename).read_text(encoding="utf-8").splitlines() if Path(filename).exists() else []
        super().__init__(filename)
        if lines:
            self.keys = lines[0].split(",")
            column = self.keys.index("time/total_timesteps")
            # A run that was killed may have left half a row
            rows = [line for line in lines[1:] if line.count(",") == len(self.keys) - 1]
            kept = [row for row in rows if float(row.split(",")[column] or "inf") <= last_timestep]
            self.file.write("".join(line + "\n" for line in [lines[0], *kept]))
            self.file.flush()


def _complete_swap(folder: Path) -> tuple[Path, Path]:
    """
    Finish what a :func:`save_checkpoint` that was killed between its renames left.

    :param folder: The checkpoint
    :return: Where the next checkpoint is written, and where the last one is moved meanwhile; the latter is not there
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        # The new one was complete when the old one moved
        (new if new.exists() else old).rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return new, old


def _random_states(model: PPOSelfBC) -> dict[str, Any]:
    _, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (th.from_numpy(np.asarray(keys).copy()), position, has_gauss, cached),
        "torch": th.get_rng_state(),
    }
    if model.device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(model.device)
    if model.replay_buffer is not None:
        states["replay_buffer"] = model.replay_buffer.rng.bit_generator.state
    return states


def _restore_random_states(model: PPOSelfBC, states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, cached))
    th.set_rng_state(states["torch"])
    if "cuda" in states and model.device.type == "cuda":
        th.cuda.set_rng_state(states["cuda"], model.device)
    if model.replay_buffer is not None:
        model.replay_buffer.rng.bit_generator.state = states["replay_buffer"]

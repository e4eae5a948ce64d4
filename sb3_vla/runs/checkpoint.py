"""Everything that a run needs to go on where it stopped."""

import copy
import hashlib
import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_vla_envs.durable_files import PARTIAL, replace_text, sync_folder

from ..common.launch import launched_as
from ..common.plain_file import load_plain, save_plain
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .between_updates import BetweenUpdates
from .interruption import StopRequest
from .training_state import restore_environments, restore_log, restore_model, restore_random_states, training_state

_CHECKSUMS = "checksums.json"
_TIMESTEPS = "time/total_timesteps"
_TRAINING_STATE = "training_state.safetensors"
# Attributes of a model that change while it collects; of the arrays each is a new one
_WHILE_COLLECTING = (
    *("num_timesteps", "num_primitive_steps", "lifetime_timesteps"),
    *("_last_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"),
)


def save_checkpoint(model: PPOSelfBC, folder: str | os.PathLike[str], state: dict[str, Any] | None = None) -> Path:
    """
    Write model, optimizer, demonstration buffer and the state of the training to a folder named after the model's timesteps.
    It gets that name once everything is complete and on the disk; only then all others of its run but the last are removed.

    :param model: The model, between two updates
    :param folder: That of all checkpoints of its run
    :param state: What :func:`training_state` returned of it, by default the current one
    :return: The checkpoint; of several ranks the first one alone writes it
    """
    folder = Path(folder)
    checkpoint = folder / str(model.num_timesteps)
    if not model.ranks.is_first:
        model.get_parameters()  # of which it may have a part
        return checkpoint
    partial = checkpoint.with_name(checkpoint.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial / "model.zip")
    if model.replay_buffer is not None:
        model.save_replay_buffer(partial / "replay_buffer.npz")
    save_plain(partial / _TRAINING_STATE, training_state(model) if state is None else state)
    checksums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    replace_text(partial / _CHECKSUMS, json.dumps(checksums, indent=1) + "\n")
    if checkpoint.exists():  # the run has been here before, and had to go on from an earlier one
        shutil.rmtree(checkpoint)
    partial.rename(checkpoint)
    sync_folder(folder)
    _remove_others(checkpoint)
    return checkpoint


def load_checkpoint(checkpoint: str | os.PathLike[str], env: VecEnv, device: str = "auto") -> PPOSelfBC:
    """
    Continue from what :func:`save_checkpoint` wrote: step count, weights, optimizer, schedules, demonstration buffer, random
    numbers, and the environments in the middle of their episodes, where they can tell their state
    (:class:`~sb3_vla.vec_env.env_state.TellsState`). Then training goes on as if it had never stopped, bit for bit. Where they
    can't, a warning says so, and they begin new episodes. So do those of other ranks than the first, of which there may be
    another number, with new random numbers.

    :param checkpoint: The checkpoint
    :param env: Environments like those of the run
    :param device: Where the model goes
    :return: The model
    :raises ValueError: If a file is damaged
    """
    checkpoint = Path(checkpoint)
    state = load_plain(checkpoint / _TRAINING_STATE)
    why_not = restore_environments(env, state) if launched_as()[0] == 0 else ""
    if why_not:
        warnings.warn(f"the episodes under way are lost, and the environments begin new ones: {why_not}", stacklevel=2)
    model = PPOSelfBC.load(checkpoint / "model.zip", env=env, device=device, force_reset=why_not is not None)
    if model.replay_buffer is not None:
        model.load_replay_buffer(checkpoint / "replay_buffer.npz")
    if why_not is not None and model.rank_seed is not None:
        env.seed(model.rank_seed + model.num_timesteps)  # not the episodes of the run's beginning once more
    restore_model(model, state, with_episodes=why_not is None)
    return model


def load_log(checkpoint: str | os.PathLike[str], logger: Logger) -> None:
    """
    :param checkpoint: The checkpoint that a run goes on from
    :param logger: Its logger, which gets what the last update recorded and no row has yet
    """
    restore_log(logger, load_plain(Path(checkpoint) / _TRAINING_STATE))


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """
    Find the newest checkpoint of a run whose files are as :func:`save_checkpoint` wrote them; a warning names those that are
    not.

    :param folder: That of all checkpoints of the run
    :return: The checkpoint
    :raises FileNotFoundError: If there is none
    :raises ValueError: If all are damaged
    """
    checkpoints = _checkpoints(Path(folder))
    if not checkpoints:
        raise FileNotFoundError(
            f"there is no checkpoint in '{folder}': the run stopped before its first; repeat the command that began it, with "
            "another --out if it has kept a best_model.zip"
        )
    damaged: list[str] = []
    for checkpoint in checkpoints:
        damage = _damage(checkpoint)
        if damage is None:
            for line in damaged:
                warnings.warn(f"{line}; the run goes on from the one before it, '{checkpoint}'", stacklevel=2)
            return checkpoint
        damaged.append(f"the checkpoint '{checkpoint}' is damaged: {damage}")
    raise ValueError(f"{'; '.join(damaged)}: restore one of them from a backup, or begin the run again in another folder")


def checkpoint_timesteps(checkpoint: Path) -> int:
    """
    :param checkpoint: What :func:`newest_checkpoint` found
    :return: Timesteps that the run had done by then
    """
    return int(checkpoint.name)


class RunCheckpoint(BetweenUpdates):
    """
    Saves a checkpoint between two updates, after at least so many timesteps, and where a training is to stop.

    A training that is asked to stop in the middle of a rollout does so after the chunk in hand, as nothing has been learned
    from the rollout yet: the checkpoint is of the moment before it. In the middle of an update the update is completed.

    With ``overlap`` the rollout after a checkpoint does not begin before it. One at which a training is to stop may find that
    the next rollout has begun: that one is lost then, and going on begins new episodes.

    :param folder: That of all checkpoints of the run
    :param every: Timesteps between two checkpoints
    :param request: Says whether to stop
    """

    def __init__(self, folder: str | os.PathLike[str], every: int, request: StopRequest) -> None:
        super().__init__(every)
        self.folder = Path(folder)
        self.request = request
        self.is_collecting = False

    def act(self) -> None:
        """Save it."""
        assert isinstance(self.model, PPOSelfBC)
        save_checkpoint(self.model, self.folder)

    def save_before_rollout(self) -> None:
        """Save the training as it was before the rollout that is being collected."""
        assert isinstance(self.model, PPOSelfBC)
        attributes, episodes, state = self._before_rollout
        vars(self.model).update(attributes)
        if self.model.replay_buffer is not None:
            self.model.replay_buffer.episodes.clear()
            self.model.replay_buffer.episodes.update(episodes)
        restore_random_states(self.model, state["random"])
        self.is_collecting = False
        exists = (self.folder / str(self.model.num_timesteps)).exists()  # that of this very moment
        if not (self.model.ranks.broadcast_object(exists) if self.model.is_sharded else exists):
            save_checkpoint(self.model, self.folder, state)

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, PPOSelfBC)
        super()._on_rollout_start()
        attributes = {name: copy.copy(getattr(self.model, name)) for name in _WHILE_COLLECTING}
        buffer = self.model.replay_buffer
        episodes = {} if buffer is None else {task: list(held) for task, held in buffer.episodes.items()}
        self._before_rollout = (attributes, episodes, training_state(self.model))
        self.is_collecting = True

    def _on_step(self) -> bool:
        return self.request.signal is None

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPOSelfBC)
        self.is_collecting = False
        if self.request.signal is not None or self.is_due:
            self.model.hold_next_rollout()

    def _on_training_end(self) -> None:
        if self.is_collecting:
            self.save_before_rollout()
        else:
            super()._on_training_end()


class ResumableCSV(CSVOutputFormat):
    """
    SB3's CSV log, which goes on where the file ends instead of emptying it.

    :param filename: The file
    :param last_timestep: Rows after this timestep are dropped: they were logged after the checkpoint that is resumed
    """

    def __init__(self, filename: str, last_timestep: int) -> None:
        # Of a file that is damaged, what can be read goes on: the checkpoint is what counts
        path = Path(filename)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        keys = lines[0].split(",") if lines else []
        if lines and _TIMESTEPS not in keys:
            shutil.copy(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
        super().__init__(filename)
        if _TIMESTEPS not in keys:
            return
        self.keys = keys
        kept = [line for line in lines[1:] if _timesteps_of(line, keys) <= last_timestep]
        self.file.write("".join(line + "\n" for line in [lines[0], *kept]))
        self.file.flush()


def _timesteps_of(line: str, keys: list[str]) -> float:
    """
    :param line: A row of the log
    :param keys: Its columns
    :return: Its timesteps, infinite for half a row, which a run that was killed may have left, or a damaged one
    """
    cells = line.split(",")
    try:
        return float(cells[keys.index(_TIMESTEPS)]) if len(cells) == len(keys) else math.inf
    except ValueError:
        return math.inf


def _checkpoints(folder: Path) -> list[Path]:
    """
    :param folder: That of all checkpoints of a run
    :return: Those that were completed, the newest first
    """
    found = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=checkpoint_timesteps, reverse=True)


def _remove_others(checkpoint: Path) -> None:
    """
    Remove a run's checkpoints but this and the one before it. Those with more timesteps were damaged, or the run would not
    have gone on from an earlier one.

    :param checkpoint: The newest one
    """
    earlier = [
        each for each in _checkpoints(checkpoint.parent) if checkpoint_timesteps(each) < checkpoint_timesteps(checkpoint)
    ]
    kept = (checkpoint, *earlier[:1])
    for path in checkpoint.parent.iterdir():
        # Nothing else that lies there
        if path not in kept and path.is_dir() and path.name.removesuffix(PARTIAL).isdecimal():
            shutil.rmtree(path)


def _damage(checkpoint: Path) -> str | None:
    """
    :param checkpoint: A checkpoint
    :return: What is wrong with its files, ``None`` if nothing is
    """
    try:
        checksums = json.loads((checkpoint / _CHECKSUMS).read_text(encoding="utf-8"))
        found = {path.name: _checksum(path) for path in checkpoint.iterdir() if path.name != _CHECKSUMS}
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    if not isinstance(checksums, dict) or not {"model.zip", _TRAINING_STATE} <= checksums.keys():
        return f"{_CHECKSUMS} does not name its files"
    changed = [name for name in sorted({*checksums, *found}) if checksums.get(name) != found.get(name)]
    return f"{', '.join(changed)} changed since it was written" if changed else None


def _checksum(path: Path) -> str:
    """
    :param path: A file
    :return: Its SHA-256 in hexadecimal digits
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

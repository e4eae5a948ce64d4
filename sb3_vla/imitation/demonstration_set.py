"""Episodes that fit a model, by task, and batches of their observation-chunk pairs."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla_envs import Demonstration
from sb3_vla_envs.demonstrations import ARRAY_KEY

from ..common.device_transfer import observations_to_device, to_device
from ..common.observation_normalization import normalize_observations
from ..policies.encoded import NOT_ENCODED, EncodedObservations, PolicyInput
from ..policies.observation_checks import as_bytes, has_channels_first
from .feature_cache import FeatureCache

# An episode and the number of a chunk in it
Pair = tuple[Demonstration, int]


class DemonstrationSamples(NamedTuple):
    """
    A batch of observation-chunk pairs.

    :param observations: As SB3 hands observations over
    :param actions: Chunks to imitate, ``(batch, *action shape)``
    :param chunk_lengths: ``(batch,)``, how many steps of each chunk count
    :param encoded: What stands for observations that a policy need not read again
    """

    observations: PyTorchObs
    actions: th.Tensor
    chunk_lengths: th.Tensor
    encoded: EncodedObservations = NOT_ENCODED

    @property
    def policy_input(self) -> PolicyInput:
        """What a policy reads."""
        return PolicyInput(self.observations, self.encoded)


class DemonstrationSet:
    """
    Successful episodes in the form that a model's spaces ask for, by task. Observations stay where they are, be it memory or a
    file: only batches are copied.

    :param observation_space: Observations that the model reads
    :param action_space: Action space of the model
    :param demonstrations: Episodes to begin with
    :param extra_keys: Observations to keep as they are beside those that the model reads; batches don't have them
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        demonstrations: Iterable[Demonstration] = (),
        extra_keys: Collection[str] = (),
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.extra_keys = extra_keys
        self.episodes: dict[str, list[Demonstration]] = {}
        for demonstration in demonstrations:
            self.add(demonstration)

    def __len__(self) -> int:
        """Number of observation-chunk pairs."""
        return sum(len(demo) for demos in self.episodes.values() for demo in demos)

    def add(self, demonstration: Demonstration) -> None:
        """
        Take in an episode; failures are left out.

        :param demonstration: The episode, see :meth:`match`
        """
        if demonstration.success:
            self.episodes.setdefault(demonstration.task, []).append(self.match(demonstration))

    def match(self, demonstration: Demonstration) -> Demonstration:
        """
        :param demonstration: An episode as an environment or a model sees it: images may have channels last or first, frames
            need not be stacked, single steps do for chunks of any size, and what the model does not read does not matter
        :return: The episode with the observations that the model's space asks for, all of its dtypes, as those are that the
            model makes itself
        :raises ValueError: If one is missing or has another shape, or there is no such discrete action
        """
        wanted = self._observation_spaces()
        task = demonstration.task
        missing = {*wanted, *self.extra_keys} - demonstration.observations.keys()
        if missing:
            hint = ", or only fine-tune on it: the critic alone reads 'privileged'" if missing == {"privileged"} else ""
            raise ValueError(
                f"a demonstration of task {task!r} lacks the observations {sorted(missing)} (it has "
                f"{sorted(demonstration.observations)}): collect it with the cameras and options of this environment{hint}"
            )
        actions = demonstration.actions
        if self.action_space.shape is not None and not _fits(actions.shape[1:], self.action_space.shape):
            wanted_shape = self.action_space.shape
            how = "collect demonstrations with the same chunk_size"
            if len(wanted_shape) == 2:
                how += f", or of every step, with actions of shape (T, 1, {wanted_shape[1]})"
            raise ValueError(
                f"a demonstration of task {task!r} has actions of shape {actions.shape[1:]}, the model {wanted_shape}: {how}"
            )
        if not isinstance(self.action_space, spaces.Box):
            for number, action in enumerate(actions.astype(self.action_space.dtype, copy=False)):
                if not self.action_space.contains(action):
                    raise ValueError(
                        f"a demonstration of task {task!r} has the action {action} in chunk {number}, but the model's are "
                        f"{self.action_space}: collect it in this environment, or number its actions as this one does"
                    )
        seen = demonstration.observations
        matched, n_frames = _match_spaces({key: seen[key] for key in wanted}, wanted)
        if n_frames > 1 and actions.shape[1:] != self.action_space.shape:
            raise ValueError(
                f"the model sees {n_frames} frames, a chunk apart, but a demonstration of task {task!r} is of single steps: "
                "collect it without every_step, with the model's chunk_size"
            )
        return Demonstration(
            task=task,
            observations={key: seen[key] for key in self.extra_keys} | matched,
            actions=actions.astype(self._action_dtype, copy=False),
            chunk_lengths=demonstration.chunk_lengths,
            success=demonstration.success,
            rewards=demonstration.rewards,
        )

    def batch(
        self,
        pairs: Sequence[Pair],
        device: th.device | str,
        normalizer: VecNormalize | None = None,
        cache: FeatureCache | None = None,
        host_keys: Collection[str] = (),
        keys: Sequence[str] | None = None,
    ) -> DemonstrationSamples:
        """
        :param pairs: Which pairs
        :param device: Where the batch goes
        :param normalizer: Normalises the observations, if it does, which the set holds as they were
        :param cache: What a policy's frozen parts made of the episodes comes in place of what they read
        :param host_keys: Observations of a dictionary that stay on the CPU, see :class:`PolicyAdapter`
        :param keys: Of a dictionary only these observations, and nothing of what stands for others; by default all
        :return: The batch
        """
        if keys is not None:
            cache = None
        if normalizer is not None and not normalizer.norm_obs:  # but rewards
            normalizer = None
        keys = list(self._observation_spaces()) if keys is None else keys
        encoded = NOT_ENCODED
        chunks, lengths = zip(*(self._chunk(demo, number) for demo, number in pairs), strict=True)
        # VecNormalize's statistics go on changing, and with them what could be computed once
        if cache is not None and cache.is_useful and normalizer is None:
            encoded = cache.at(pairs)
            keys = cache.stored_keys(keys)
        return DemonstrationSamples(
            observations=self._observations(pairs, keys, device, normalizer, host_keys),
            # float32 as in SB3's buffers: log-probabilities of MultiBinary actions need it
            actions=to_device(np.stack(chunks).astype(np.float32, copy=False), device),
            chunk_lengths=to_device(np.array(lengths, dtype=np.int64), device),
            encoded=encoded,
        )

    def _chunk(self, demonstration: Demonstration, number: int) -> tuple[np.ndarray, int]:
        shape = self.action_space.shape
        if shape is None or demonstration.actions.shape[1:] == shape:  # whatever its actions are
            return demonstration.actions[number], int(demonstration.chunk_lengths[number])
        return demonstration.chunk(number, shape[0])

    def _observations(
        self,
        pairs: Sequence[Pair],
        keys: Sequence[str],
        device: th.device | str,
        normalizer: VecNormalize | None,
        host_keys: Collection[str],
    ) -> PyTorchObs:
        stacked = {key: np.stack([demo.observations[key][step] for demo, step in pairs]) for key in keys}
        if not isinstance(self.observation_space, spaces.Dict):
            array = stacked[ARRAY_KEY]
            return to_device(array if normalizer is None else normalizer.normalize_obs(array), device)  # type: ignore[arg-type]
        if normalizer is not None:
            stacked = normalize_observations(normalizer, stacked)
        return observations_to_device(stacked, device, host_keys)

    @property
    def _action_dtype(self) -> Any:
        return np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype

    def _observation_spaces(self) -> dict[str, spaces.Space]:
        if isinstance(self.observation_space, spaces.Dict):
            return dict(self.observation_space.spaces)
        return {ARRAY_KEY: self.observation_space}


def as_episodes(name: str, given: Any) -> list[Demonstration]:
    """
    :param name: Of the argument
    :param given: What was given for it
    :return: The episodes
    :raises TypeError: If these are not episodes
    """
    episodes: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(episode, Demonstration) for episode in episodes):
        raise TypeError(
            f"{name} must be a sequence of sb3_vla_envs.Demonstration, got {given!r:.100} of type {type(given).__name__}: put "
            "a single one into a list, read a file by sb3_vla_envs.load_demonstrations(path), take those of a buffer out of "
            "its `episodes`"
        )
    return episodes


def warn_of_units(episodes: Iterable[Demonstration], space: spaces.Space) -> None:
    """
    Warn once of actions that are mostly far outside of their space: degrees for radians, say, or not scaled as the space is.

    :param episodes: Episodes that fit the space
    :param space: The action space
    """
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        return
    are_chunks = len(space.shape) == 2
    low, high = (bound[0] if are_chunks else bound for bound in (space.low.astype(float), space.high.astype(float)))
    for episode in episodes:
        actions = episode.executed_actions() if are_chunks else episode.actions
        # Not a few: an agent's own, with its noise, are outside now and then
        if (np.median(np.abs(actions - (low + high) / 2), axis=0) > 1.5 * (high - low)).any():
            warnings.warn(
                f"a demonstration of task {episode.task!r} has actions from {actions.min():g} to {actions.max():g}, the "
                f"model's go from {low.min():g} to {high.max():g}: are they in other units?",
                stacklevel=3,
            )
            return


def _fits(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether chunks are of a shape, or of single steps of which such can be made."""
    return given == wanted or (len(given) == len(wanted) == 2 and given == (1, wanted[1]))


def _match_spaces(
    observations: Mapping[str, np.ndarray], wanted: Mapping[str, spaces.Space]
) -> tuple[dict[str, np.ndarray], int]:
    """
    :param observations: ``(T, ...)`` by name
    :param wanted: What the model wants of them
    :return: ``(T, *space.shape)`` of the space's dtype; images are transposed where the model has channels first (SB3 wraps
        environments in ``VecTransposeImage``), and frames are stacked where it sees several at a time. And how many these are
    :raises ValueError: If the shapes disagree, or bytes are no bytes
    """
    matched: dict[str, np.ndarray] = {}
    n_frames: dict[str, int] = {}
    for key, space in wanted.items():
        values = as_bytes(key, observations[key]) if space.dtype == np.uint8 else observations[key]
        if is_image_space(space):
            values = maybe_transpose(values, space)
        values, n_frames[key] = (values, 1) if values.shape[1:] == space.shape else _stack_frames(values, space)
        matched[key] = values.astype(space.dtype, copy=False)
    for key, space in wanted.items():
        # VecFrameStack stacks all observations alike: a prompt alone that is twice as long is another one
        if matched[key].shape[1:] != space.shape or n_frames[key] > min(n_frames.values()):
            raise ValueError(
                f"a demonstration's {key!r} has the shape {observations[key].shape[1:]}, the model's is {space.shape}: "
                "collect demonstrations with the tasks (or task_ids), cameras and options of this environment"
            )
    return matched, max(n_frames.values(), default=1)


def _stack_frames(values: np.ndarray, space: spaces.Space) -> tuple[np.ndarray, int]:
    """
    Do to an episode what ``VecFrameStack`` does to an environment.

    :param values: ``(T, ...)``
    :param space: That of several of them, one after the other: along the channels of images, else along the last axis
    :return: ``(T, *space.shape)``, zeros before the episode's start, and how many frames these are; or ``values`` if they
        can't be stacked to that
    """
    shape = space.shape or ()
    if len(shape) != values.ndim - 1:
        return values, 1
    # Images come as (T, channels, height, width) where the space has channels first
    if len(shape) == 3 and shape[1:] != values.shape[2:] and values.shape[1:3] == shape[1:]:
        values = np.moveaxis(values, -1, 1)
    axis = values.ndim - 1
    if len(shape) == 3 and (shape[1:] == values.shape[2:] or has_channels_first(space)):
        axis = 1
    n_frames = shape[axis - 1] // max(values.shape[axis], 1)
    if n_frames < 2 or (*values.shape[1:axis], n_frames * values.shape[axis], *values.shape[axis + 1 :]) != shape:
        return values, 1
    blank = np.zeros((n_frames - 1, *values.shape[1:]), values.dtype)
    padded = np.concatenate([blank, values])
    return np.concatenate([padded[age : age + len(values)] for age in range(n_frames)], axis=axis), n_frames

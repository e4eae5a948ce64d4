"""What a policy's features know of a scene, before any reinforcement learning."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_vla_envs import Demonstration
from sb3_vla_envs.durable_files import replace_text

from ..common.observation_normalization import observation_normalizer
from ..common.run_folder import software_versions
from ..policies.adapter import adapt
from ..policies.vla_policy import VLAPolicy
from .auxiliary_target import MINIMUM_STD, target_numbers
from .demonstration_set import DemonstrationSet

# Strengths of the ridge penalty to choose from, in units of the features' variance times the number of samples
_PENALTIES = np.logspace(-5, 1, 13)
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Explained:
    """
    Share of the variance of some numbers that a linear regression explains on goals it was not fitted on: 1 is all, 0 no more
    than their mean does.

    :param features: From the policy's action features
    :param state: From ``state`` alone, which the policy need not look for
    """

    features: float
    state: float


@dataclass
class ProbeResult:
    """
    What :func:`probe` found.

    :param explained: By task and name of the numbers; ``None`` where they don't vary within the task
    :param settings: What determines the figures
    :param versions: Of the software
    """

    explained: dict[str, dict[str, Explained | None]]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | int | None] = field(default_factory=software_versions)

    def table(self) -> str:
        """
        :return: A line a task: what the features explain, and in brackets what ``state`` alone does
        """
        names = list(next(iter(self.explained.values())))
        width = max(len(task) for task in self.explained)
        lines = [f"{'':{width}}  " + "".join(f"{name:>16}" for name in names)]
        for task, row in self.explained.items():
            cells = ["-" if found is None else f"{found.features:.2f} ({found.state:.2f})" for found in row.values()]
            lines.append(f"{task:{width}}  " + "".join(f"{cell:>16}" for cell in cells))
        return "\n".join([*lines, "Share of variance explained on held-out goals by the action features (by state alone)"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        :param path: JSON file to write
        """
        replace_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")


def probe(
    model: BaseAlgorithm,
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    targets: Mapping[str, Sequence[int]],
    key: str = "privileged",
    settings: Mapping[str, Any] | None = None,
) -> ProbeResult:
    """
    Ask how much of objects and goals can be read from a policy's action features by a linear regression (linear classifier
    probes, Alain and Bengio 2017, arXiv 1610.01644), for each task by itself. Where a policy does not know the goal, neither
    supervised fine-tuning nor reinforcement learning makes it go there.

    :param model: A model with a VLAPolicy
    :param demonstrations: Episodes to fit the regression on, those of a disturbed expert say: any policy would do that visits
        the states in question
    :param held_out: Episodes with other goals, of the same tasks
    :param targets: Indices into an observation, by the name of what they are
    :param key: Which observation
    :param settings: What determines the figures, to be kept in the result
    :return: Shares of variance explained
    :raises ValueError: If a task has one episode to fit on or none that is held out, an episode lacks the observation, or what
        varies in the episodes to fit on does not in those that are held out
    :raises TypeError: If the model has no VLAPolicy
    """
    if not isinstance(model.policy, VLAPolicy):
        raise TypeError(f"probe looks at the features of VLAPolicy, got {type(model.policy).__name__}")
    fitted_on, tested_on = _by_task(demonstrations), _by_task(held_out)
    explained = {}
    for task, episodes in fitted_on.items():
        if task not in tested_on:
            raise ValueError(f"there are no held-out episodes of task {task!r}")
        if len(episodes) < 2:
            raise ValueError(f"there is one episode of task {task!r} to fit on: two or more are needed, of several goals")
        fit, test = (_Samples.of(model, demos, targets, key) for demos in (episodes, tested_on[task]))
        explained[task] = {name: _explained(fit, test, name, task) for name in targets}
    return ProbeResult(explained, dict(settings or {}))


@dataclass
class _Samples:
    """
    :param features: ``(samples, features_dim)``
    :param state: ``(samples, state_dim)``
    :param numbers: ``(samples, n)`` by name
    :param episode: ``(samples,)``
    """

    features: np.ndarray
    state: np.ndarray
    numbers: dict[str, np.ndarray]
    episode: np.ndarray

    @classmethod
    def of(
        cls, model: BaseAlgorithm, episodes: Sequence[Demonstration], targets: Mapping[str, Sequence[int]], key: str
    ) -> "_Samples":
        numbers = {
            name: np.concatenate([target_numbers(demo, {key: indices}) for demo in episodes])
            for name, indices in targets.items()
        }
        return cls(
            features=_features(model, episodes),
            state=np.concatenate([demo.observations["state"] for demo in episodes]),
            numbers=numbers,
            episode=np.concatenate([np.full(len(demo), i) for i, demo in enumerate(episodes)]),
        )


def _features(model: BaseAlgorithm, episodes: Sequence[Demonstration]) -> np.ndarray:
    policy = model.policy
    assert isinstance(policy, VLAPolicy)
    adapter, normalizer = adapt(policy), observation_normalizer(model)
    read = spaces.Dict({name: adapter.read_space[name] for name in policy.actor_keys})  # type: ignore[index]
    matched = DemonstrationSet(read, policy.action_space)
    pairs = [(demo, step) for demo in map(matched.match, episodes) for step in range(len(demo))]
    policy.set_training_mode(False)
    parts = []
    with th.no_grad():
        for start in range(0, len(pairs), _BATCH_SIZE):
            chosen = pairs[start : start + _BATCH_SIZE]
            batch = matched.batch(chosen, policy.device, normalizer, host_keys=adapter.host_keys)
            parts.append(policy.encode(*batch.policy_input).action.cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def _explained(fit: _Samples, test: _Samples, name: str, task: str) -> Explained | None:
    varies = fit.numbers[name].std(axis=0) >= MINIMUM_STD
    if not varies.any():
        return None
    if not (test.numbers[name][:, varies].std(axis=0) >= MINIMUM_STD).any():
        raise ValueError(
            f"{name!r} does not vary in the held-out episodes of task {task!r}, so that no share of it can be explained: hold "
            "out two or more, of several goals"
        )
    shares = []
    for fit_x, test_x in ((fit.features, test.features), (fit.state, test.state)):
        fit_y, test_y = fit.numbers[name][:, varies], test.numbers[name][:, varies]
        # The penalty is chosen on a fifth of the episodes, all of a goal on one side
        inner = fit.episode % 5 > 0
        penalty = min(_PENALTIES, key=lambda p: _error(fit_x[inner], fit_y[inner], fit_x[~inner], fit_y[~inner], p).sum())
        error = _error(fit_x, fit_y, test_x, test_y, penalty)
        shares.append(float(1 - error.sum() / test_y.var(axis=0).sum()))
    return Explained(*shares)


def _error(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, penalty: float) -> np.ndarray:
    """
    :param x: ``(samples, inputs)``
    :param y: ``(samples, n)``
    :param test_x: ``(test samples, inputs)``
    :param test_y: ``(test samples, n)``
    :param penalty: Of the ridge regression, for standardised inputs and a mean of the squares
    :return: ``(n,)`` mean squared error on the test samples of what is fitted on the others
    """
    mean, std, center = x.mean(axis=0), x.std(axis=0) + 1e-9, y.mean(axis=0)
    standard = (x - mean) / std
    gram = standard.T @ standard / len(x) + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, standard.T @ (y - center) / len(x))
    error: np.ndarray = np.square((test_x - mean) / std @ weights + center - test_y).mean(axis=0)
    return error


def _by_task(demonstrations: Sequence[Demonstration]) -> dict[str, list[Demonstration]]:
    by_task: dict[str, list[Demonstration]] = {}
    for demo in demonstrations:
        by_task.setdefault(demo.task, []).append(demo)
    return by_task

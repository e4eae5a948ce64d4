"""
A small model of a cycle of rollout and update: how long it takes, and why.

=============  ==================================================================================================
simulation     ``chunk * environments / cores of the simulators + step``, once a step of the rollout
transfer       ``reply * workers + byte * observations``, likewise, where simulators are on other machines
inference      ``call + sample * environments``
all-reduce     ``message * log2(ranks) + megabyte * 2 * (ranks - 1) / ranks * gradients``, once a minibatch
update         ``minibatch * minibatches + trained * samples * epochs``
=============  ==================================================================================================

Environments, minibatches and samples are those of a rank, as ranks work side by side. A cycle is the sum of them. With
``overlap`` simulators and learner work at the same time, and only the longer of the two counts; acting counts as before, as it
takes the GPU that learns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Costs:
    """
    Seconds of one of each.

    :param chunk: Simulated
    :param step: Of a vectorised environment
    :param reply: Of a worker on another machine
    :param byte: Of observations from there
    :param call: Of the policy to act
    :param sample: That it acts on
    :param message: Between two ranks
    :param megabyte: Of gradients
    :param minibatch: Of an update
    :param trained: Sample in an epoch
    """

    chunk: float = 0.0
    step: float = 0.0
    reply: float = 0.0
    byte: float = 0.0
    call: float = 0.0
    sample: float = 0.0
    message: float = 0.0
    megabyte: float = 0.0
    minibatch: float = 0.0
    trained: float = 0.0


@dataclass(frozen=True)
class Setting:
    """
    What is run, on what.

    :param ranks: Processes that train
    :param n_envs: Environments of each
    :param n_steps: Chunks of each environment in a rollout
    :param cores: Cores that simulate for each rank
    :param workers: On other machines, for each rank
    :param observation_bytes: Of one environment
    :param megabytes: Of gradients
    :param batch_size: Of each rank
    :param epochs: Of the whole policy
    """

    ranks: int = 1
    n_envs: int = 16
    n_steps: int = 60
    cores: float = 1.0
    workers: int = 0
    observation_bytes: float = 55_296.0
    megabytes: float = 4.0
    batch_size: int = 160
    epochs: int = 2


def phases(costs: Costs, setting: Setting) -> dict[str, float]:
    """
    :param costs: Of the machines and the policy
    :param setting: What is run
    :return: Seconds of a cycle, by what they go into
    """
    samples = setting.n_envs * setting.n_steps
    n_minibatches = -(-samples // setting.batch_size) * setting.epochs
    steps = setting.n_steps
    ring = 2 * (setting.ranks - 1) / setting.ranks
    transfer = costs.reply * setting.workers + costs.byte * setting.observation_bytes * setting.n_envs * (setting.workers > 0)
    return {
        "simulation": steps * (costs.chunk * max(setting.n_envs / setting.cores, 1.0) + costs.step),
        "transfer": steps * transfer,
        "inference": steps * (costs.call + costs.sample * setting.n_envs),
        "all-reduce": n_minibatches * (costs.message * np.log2(setting.ranks) + costs.megabyte * ring * setting.megabytes),
        "update": costs.minibatch * n_minibatches + costs.trained * samples * setting.epochs,
    }


def fit(points: Sequence[tuple[Setting, Mapping[str, float]]], known: Mapping[str, float] | None = None) -> Costs:
    """
    Costs with which the model comes nearest to measurements, none of them negative. It is linear in its costs, so that the
    share of each in a phase is what the phase takes if that cost alone is 1.

    :param points: Settings, and the seconds of those phases that were measured, of several together as ``"one+other"``
    :param known: Costs that are given
    :return: The costs
    """
    known = known or {}
    names = [each.name for each in fields(Costs) if each.name not in known]
    rows, seconds = [], []
    for setting, measured in points:
        base = phases(Costs(**known), setting)
        alone = {name: phases(Costs(**{name: 1.0}), setting) for name in names}
        for phase, value in measured.items():
            # Relative, so that the long cycles do not say all
            parts = phase.split("+")
            rows.append([sum(alone[name][part] for part in parts) / value for name in names])
            seconds.append(1 - sum(base[part] for part in parts) / value)
    return replace(Costs(**known), **dict(zip(names, _non_negative(np.array(rows), np.array(seconds)), strict=True)))


def _non_negative(rows: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Least squares with what would be negative left out, the most negative first."""
    kept = [column for column in range(rows.shape[1]) if rows[:, column].any()]
    while kept:
        solution = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0]
        if (solution >= 0).all():
            break
        del kept[int(np.argmin(solution))]
    values = np.zeros(rows.shape[1])
    values[kept] = solution if kept else []
    return [float(value) for value in values]


def cycle(costs: Costs, setting: Setting, overlap: bool = False) -> float:
    """
    :param costs: Of the machines and the policy
    :param setting: What is run
    :param overlap: Whether the next rollout is collected while the last one is learned from
    :return: Seconds of a cycle
    """
    seconds = phases(costs, setting)
    simulated, learned = seconds["simulation"] + seconds["transfer"], seconds["all-reduce"] + seconds["update"]
    return seconds["inference"] + (max(simulated, learned) if overlap else simulated + learned)


def rate(costs: Costs, setting: Setting, overlap: bool = False) -> float:
    """
    :param costs: Of the machines and the policy
    :param setting: What is run
    :param overlap: See :func:`cycle`
    :return: Chunks a second
    """
    return setting.ranks * setting.n_envs * setting.n_steps / cycle(costs, setting, overlap)


def bottleneck(costs: Costs, setting: Setting) -> str:
    """
    :param costs: Of the machines and the policy
    :param setting: What is run
    :return: What takes longest
    """
    seconds: dict[str, Any] = phases(costs, setting)
    return max(seconds, key=seconds.__getitem__)

"""``sb3-vla eval``: evaluate a model."""

from argparse import Namespace
from typing import Any

from sb3_vla_envs.suite import get_suite

from ..checks import check_goals
from ..config import Config
from ..pipeline import evaluate_model
from . import Work
from .given import check_new_file, load_to_act, meet


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    check_new_file(arguments.out)
    config, model = load_to_act(arguments, eval={"n_goals": arguments.n_goals})
    ranks = meet(config)
    protocol = _protocol(config, arguments.protocol)
    if arguments.n_goals is not None:
        protocol["n_goals"] = arguments.n_goals
    check_goals(config, protocol.get("split", config.eval.split), protocol.get("n_goals", config.eval.n_goals))

    def work() -> None:
        result = evaluate_model(config, model, **protocol)
        print(result.table())  # before it is saved: a disk may be full
        if arguments.out and ranks.is_first:
            result.save(arguments.out)

    return work


def _protocol(config: Config, name: str | None) -> dict[str, Any]:
    """
    :param config: Configuration
    :param name: Of one of its suite's protocols, or ``None``
    :return: What it changes of an evaluation
    :raises ValueError: If the suite has no such protocol
    """
    protocols = get_suite(config.suite).protocols
    if name is not None and name not in protocols:
        raise ValueError(f"the suite {config.suite!r} has no protocol {name!r}, only {sorted(protocols)}")
    return {} if name is None else {**protocols[name]}

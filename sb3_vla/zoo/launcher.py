"""
rl-baselines3-zoo's commands with PPOSelfBC, action chunks and our environments.

The zoo (this follows rl_zoo3 2.9.2) fixes its choices of algorithms when its command lines are built, before it loads any
plugin. So PPOSelfBC is added to its tables here, in place, and then its own scripts run, with our experiment in place of its.
"""

import argparse
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..callbacks.success_eval_callback import SuccessEvalCallback
from ..common.trusted_names import UntrustedError
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from ..vec_env.make import preload_workers

try:
    import rl_zoo3.exp_manager
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
except ImportError as error:
    raise ImportError('the zoo needs more packages: pip install "sb3-vla[zoo]"') from error

from .experiment_manager import ChunkExperimentManager, TrialSuccessCallback
from .hyperparams import NAME, convert_ppo_self_bc_params, sample_ppo_self_bc_params
from .trust import READERS

# Those of its scripts that know algorithms by its tables; the others start `python -m rl_zoo3...` anew, or need its Hub client
COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "plot_train": "rl_zoo3.plots.plot_train",
    "all_plots": "rl_zoo3.plots.all_plots",
}
# What rl_zoo3 2.9.2 has in its module exp_manager, and takes no other of, and what stands there while a command runs
_REPLACEMENTS = {
    "ExperimentManager": ChunkExperimentManager,  # there is no option for another
    "EvalCallback": SuccessEvalCallback,  # "best" is by success and steps, not by reward
    "TrialEvalCallback": TrialSuccessCallback,  # and so is the score of a trial
}


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run one of the zoo's commands.

    :param argv: Command and its arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_vla.zoo",
        description="rl-baselines3-zoo with --algo ppo_self_bc, action chunks, and suites of tasks from pixels and language.",
        epilog="COMMAND --help lists the zoo's arguments.",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="before COMMAND: let its files run what they say, such as Python, classes of others, and all models but those of "
        "ppo_self_bc, which are pickled; without it, such a file is refused",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as the zoo takes them")
    args = parser.parse_args(argv)
    register(args.trust)
    preload_workers()
    with ExitStack() as stack:
        stack.enter_context(_replaced(sys, "argv", [f"sb3_vla.zoo {args.command}", *args.arguments]))
        for name, value in _REPLACEMENTS.items():
            stack.enter_context(_replaced(rl_zoo3.exp_manager, name, value))
        stack.enter_context(_replaced(ChunkExperimentManager, "trust", args.trust))
        for owner, name, value in () if args.trust else READERS:
            stack.enter_context(_replaced(owner, name, value))
        # run_module warns of what the zoo has imported itself
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        try:
            runpy.run_module(COMMANDS[args.command], run_name="__main__")
        except UntrustedError as error:
            parser.exit(2, f"{parser.prog} {args.command}: {error}\n")


class _TrustingPPOSelfBC(PPOSelfBC):
    """Loads pickled files, too."""

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        return super().load(*args, **{**kwargs, "trust_pickle": True})


def register(trust: bool = False) -> None:
    """
    Make PPOSelfBC known to rl_zoo3 in this process, under the name ``ppo_self_bc``.

    :param trust: Whether its models may be pickled files, which can run anything
    """
    ALGOS[NAME] = _TrustingPPOSelfBC if trust else PPOSelfBC
    HYPERPARAMS_SAMPLER[NAME] = sample_ppo_self_bc_params
    HYPERPARAMS_CONVERTER[NAME] = convert_ppo_self_bc_params


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)

"""
What each part of the recipe is worth: three hard tasks and an easy one of MT10 with one thing changed, three seeds each. What
is there is not done again. ``make mt10-ablations``, or

    python benchmarks/mt10/ablations.py --seeds 0 1 2 --only no_bc chunks_of_4
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_vla import EvaluationResult, PPOSelfBC
from sb3_vla.imitation.demonstration_set import DemonstrationSamples
from sb3_vla.runs import cli, models
from sb3_vla.runs.settings import deep_update

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS, RESULTS = ROOT / "runs" / "mt10_ablations", ROOT / "results" / "mt10" / "ablations"
BASE = HERE / "ablations.yml"
SUMMARY = RESULTS.with_suffix(".json")
MEASURES = {"success": "success, each seed and their mean", "steps_to_success": "steps to success"}


class _NoDiscountInsideChunks(VecEnvWrapper):
    """Rewards a success by 1 wherever in its chunk it came. (Only a chunk that ends an episode is ever cut short.)"""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, np.sign(rewards), dones, infos


class _DiscountedOnceAChunk(PPOSelfBC):
    """Discounts from chunk to chunk, but not inside them."""

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return _NoDiscountInsideChunks(PPOSelfBC._wrap_env(env, verbose, monitor_wrapper))


class _EpisodesOnly(PPOSelfBC):
    """Keeps episodes by their advantage, but draws their pairs uniformly."""

    def _rate_demonstrations(self) -> None:
        super()._rate_demonstrations()
        if self.replay_buffer is not None:
            self.replay_buffer._lots.clear()


class _ClippedTargets(PPOSelfBC):
    """Imitates actions as they were executed, within their bounds."""

    def _sample_demonstrations(self, batch_size: int) -> DemonstrationSamples:
        batch = super()._sample_demonstrations(batch_size)
        return batch._replace(actions=batch.actions.clamp(-1.0, 1.0))


@dataclass(frozen=True)
class Variant:
    """
    The recipe with one thing changed.

    :param label: For the table
    :param changes: Of the configuration
    :param algorithm: What trains it
    """

    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    algorithm: Callable[..., PPOSelfBC] = PPOSelfBC

    @property
    def needs_sft(self) -> bool:
        """Whether it differs from the recipe before post-training."""
        return not self.changes.keys() <= {"train"}


def _train(**settings: Any) -> dict[str, Any]:
    return {"train": settings}


def _head(**settings: Any) -> dict[str, Any]:
    return _train(policy_kwargs={"head_kwargs": settings})


def _chunks_of(size: int) -> Variant:
    """As many primitive steps and updates as the recipe's chunks of 8 have."""
    recipe = yaml.safe_load(BASE.read_text(encoding="utf-8"))["train"]
    n_steps = round(recipe["n_steps"] * 8 / size)
    of_rollout = {name: recipe[name] // recipe["n_steps"] * n_steps for name in ("total_timesteps", "critic_warmup_steps")}
    batches = {name: round(recipe[name] * 8 / size) for name in ("batch_size", "bc_batch_size")}
    train = {"n_steps": n_steps, **of_rollout, **batches, "checkpoint_every": of_rollout["total_timesteps"]}
    return Variant(f"chunks of {size} steps", {"wrapping": {"chunk_size": size}, "train": train})


VARIANTS = {
    "recipe": Variant("the recipe"),
    "chunks_of_4": _chunks_of(4),
    "chunks_of_5": _chunks_of(5),
    "chunks_of_16": _chunks_of(16),
    "independent_noise": Variant("noise drawn for each step", _head(noise_correlation=0.0)),
    "ratio_per_chunk": Variant(
        "ratio per chunk (and noise for each step)", deep_update(_head(noise_correlation=0.0), _train(ratio_per="chunk"))
    ),
    "noise_in_all_chunks": Variant("noise in all chunks", _head(noise_probability=1.0)),
    "discount_once_a_chunk": Variant("discount once a chunk", algorithm=_DiscountedOnceAChunk),
    "critic_sees_what_the_actor_sees": Variant("critic without privileged state", {"simulation": {"privileged": False}}),
    "no_auxiliary_target": Variant("SFT without auxiliary target", {"sft": {"auxiliary_targets": None}}),
    "clipped_targets": Variant("BC targets clipped", algorithm=_ClippedTargets),
    "episodes_by_advantage": Variant("episodes by advantage, pairs uniformly", algorithm=_EpisodesOnly),
    "shortest_episodes": Variant("the shortest episodes", _train(replay_buffer_kwargs={"rule": "shortest"})),
    "little_bc": Variant("BC weight 0.2", _train(bc_weight=0.2)),
    "no_bc": Variant("no BC", _train(bc_weight=0)),
    "tanh": Variant("PPO fades in (tanh)", _train(bc_weight="tanh")),
    "success": Variant("BC weight by success", _train(bc_weight="success")),
    "gradient_balance": Variant("BC weight by gradients", _train(bc_weight="gradient_balance")),
}


def main() -> None:
    """Run what is missing, then write ``results/mt10/ablations.json`` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="of post-training")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    # By itself, in another process: a variant, and a command of sb3-vla with it
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command is not None:
        name, *command = arguments.command
        models.PPOSelfBC = VARIANTS[name].algorithm  # type: ignore[misc]
        sys.exit(cli.main(command))
    for name in arguments.only:
        for seed in arguments.seeds:
            run(name, seed)
    summarise()


def run(name: str, seed: int) -> None:
    """
    :param name: Of a variant
    :param seed: Of post-training; demonstrations and SFT are the same for all
    """
    variant, folder = VARIANTS[name], RUNS / name
    result = RESULTS / f"{name}_seed{seed}.json"
    if result.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    settings = deep_update(yaml.safe_load(BASE.read_text(encoding="utf-8")), variant.changes)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    demos, sft = RUNS / "demos.npz", (folder if variant.needs_sft else RUNS / "recipe") / "sft"
    if not demos.exists():
        _call(name, "demos", "--config", str(BASE), "--out", str(demos))
    if not (sft / "sft_model.zip").exists():
        shutil.rmtree(sft, ignore_errors=True)
        _call(name, "sft", "--config", str(config), "--demos", str(demos), "--out", str(sft))
    trained = folder / f"seed{seed}"
    if not (trained / "model.zip").exists():
        shutil.rmtree(trained, ignore_errors=True)
        init = ("--init", str(sft / "sft_model.zip"))
        _call(name, "train", "--config", str(config), *init, "--seed", str(seed), "--out", str(trained))
    _call(name, "eval", str(trained / "model.zip"), "--out", str(result))


def _call(name: str, *command: str) -> None:
    """
    :param name: Of a variant, for a process of its own
    :param command: Of ``sb3-vla``
    """
    print(name, "sb3-vla", *command, flush=True)
    subprocess.run([sys.executable, __file__, "--command", name, *command], check=True, cwd=ROOT)


def summarise() -> None:
    """Put what there is together, in the order of the variants."""
    rows = []
    for name, variant in VARIANTS.items():
        results = [EvaluationResult.load(path) for path in sorted(RESULTS.glob(f"{name}_seed*.json"))]
        if results:
            # A run that never succeeds has none
            steps = [r.overall.steps_to_success for r in results if r.overall.steps_to_success is not None]
            rows.append(
                {
                    "name": name,
                    "label": variant.label,
                    "success": [result.overall.success for result in results],
                    "steps_to_success": steps,
                    "tasks": {task: fmean(result.tasks[task].success for result in results) for task in results[0].tasks},
                }
            )
    SUMMARY.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    tasks = list(rows[0]["tasks"]) if rows else []
    print("| changed | success | steps | " + " | ".join(tasks) + " |")
    print("|---" * (3 + len(tasks)) + "|")
    for row in rows:
        cells = [_spread(row["success"], 2), _spread(row["steps_to_success"], 1), *(f"{row['tasks'][t]:.2f}" for t in tasks)]
        print(f"| {row['label']} | " + " | ".join(cells) + " |")
    draw(rows)


def draw(rows: list[dict[str, Any]]) -> None:
    """
    :param rows: Of the table
    """
    figure, all_axes = plt.subplots(1, 2, figsize=(10, 0.35 * len(rows) + 1), sharey=True, constrained_layout=True)
    for axes, (measure, label) in zip(all_axes, MEASURES.items(), strict=True):
        for y, row in enumerate(rows):
            axes.plot(row[measure], [y] * len(row[measure]), "o", color="#0072B2", ms=4, alpha=0.6)
            if row[measure]:
                axes.plot(fmean(row[measure]), y, "|", color="#D55E00", ms=14, mew=2)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    all_axes[0].invert_yaxis()
    figure.savefig(SUMMARY.with_suffix(".png"), dpi=110)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()

"""Fits the model of a cycle to what was measured, predicts, and writes docs/scaling.md's tables and picture."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from cycle_model import Costs, Setting, bottleneck, fit, phases, rate

RESULTS = Path(__file__).parents[1] / "results"
PAGE = RESULTS.parents[1] / "docs" / "scaling.md"
PICTURE = PAGE.with_name("scaling.png")
BEGIN, END = "<!-- scaling: begin -->\n", "<!-- scaling: end -->"
# Of a GPU, which is not measured here: what one would have to measure on one's own
TINY_ON_GPU = {"call": 5e-3, "sample": 1e-5, "minibatch": 2e-2, "trained": 3e-5}
# Two thousand million weights on 150 tokens at 150 TFLOP/s; with LoRA backwards through it, but no gradients of its weights
SECONDS_OF_2B = 2 * 2e9 * 150 / 150e12
LARGE_ON_GPU = {"call": 2e-2, "sample": SECONDS_OF_2B, "minibatch": 5e-2, "trained": 3 * SECONDS_OF_2B}
# 20 GB/s between GPUs, and 25 Gbit/s from the simulators to each
NETWORK = {"message": 3e-5, "megabyte": 1 / 20e3, "byte": 8 / 25e9}
POLICIES = {"tiny": (TINY_ON_GPU, 4.0), "2B with LoRA": (LARGE_ON_GPU, 80.0)}
CORES_PER_GPU = 32


def main() -> None:
    """Write all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="of measure.py --small, to see that it works: nothing is written")
    small = parser.parse_args().small
    name = "scaling_small.json" if small else "scaling.json"
    content = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    costs, of_metaworld, held_out = _fitted(content)
    lines = [*_measured(content), "", *_checked(held_out, costs), "", *_predicted(of_metaworld)]
    print("\n".join(lines))
    if not small:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")
        _draw(of_metaworld)


def _setting(entry: Mapping[str, Any], cpus: int) -> Setting:
    nodes = entry.get("nodes", 0)
    return Setting(
        ranks=entry["ranks"],
        n_envs=entry["n_envs"],
        n_steps=entry["n_steps"],
        cores=min(nodes, cpus) or 1,
        workers=nodes,
        observation_bytes=1000 * entry["kilobytes_of_an_observation"],
        megabytes=entry["megabytes_of_gradients"],
        batch_size=entry["batch_size"],
    )


def _phases_of(entry: Mapping[str, Any]) -> dict[str, float]:
    seconds = entry["seconds"]
    found = {
        "simulation+transfer": seconds["simulation"],
        "inference": seconds["inference"],
        "update": seconds["update"] - seconds["all_reduce"],
    }
    return {**found, "all-reduce": seconds["all_reduce"]} if entry["ranks"] > 1 else found


def _fitted(content: Mapping[str, Any]) -> tuple[Costs, Costs, list[tuple[Setting, dict[str, float]]]]:
    """:return: Costs here, the same with MetaWorld's chunks, and what was not fitted to"""
    points: dict[str, list[tuple[Setting, dict[str, float]]]] = {"waiting": [], "metaworld": []}
    held_out = []
    for kind in ("ranks", "nodes"):
        entries = content[kind]
        for entry in entries:
            point = (_setting(entry, content["cpus"]), _phases_of(entry))
            if entry is entries[-1] and len(entries) > 1:
                held_out.append(point)
            else:
                points[entry["env"]].append(point)
    costs = fit(points["waiting"])
    known = {each.name: getattr(costs, each.name) for each in fields(Costs) if each.name != "chunk"}
    simulated = [
        (setting, {"simulation+transfer": seconds["simulation+transfer"]}) for setting, seconds in points["metaworld"]
    ]
    return costs, fit(simulated, known) if simulated else costs, held_out


def _measured(content: Mapping[str, Any]) -> list[str]:
    lines = [
        "| measured here, one thread a rank | chunks a second | of ranks x one rank | all-reduce, of the update |",
        "|---|---|---|---|",
    ]
    alone: dict[tuple[Any, ...], float] = {}
    for entry in content["ranks"]:
        seconds, key = entry["seconds"], (entry["env"], entry["n_envs"], entry["batch_size"])
        speed = entry["ranks"] * entry["n_envs"] * entry["n_steps"] / (seconds["rollout"] + seconds["update"])
        if entry["ranks"] == 1:
            alone[key] = speed
        part = f"{speed / alone[key] / entry['ranks']:.0%}" if key in alone else ""
        each = f"{entry['n_envs']} {entry['env']} environments and minibatches of {entry['batch_size']} each"
        what = f"{entry['ranks']} ranks, {each}"
        lines.append(f"| {what} | {speed:.0f} | {part} | {seconds['all_reduce'] / seconds['update']:.1%} |")
    for entry in content["nodes"]:
        speed = entry["n_envs"] * entry["n_steps"] / (entry["seconds"]["rollout"] + entry["seconds"]["update"])
        lines.append(f"| {entry['nodes']} Ray nodes, {entry['n_envs']} {entry['env']} environments | {speed:.0f} | | |")
    lines += ["", "| steps of 8 environments, 2 workers | `SharedMemoryVecEnv` | `RayVecEnv` |", "|---|---|---|"]
    for entry in content["overhead"]:
        figures = [f"{1000 * median(entry['seconds_a_step'][name]):.2f} ms" for name in ("processes", "ray")]
        lines.append(f"| chunks of {entry['milliseconds']} ms | {figures[0]} | {figures[1]} |")
    return lines


def _checked(held_out: list[tuple[Setting, dict[str, float]]], costs: Costs) -> list[str]:
    lines = ["| not fitted to | cycle, predicted | measured |", "|---|---|---|"]
    for setting, measured in held_out:
        where = f"{setting.workers} nodes" if setting.workers else f"{setting.ranks} ranks"
        predicted = sum(phases(costs, setting).values())
        lines.append(f"| {where}, {setting.n_envs} environments | {predicted:.2f} s | {sum(measured.values()):.2f} s |")
    return lines


def _cluster(costs: Costs, policy: str, gpus: int, n_envs: int) -> tuple[Costs, Setting]:
    """Costs and setting on so many GPUs, with so many environments on all of them."""
    of_gpu, megabytes = POLICIES[policy]
    setting = Setting(
        ranks=gpus,
        n_envs=n_envs // gpus,
        cores=CORES_PER_GPU,
        workers=CORES_PER_GPU,
        megabytes=megabytes,
        batch_size=n_envs // gpus * 60 // 6,  # six minibatches, as the quickstart has
    )
    return replace(costs, **of_gpu, **NETWORK), setting


def _predicted(costs: Costs) -> list[str]:
    lines = [
        f"| predicted, {CORES_PER_GPU} simulating cores a GPU | environments | chunks a second | with `overlap` "
        "| what takes longest |",
        "|---|---|---|---|---|",
    ]
    for policy in POLICIES:
        for gpus in (8, 16, 32, 64):
            for n_envs in (512, 4096):
                there, setting = _cluster(costs, policy, gpus, n_envs)
                seconds = phases(there, setting)
                longest = bottleneck(there, setting)
                share = seconds[longest] / sum(seconds.values())
                speeds = " | ".join(f"{rate(there, setting, overlap):,.0f}" for overlap in (False, True))
                lines.append(f"| {policy}, {gpus} GPUs | {n_envs} | {speeds} | {longest} ({share:.0%}) |")
    return lines


def _draw(costs: Costs) -> None:
    figure, panels = plt.subplots(1, len(POLICIES), figsize=(9, 3.5), sharey=True)
    gpus = (1, 8, 16, 32, 64)
    for panel, policy in zip(panels, POLICIES, strict=True):
        below = [0.0] * len(gpus)
        parts = [phases(*_cluster(costs, policy, number, 4096)) for number in gpus]
        for name in parts[0]:
            heights = [part[name] / sum(part.values()) for part in parts]
            panel.bar([str(number) for number in gpus], heights, bottom=below, label=name)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        panel.set_title(f"{policy}, 4,096 environments")
        panel.set_xlabel("GPUs")
    panels[0].set_ylabel("part of a cycle")
    panels[-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()

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
    picture = f"![What a cycle consists of, predicted]({PICTURE.name})"
    lines = [*_measured(content), "", *_checked(held_out, costs), "", *_predicted(of_metaworld), "", picture]
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
    on_ranks = [entry[name] for entry in content["ranks"] for name in ("one", "two")]
    for entries, n_held_out in ((on_ranks, 2), (content["nodes"], 1)):
        # With --small there is nothing else to fit to
        n_fitted = len(entries) - n_held_out or len(entries)
        for number, entry in enumerate(entries):
            point = (_setting(entry, content["cpus"]), _phases_of(entry))
            (points[entry["env"]] if number < n_fitted else held_out).append(point)
    costs = fit(points["waiting"])
    known = {each.name: getattr(costs, each.name) for each in fields(Costs) if each.name != "chunk"}
    simulated = [
        (setting, {"simulation+transfer": seconds["simulation+transfer"]}) for setting, seconds in points["metaworld"]
    ]
    return costs, fit(simulated, known) if simulated else costs, held_out


def _speed(entry: Mapping[str, Any]) -> float:
    """:return: Chunks a second of one process"""
    return float(entry["n_envs"] * entry["n_steps"] / (entry["seconds"]["rollout"] + entry["seconds"]["update"]))


def _measured(content: Mapping[str, Any]) -> list[str]:
    lines = [
        "| measured here, one thread a rank | chunks a second, 1 rank | 2 ranks | of 2 x 1 rank | of 2 that share nothing "
        "| all-reduce, of the update | waiting for the other rank before it |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in content["ranks"]:
        seconds, speed = entry["two"]["seconds"], {name: _speed(entry[name]) for name in entry}
        cells = [f"{speed['one']:.0f}", f"{2 * speed['two']:.0f}"]
        cells += [f"{speed['two'] / speed[of]:.0%}" for of in ("one", "beside")]
        cells += [f"{seconds[part] / seconds['update']:.1%}" for part in ("all_reduce", "waiting")]
        what = "{n_envs} {env} environments and minibatches of {batch_size} each".format(**entry["two"])
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    lines += ["", "| measured here, on Ray | chunks a second |", "|---|---|"]
    for entry in content["nodes"]:
        what = f"{entry['nodes']} node{'s' * (entry['nodes'] > 1)}, {entry['n_envs']} {entry['env']} environments"
        lines.append(f"| {what} | {_speed(entry):.0f} |")
    lines += ["", "| steps of 8 environments, 2 workers | `SharedMemoryVecEnv` | `RayVecEnv` |", "|---|---|---|"]
    for entry in content["overhead"]:
        figures = [f"{1000 * median(entry['seconds_a_step'][name]):.2f} ms" for name in ("processes", "ray")]
        lines.append(f"| chunks of {entry['milliseconds']} ms | {figures[0]} | {figures[1]} |")
    return lines


def _checked(held_out: list[tuple[Setting, dict[str, float]]], costs: Costs) -> list[str]:
    lines = ["| not fitted to | cycle, predicted | measured |", "|---|---|---|"]
    for setting, measured in held_out:
        number, what = (setting.workers, "node") if setting.workers else (setting.ranks, "rank")
        where = f"{number} {what}{'s' * (number > 1)}"
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
    panels[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()

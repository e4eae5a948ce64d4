"""
Writes what docs/memory.md says of memory: how the estimates compare with what was measured (results/memory.json), and which
micro-batches fit into which devices (results/memory_table.json; --estimate makes what it lacks, in a quarter of an hour).

    python benchmarks/memory/table.py --estimate
"""

import argparse
import itertools
import json
from typing import Any

import numpy as np
from architectures import CONFIGS, backbone_of
from gymnasium import spaces
from measure import RESULTS

from sb3_vla.ppo_self_bc.memory_estimate import MemoryEstimator
from sb3_vla.ppo_self_bc.micro_batch import plannable
from sb3_vla.runs.memory import DEVICES

PAGE = RESULTS.parents[1] / "docs" / "memory.md"
TABLE = RESULTS.with_name("memory_table.json")
OBSERVATIONS = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (3, 224, 224), np.uint8),
        "state": spaces.Box(-np.inf, np.inf, (8,), np.float32),
        "instruction": spaces.Box(0, 255, (64,), np.uint8),
    }
)
ACTIONS = spaces.Box(-1, 1, (8, 7), np.float32)
# Between them memory grows along a line at most
SIZES = (1, 16, 64)
WAYS: dict[str, dict[str, Any]] = {
    "everything": {},
    "LoRA, rank 16": {"lora": {"r": 16}},
}


def main() -> None:
    """Replace what stands between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimate", action="store_true", help="make what results/memory_table.json lacks")
    if parser.parse_args().estimate:
        rows = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else []
        known = {(each["model"], each["trained"]) for each in rows}
        for name, way in itertools.product(CONFIGS, WAYS):
            if (name, way) not in known:
                rows.append(row(name, way))
                TABLE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    replace("fits", fitting(json.loads(TABLE.read_text(encoding="utf-8"))))
    replace("measured", measured(json.loads(RESULTS.read_text(encoding="utf-8"))))


def row(name: str, way: str) -> dict[str, Any]:
    """
    :param name: Of an architecture
    :param way: What of it is trained
    :return: What it takes, and on the device by micro-batch
    """
    kwargs = {**backbone_of(name, gradient_checkpointing=True), "autocast": "bfloat16", **WAYS[way]}
    sizes = {"n_envs": 16, "n_steps": 60, "batch_size": SIZES[-1] + 1, "n_demonstrations": 1000}
    estimator = MemoryEstimator(OBSERVATIONS, ACTIONS, "open the drawer", kwargs, **sizes)
    takes = {size: estimator.estimate(size) for size in SIZES}
    print(name, way, *(round(each.device / 2**30, 1) for each in takes.values()), flush=True)
    return {
        "model": name,
        "trained": way,
        "image_size": estimator.policy.backbone.image_size,
        "one_sample": takes[1].to_dict(),
        "device": {size: each.device for size, each in takes.items()},
    }


def fitting(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: Of the results
    :return: Their table
    """
    head = ["model", "pictures", "trained", "1 at a time", f"{SIZES[-1]}", *(f"{gb} GB" for gb in DEVICES)]
    lines = [head, ["---"] * len(head)]
    for each in rows:
        takes = list(each["device"].values())
        by_size = np.interp(range(1, SIZES[-1] + 1), SIZES, takes)
        fits = [np.searchsorted(by_size, plannable(gb * 2**30), side="right") for gb in DEVICES]
        sizes = [str(n) if n else "–" for n in fits]  # noqa: RUF001
        picture = f"{each['image_size']} x {each['image_size']}"
        lines.append([each["model"], picture, each["trained"], *(f"{takes[i] / 2**30:.1f} GiB" for i in (0, -1)), *sizes])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """
    :param results: By device and case
    :return: Their table
    """
    head = ["device", "model", "what", "measured", "estimated", "off by"]
    lines = [head, ["---"] * len(head)]
    for device, cases in results.items():
        for name, case in cases.items():
            values = case["measured"] / 2**30, case["estimated"] / 2**30
            sizes = [f"{value:.2f} GiB" for value in values]
            lines.append([device, case["model"], name, *sizes, f"{values[1] / values[0] - 1:+.1%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace(mark: str, text: str) -> None:
    """
    :param mark: Name of a mark
    :param text: What stands there from now on
    """
    before, rest = PAGE.read_text(encoding="utf-8").split(f"<!-- {mark}: begin -->\n")
    after = rest.split(f"<!-- {mark}: end -->")[1]
    whole = f"{before}<!-- {mark}: begin -->\n{text}\n<!-- {mark}: end -->{after}"
    PAGE.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()

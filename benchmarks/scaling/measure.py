"""Measures cycles on ranks and Ray nodes of this machine, and Ray against processes: python benchmarks/scaling/measure.py"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
ONCE = Path(__file__).with_name("cycle_once.py")
OVERHEAD = Path(__file__).with_name("overhead_once.py")
WAITING = {"env": "waiting", "milliseconds": 5.0}
# The last of each is not fitted, but held against what was fitted
RANKS: list[dict[str, Any]] = [
    *({**WAITING, "n_envs": n, "vec_env": "here"} for n in (4, 8, 16)),
    # What a minibatch costs beside its samples: as long as the quickstart's, and short
    {**WAITING, "n_envs": 16, "vec_env": "here", "train": {"batch_size": 160}},
    {**WAITING, "n_envs": 8, "vec_env": "here", "train": {"batch_size": 16}},
    {"env": "metaworld", "n_envs": 6, "vec_env": "here"},
    {**WAITING, "n_envs": 12, "vec_env": "here"},
]
NODES: list[tuple[int, dict[str, Any]]] = [
    *((nodes, {**WAITING, "n_envs": n, "vec_env": "ray"}) for nodes in (1, 2, 3) for n in (4, 12)),
    *((nodes, {"env": "metaworld", "n_envs": 6, "vec_env": "ray"}) for nodes in (1, 2)),
    (2, {**WAITING, "n_envs": 8, "vec_env": "ray"}),
]


def main() -> None:
    """Write ``scaling.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--small", action="store_true", help="one of each kind, to see that it works")
    arguments = parser.parse_args()
    some = slice(-1, None) if arguments.small else slice(None)
    content = {
        "cpus": len(os.sched_getaffinity(0)),
        "ranks": [_on_ranks(given, arguments.rounds) for given in RANKS[some]],
        "nodes": [_on_nodes(nodes, given, arguments.rounds) for nodes, given in NODES[some]],
        "overhead": _overhead(arguments.rounds, 40 if arguments.small else 400),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "scaling_small.json" if arguments.small else "scaling.json"
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _medians(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several measurements of the same."""
    seconds = {label: statistics.median(each["seconds"][label] for each in measured) for label in measured[0]["seconds"]}
    print({**measured[0], "seconds": seconds}, flush=True)
    return {**measured[0], "seconds": seconds, "rounds": [each["seconds"] for each in measured]}


def _on_ranks(given: dict[str, Any], n_rounds: int) -> dict[str, dict[str, Any]]:
    """One rank, two, and two processes that share nothing, in turn, as the machine is not always equally quick."""
    once = [str(ONCE), json.dumps(given)]
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "one": partial(_run, [sys.executable, *once]),
        "two": partial(_run, [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split(), *once]),
        "beside": partial(_beside, given),
    }
    rounds = [{name: way() for name, way in ways.items()} for _ in range(n_rounds)]
    return {name: _medians([each[name] for each in rounds]) for name in ways}


def _beside(given: dict[str, Any]) -> dict[str, Any]:
    """Two processes that share nothing but the machine, at the same time: what two ranks could reach at best."""
    commands = [[sys.executable, str(ONCE), json.dumps({**given, "core": core})] for core in (0, 1)]
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(_run, commands)
    seconds = {label: statistics.mean([first["seconds"][label], second["seconds"][label]]) for label in first["seconds"]}
    return {**first, "seconds": seconds}


def _on_nodes(nodes: int, given: dict[str, Any], n_rounds: int) -> dict[str, Any]:
    with _cluster(nodes) as address:
        run = partial(_run, [sys.executable, str(ONCE), json.dumps(given)], RAY_ADDRESS=address)
        return {**_medians([run() for _ in range(n_rounds)]), "nodes": nodes}


def _overhead(n_rounds: int, n_steps: int) -> list[dict[str, Any]]:
    """Steps a second of 8 environments on one node, by Ray and by processes."""
    rows = []
    with _cluster(1, cpus=2) as address:
        for milliseconds in (0.0, 0.5, 5.0):
            argument = json.dumps({"milliseconds": milliseconds, "rounds": n_rounds, "steps": n_steps})
            rows.append(_run([sys.executable, str(OVERHEAD), argument], RAY_ADDRESS=address))
            print(rows[-1], flush=True)
    return rows


@contextmanager
def _cluster(nodes: int, cpus: int = 1) -> Iterator[str]:
    """So many nodes of so many CPUs each, on this machine."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": cpus, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def _run(command: list[str], **variables: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **variables}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    measured: dict[str, Any] = json.loads(line)
    return measured


if __name__ == "__main__":
    main()

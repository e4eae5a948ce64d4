"""
Attacks runs and files, and writes what came of it to results/reliability.json and the table of docs/reliability.md.

python benchmarks/torture/torture.py [ATTACK ...] [--kills N] [--power-cuts N] [--soak-minutes M] ... [--seed N]
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from checks import run_tests
from command_lines import give_nonsense
from crash_points import crash_everywhere
from damage import damage_files
from full_disks import fill_disks
from kills import kill_trainings
from not_finite import inject
from power_cuts import cut_power
from python_calls import call_with_nonsense
from run_settings import ROOT
from soak import soak
from tally import Tally

from sb3_vla.common.run_folder import software_versions
from sb3_vla_envs.durable_files import replace_text

RESULTS = ROOT / "results" / "reliability.json"
PICTURE = ROOT / "results" / "reliability" / "soak.png"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- torture: begin -->\n", "<!-- torture: end -->"

# None of an attack that this machine can't make
ATTACKS: dict[str, Callable[[argparse.Namespace], Iterable[Tally | None]]] = {
    "damage": lambda arguments: [damage_files(arguments.damaged, arguments.seed)],
    "crash-points": lambda arguments: [crash_everywhere(arguments.crash_points)],
    "full-disks": lambda arguments: [fill_disks(arguments.full_disks, arguments.seed)],
    "power-cuts": lambda arguments: [cut_power(arguments.power_cuts, arguments.seed)],
    "kills": lambda arguments: [kill_trainings(arguments.kills, arguments.seed)],
    "not-finite": lambda arguments: [inject(arguments.not_finite, arguments.seed)],
    "command-lines": lambda arguments: [give_nonsense(arguments.command_lines, arguments.seed)],
    "python-calls": lambda arguments: [call_with_nonsense(arguments.python_calls, arguments.seed)],
    "tests": lambda arguments: run_tests(arguments.seed),
    "soak": lambda arguments: [soak(arguments.soak_minutes, PICTURE)],
}


def main() -> int:
    """
    Make the attacks.

    :return: 0 if nothing was lost
    """
    arguments, n_lost = _parse(), 0
    versions = software_versions()  # of the commit, before results are written
    for name in arguments.attacks or ATTACKS:
        rows = []
        for tally in filter(None, ATTACKS[name](arguments)):
            outcomes = dict(tally.outcomes.most_common(8))
            rows.append({"attack": tally.attack, "tried": tally.tried, "lost": tally.lost, "outcomes": outcomes})
            print(f"{tally.attack}: {tally.tried} tried, {len(tally.lost)} lost", flush=True)
            n_lost += len(tally.lost)
        if rows:
            _keep(name, {"seed": arguments.seed, "versions": versions, "rows": rows})
    return int(n_lost > 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"default: {' '.join(ATTACKS)}")
    parser.add_argument("--kills", type=int, default=58, metavar="N")
    parser.add_argument("--power-cuts", type=int, default=15, metavar="N")
    parser.add_argument("--full-disks", type=int, default=20, metavar="N")
    parser.add_argument("--damaged", type=int, default=444, metavar="N", help="files with random damage")
    parser.add_argument("--crash-points", type=int, default=368, metavar="N")
    parser.add_argument("--not-finite", type=int, default=60, metavar="N", help="numbers that are not finite")
    parser.add_argument("--command-lines", type=int, default=500, metavar="N")
    parser.add_argument("--python-calls", type=int, default=700, metavar="N")
    parser.add_argument("--soak-minutes", type=float, default=60.0, metavar="M")
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(3), "big"), metavar="N", help="default: another each time"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.attacks) - set(ATTACKS):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}, only {', '.join(ATTACKS)}")
    return arguments


def _keep(name: str, found: dict[str, Any]) -> None:
    """Put what an attack found in the place of what it found the last time."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = found
    results = {known: results[known] for known in ATTACKS if known in results}
    replace_text(RESULTS, json.dumps(results, indent=1) + "\n")
    lines = ["| what | tried | survived | lost |", "|---|---|---|---|"]
    for row in (row for attack in results.values() for row in attack["rows"]):
        lost = len(row["lost"])
        lines.append(f"| {row['attack']} | {row['tried']} | {row['tried'] - lost} | {lost} |")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    replace_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    raise SystemExit(main())

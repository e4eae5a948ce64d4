"""
Attacks runs and files, and writes what came of it to results/reliability.json and the table of docs/reliability.md.

python benchmarks/torture/torture.py [--kills N] [--power-cuts N] [--full-disks N] [--damaged N] [--soak-minutes M] [--seed N]
"""

import argparse
import json
import os
from collections.abc import Iterator

from checks import run_tests
from damage import damage_files
from full_disks import fill_disks
from kills import kill_trainings
from power_cuts import cut_power
from run_settings import ROOT
from soak import soak
from tally import Tally

from sb3_vla.common.run_folder import software_versions
from sb3_vla_envs.durable_files import replace_text

RESULTS = ROOT / "results" / "reliability.json"
PICTURE = ROOT / "results" / "reliability" / "soak.png"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- torture: begin -->\n", "<!-- torture: end -->"


def main() -> int:
    """
    Do all of it.

    :return: 0 if nothing was lost
    """
    arguments = _parse()
    rows = []
    for tally in _attack(arguments):
        outcomes = dict(tally.outcomes.most_common(8))
        rows.append({"attack": tally.attack, "tried": tally.tried, "lost": tally.lost, "outcomes": outcomes})
        print(f"{tally.attack}: {tally.tried} tried, {len(tally.lost)} lost", flush=True)
    content = {"arguments": vars(arguments), "versions": software_versions(), "rows": rows}
    replace_text(RESULTS, json.dumps(content, indent=1) + "\n")
    _write_table(rows)
    return int(any(row["lost"] for row in rows))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--kills", type=int, default=58, metavar="N")
    parser.add_argument("--power-cuts", type=int, default=15, metavar="N")
    parser.add_argument("--full-disks", type=int, default=20, metavar="N")
    parser.add_argument("--damaged", type=int, default=444, metavar="N", help="files with random damage")
    parser.add_argument("--soak-minutes", type=float, default=60.0, metavar="M")
    parser.add_argument("--without-tests", action="store_true", help="leave out tests/robustness")
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(3), "big"), metavar="N", help="default: another each time"
    )
    return parser.parse_args()


def _attack(arguments: argparse.Namespace) -> Iterator[Tally]:
    """
    :param arguments: How much of what
    :return: Iterator over what came of each attack; what can't be done on this machine is left out
    """
    seed = arguments.seed
    yield damage_files(arguments.damaged, seed)
    for tally in (fill_disks(arguments.full_disks, seed), cut_power(arguments.power_cuts, seed)):
        if tally is not None:
            yield tally
    yield kill_trainings(arguments.kills, seed)
    if not arguments.without_tests:
        yield from run_tests(seed)
    if arguments.soak_minutes > 0:
        yield soak(arguments.soak_minutes, PICTURE)


def _write_table(rows: list[dict[str, object]]) -> None:
    lines = ["| what | tried | survived | lost |", "|---|---|---|---|"]
    for row in rows:
        lost = len(row["lost"])  # type: ignore[arg-type]
        lines.append(f"| {row['attack']} | {row['tried']} | {row['tried'] - lost} | {lost} |")  # type: ignore[operator]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    replace_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    raise SystemExit(main())

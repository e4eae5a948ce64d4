"""The README's table of quickstart runs: python benchmarks/quickstart_table.py results/quickstart/seed*/results.json"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from sb3_vla.evaluation.result import EvaluationResult


def main() -> None:
    """Print a Markdown table, a row a run, of the ``results.json`` files given as arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="results.json of a quickstart run")
    rows = []
    print("| seed | SFT: success (95 % CI) | steps | post-trained: success (95 % CI) | steps | fewer steps |")
    print("|---|---|---|---|---|---|")
    for path in parser.parse_args().results:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, after = (EvaluationResult.from_dict(content[name]).overall for name in ("SFT", "post-trained"))
        if before.steps_to_success is None or after.steps_to_success is None:
            raise SystemExit(f"{path}: no success, so there are no steps to compare")
        saved = 1 - after.steps_to_success / before.steps_to_success
        rows.append((before.success, before.steps_to_success, after.success, after.steps_to_success, saved))
        cells = [
            f"{result.success:.2f} ({result.success_low:.2f}-{result.success_high:.2f}) | {result.steps_to_success:.1f}"
            for result in (before, after)
        ]
        print(f"| {content['SFT']['settings']['seed']} | {cells[0]} | {cells[1]} | {saved:.1%} |")
    mean = [fmean(column) for column in zip(*rows, strict=True)]
    print(f"| mean | {mean[0]:.2f} | {mean[1]:.1f} | {mean[2]:.2f} | {mean[3]:.1f} | {mean[4]:.1%} |")


if __name__ == "__main__":
    main()

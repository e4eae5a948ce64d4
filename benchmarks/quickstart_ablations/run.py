"""
What single settings of the quickstart are worth: the SFT models of ``make results`` post-trained again with one thing changed,
each by a YAML file beside this one, three seeds. What is there is not done again. ``make ablations``, or

    python benchmarks/quickstart_ablations/run.py --seeds 0 1 2 --only no_bc
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t

from sb3_vla import EvaluationResult
from sb3_vla_envs.durable_files import replace_text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "results" / "ablations"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- ablations: begin -->\n", "<!-- ablations: end -->"
CLI = [sys.executable, "-c", "import sys; from sb3_vla.runs.cli import main; sys.exit(main())"]
CHANGES = sorted(HERE.glob("*.yml"))


def main() -> None:
    """Run what is missing, then write the table of ``docs/results.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--only", nargs="+", choices=[path.stem for path in CHANGES], metavar="NAME")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for config in CHANGES:
        if arguments.only is None or config.stem in arguments.only:
            for seed in arguments.seeds:
                run(config, seed)
    write_table()


def run(config: Path, seed: int) -> None:
    """
    :param config: What is changed
    :param seed: Of the quickstart, and of post-training
    """
    result = RESULTS / f"{config.stem}_seed{seed}.json"
    if result.exists():
        return
    quickstart, trained = ROOT / "runs" / f"results-seed{seed}", ROOT / "runs" / f"{config.stem}-seed{seed}"
    if not (trained / "model.zip").exists():  # which is written last
        shutil.rmtree(trained, ignore_errors=True)
        begin = ("--init", quickstart / "sft_model.zip", "--demos", quickstart / "demos.npz", "--seed", str(seed))
        subprocess.run([*CLI, "train", *begin, "--config", config, "--out", trained], check=True, cwd=ROOT)
    subprocess.run([*CLI, "eval", trained / "model.zip", "--out", result], check=True, cwd=ROOT)


def write_table() -> None:
    """A row for each change, the first one for none."""
    unchanged = {
        path.parent.name: EvaluationResult.from_dict(json.loads(path.read_text(encoding="utf-8"))["post-trained"])
        for path in sorted((ROOT / "results" / "quickstart").glob("seed*/results.json"))
    }
    rows = [_row("nothing", unchanged, {})]
    for config in CHANGES:
        label = config.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        paths = sorted(RESULTS.glob(f"{config.stem}_seed*.json"))
        results = {path.stem.removeprefix(f"{config.stem}_"): EvaluationResult.load(path) for path in paths}
        if results:
            rows.append(_row(f"{label} ([`{config.stem}`](../{config.relative_to(ROOT)}))", results, unchanged))
    head = "| changed | success, mean and each seed | steps to success | more than unchanged (95 %) |"
    table = "\n".join([head, "|---|---|---|---|", *rows])
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    replace_text(PAGE, f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}")


def _row(label: str, results: dict[str, EvaluationResult], unchanged: dict[str, EvaluationResult]) -> str:
    """
    :param label: What was changed
    :param results: By seed
    :param unchanged: Those without the change, if there is one
    :return: A row of the table
    """
    success = [result.overall.success for result in results.values()]
    steps = [_steps(result) for result in results.values()]
    cells = [
        f"{fmean(each):{form}} ({', '.join(f'{x:{form}}' for x in each)})" for each, form in ((success, ".2f"), (steps, ".1f"))
    ]
    more = [_steps(results[seed]) - _steps(unchanged[seed]) for seed in results.keys() & unchanged.keys()]
    margin = t.ppf(0.975, len(more) - 1) * stdev(more) / len(more) ** 0.5 if len(more) > 1 else None
    cells.append("" if margin is None else f"{fmean(more):.1f} ({fmean(more) - margin:.1f} to {fmean(more) + margin:.1f})")
    return f"| {label} | {' | '.join(cells)} |"


def _steps(result: EvaluationResult) -> float:
    return result.overall.steps_to_success or float("nan")


if __name__ == "__main__":
    main()

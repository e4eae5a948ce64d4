"""Draw how the runs of study.py went: results/mt10/curves.png. python benchmarks/mt10/curves.py"""

import csv
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parents[2] / "results" / "mt10"
COLORS = {"demos_10": "#D55E00", "demos_100": "#0072B2"}
# What Wang et al. 2025 (arXiv 2509.25718) report after post-training
PAPER = {"success": 0.93, "steps_to_success": 42.17}
LABELS = {"success": "success", "steps_to_success": "steps to success"}
X_AXES = {"primitive_steps": ("million primitive steps", 1e6), "seconds": ("hours of post-training", 3600.0)}


def main() -> None:
    """Draw success and steps to success on the validation's goals over primitive steps and over hours, a line a seed."""
    figure, all_axes = plt.subplots(2, 2, figsize=(10, 6), sharey="row", sharex="col", constrained_layout=True)
    for row, measure in zip(all_axes, PAPER, strict=True):
        for axes, (column, (label, unit)) in zip(row, X_AXES.items(), strict=True):
            for path in sorted(RESULTS.glob("demos_*/seed*/validation.csv")):
                rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
                x, y = ([float(each[name]) for each in rows] for name in (column, measure))
                demos, seed = path.parts[-3], path.parts[-2]
                axes.plot([each / unit for each in x], y, color=COLORS[demos], lw=1, label=demos if seed == "seed0" else None)
            axes.axhline(PAPER[measure], color="grey", ls="--", lw=1, label="Wang et al. 2025")
            axes.set_xlabel(label if measure != "success" else "")
        row[0].set_ylabel(LABELS[measure])
    all_axes[0][0].legend(frameon=False)
    figure.savefig(RESULTS / "curves.png", dpi=110)


if __name__ == "__main__":
    main()

"""Post-training and SFT, now and in two earlier versions: python benchmarks/speed/learning.py"""

import statistics

from measure import ratio, row, save
from versions import BEFORE, FLAT, checked_out

N_ROUNDS = 3
# What is measured, its unit, and the ratio to each of the others that was to be reached
MEASURED = (
    ("primitive_steps_per_second", "`learn()` at the quickstart's settings", "{:.0f} primitive steps/s", "at least 2", ""),
    ("seconds_of_a_rollout", "its rollout of 960 chunks", "{:.2f} s", "", "at least 0.97"),
    ("seconds_of_an_update", "its update", "{:.2f} s", "", "at least 0.97"),
    ("sft_samples_per_second", "SFT", "{:.0f} samples/s", "", ""),
    ("megabytes_of_the_learner", "peak memory of the learner", "{:.0f} MB", "", ""),
)


def main() -> None:
    """Run ``learn_once.py`` with each version in turn."""
    measured: dict[str, list[dict[str, float]]] = {BEFORE: [], FLAT: [], "now": []}
    with checked_out(BEFORE) as before, checked_out(FLAT) as flat, checked_out(None) as now:
        for _ in range(N_ROUNDS):
            for name, version in ((BEFORE, before), (FLAT, flat), ("now", now)):
                measured[name].append(version.measure("learn_once.py"))
                print(name, measured[name][-1], flush=True)
    rows = []
    for commit, when, bar in ((BEFORE, "before the work on speed", 0), (FLAT, "before the packages were rearranged", 1)):
        for key, what, unit, *bars in MEASURED:
            ours, theirs = ([run[key] for run in measured[name]] for name in ("now", commit))
            ratios = ratio(ours, theirs) if key.endswith("per_second") else ratio(theirs, ours)
            figures = [unit.format(statistics.median(values)) for values in (ours, theirs)]
            rows.append(row(what, figures[0], f"{when} (`{commit}`), {figures[1]}", ratios, bars[bar]))
    save("learning", rows, measured)


if __name__ == "__main__":
    main()

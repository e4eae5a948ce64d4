"""Post-training and SFT, now and before the work on speed: python benchmarks/speed/learning.py"""

import statistics

from measure import ratio, row, save
from versions import BEFORE, checked_out

N_ROUNDS = 3


def main() -> None:
    """Run ``learn_once.py`` with either version in turn."""
    measured: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with checked_out(BEFORE) as before, checked_out(None) as now:
        for _ in range(N_ROUNDS):
            for name, version in (("before", before), ("now", now)):
                measured[name].append(version.measure("learn_once.py"))
                print(name, measured[name][-1], flush=True)
    rows = []
    for key, what, unit, bar in (
        ("primitive_steps_per_second", "`learn()` at the quickstart's settings", "{:.0f} primitive steps/s", "at least 2"),
        ("seconds_of_a_rollout", "its rollout of 960 chunks", "{:.2f} s", ""),
        ("seconds_of_an_update", "its update", "{:.2f} s", ""),
        ("sft_samples_per_second", "SFT", "{:.0f} samples/s", ""),
        ("megabytes_of_the_learner", "peak memory of the learner", "{:.0f} MB", ""),
    ):
        now, before = ([run[key] for run in measured[name]] for name in ("now", "before"))
        ratios = ratio(now, before) if key.endswith("per_second") else ratio(before, now)
        figures = [unit.format(statistics.median(values)) for values in (now, before)]
        rows.append(row(what, figures[0], f"before (`{BEFORE}`), {figures[1]}", ratios, bar))
    save("learning", rows, measured)


if __name__ == "__main__":
    main()

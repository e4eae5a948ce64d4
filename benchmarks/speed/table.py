"""Writes the README's table of speed from benchmarks/results: python benchmarks/speed/table.py"""

import json

from measure import RESULTS, table_line

README = RESULTS.parents[1] / "README.md"
BEGIN, END = "<!-- speed: begin -->\n", "<!-- speed: end -->"
# In the order of the table
BENCHMARKS = ("frames", "vec_envs", "update", "learning", "quickstart")


def main() -> None:
    """Replace what stands between the two marks."""
    lines = ["| what | here | against | times as fast: median (range) | wanted |", "|---|---|---|---|---|"]
    for name in BENCHMARKS:
        results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        lines += [table_line(row) for row in results["rows"]]
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes the table of docs/speed.md from benchmarks/results: python benchmarks/speed/table.py"""

import json

from measure import RESULTS, table_line

PAGE = RESULTS.parents[1] / "docs" / "speed.md"
BEGIN, END = "<!-- speed: begin -->\n", "<!-- speed: end -->"
# In the order of the table
BENCHMARKS = ("frames", "vec_envs", "chunk", "update", "learning", "busy", "quickstart")


def main() -> None:
    """Replace what stands between the two marks."""
    lines = ["| what | here | against | times as fast: median (range) | wanted |", "|---|---|---|---|---|"]
    for name in BENCHMARKS:
        path = RESULTS / f"{name}.json"
        if path.exists():
            lines += [table_line(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

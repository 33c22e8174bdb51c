"""``python -m benchmarks.report``: put the measured rows of ``benchmarks/out`` into the docs.

The table between the two markers of ``docs/benchmarks.md`` is rewritten from the JSON files that the
suites left behind; a suite that was not run keeps the rows it has. The tables of ``docs/detection.md``
are those of the suite ``detect``.
"""

import json
import sys
from pathlib import Path

from benchmarks.detection_page import DEEP, filled

OUT = Path(__file__).parent / "out"
PAGE, DETECTION = Path("docs/benchmarks.md"), Path("docs/detection.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = ("| row | ours | unit | peer | peer's | ratio |", "|---|--:|---|---|--:|--:|")
Measured = dict[str, str | float]
SKIPPED = "scaling"
"""Is drawn, not listed."""


def main() -> int:
    """Rewrite the table and return 0; return 2 if there is nothing to put into it."""
    suites = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(OUT.glob("*.json"))}
    suites.pop(SKIPPED, None)
    if not suites:
        print(f"{OUT} holds no results: run make bench first", file=sys.stderr)
        return 2
    if "detect" in suites:
        DETECTION.write_text(filled(DETECTION.read_text("utf-8"), suites["detect"]), "utf-8")
        suites["detect"] = [
            row for row in suites["detect"] if not str(row["name"]).startswith(DEEP)
        ]
    PAGE.write_text(rewritten(PAGE.read_text("utf-8"), suites), "utf-8")
    return 0


def rewritten(page: str, suites: dict[str, list[Measured]]) -> str:
    """Return the page with the rows of these suites in its table; those of others stay."""
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = [_line(row) for rows in suites.values() for row in rows]
    measured = {*suites, *map(_suite, new), None}
    kept = [line for line in old.splitlines() if _suite(line) not in measured]
    table = "\n".join([BEGIN, *HEAD, *sorted([*kept, *new], key=_suite_first), END])
    return before + table + after


def _line(row: Measured) -> str:
    numbers = (f"{row[name]:.3g}" for name in ("value", "peer_value", "ratio"))
    value, peer_value, ratio = numbers
    return f"| `{row['name']}` | {value} | {row['unit']} | {row['peer']} | {peer_value} | {ratio} |"


def _suite(line: str) -> str | None:
    """Return the first part of a table's row's name, its suite or a part of that; None: it is no row."""
    return line.split("`")[1].partition(".")[0] if line.startswith("| `") else None


def _suite_first(line: str) -> str:
    """Sort by suite alone: within one the order is the one it was measured in."""
    return _suite(line) or ""


if __name__ == "__main__":
    sys.exit(main())

"""``make bench``: run one suite or all, print a table, write ``benchmarks/out/<suite>.json``."""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.row import Row

SUITES = (
    "bank",
    "evidence",
    "lane",
    "hook",
    "scrape",
    "detect",
    "visualise",
    "reliability",
    "scaling",
)
OUT = Path(__file__).parent / "out"


def main(wanted: str) -> int:
    """Run the suites and return 0; return 2 if there is no suite of this name."""
    if wanted not in (*SUITES, "all"):
        print(f"suite {wanted!r}: use all, {', '.join(SUITES)}", file=sys.stderr)
        return 2
    for suite in SUITES if wanted == "all" else (wanted,):
        rows = importlib.import_module(f"benchmarks.{suite}").run()
        _print(suite, rows)
        OUT.mkdir(exist_ok=True)
        text = json.dumps([asdict(row) for row in rows], indent=2)
        (OUT / f"{suite}.json").write_text(text, encoding="utf-8")
    return 0


def _print(suite: str, rows: Sequence[Row]) -> None:
    print(f"\n{suite}")
    print(f"  {'name':<30}{'value':>12} {'unit':<26}{'peer':<38}{'peer value':>12}{'ratio':>9}")
    for row in rows:
        line = f"  {row.name:<30}{row.value:>12.4g} {row.unit:<26}{row.peer:<38}"
        print(f"{line}{row.peer_value:>12.4g}{row.ratio:>9.3g}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))

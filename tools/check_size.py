"""Checks the size budgets that keep every file readable on its own."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LIMIT = 900
FUNCTION_LIMIT = 100
FUNCTION_P90 = 32
FUNCTION_MEDIAN = 9
ARCHITECTURE_LIMIT = 300


def main() -> int:
    """Return 0 if every budget is kept; else print what is over, and return 1."""
    problems: list[str] = []
    lengths: list[int] = []
    for path in sorted((ROOT / "sidecar").rglob("*.py")):
        if "_pb2" not in path.name:
            problems += _measure(path, lengths)
    lengths.sort()
    for label, share, limit in (("median", 0.5, FUNCTION_MEDIAN), ("p90", 0.9, FUNCTION_P90)):
        if (value := lengths[int(len(lengths) * share)]) > limit:
            problems.append(f"functions: {label} {value} lines, limit {limit}")
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").count("\n")
    if architecture > ARCHITECTURE_LIMIT:
        problems.append(f"ARCHITECTURE.md: {architecture} lines, limit {ARCHITECTURE_LIMIT}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


def _measure(path: Path, lengths: list[int]) -> list[str]:
    """Add the lengths of a file's functions to ``lengths``; return what is over its limit."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    lines = text.count("\n")
    problems = [f"{name}: {lines} lines, limit {FILE_LIMIT}"] if lines > FILE_LIMIT else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            lengths.append(length)
            if length > FUNCTION_LIMIT:
                problems.append(f"{name}: {node.name} has {length} lines")
    return problems


if __name__ == "__main__":
    sys.exit(main())

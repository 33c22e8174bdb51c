"""Rewrites every file that is generated from code: rules, dashboard, runbooks and reference documents.

``python tools/golden.py`` writes them; with ``--check`` it writes nothing, names those that differ and
exits 1.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from sidecar import errors
from sidecar.cli import main as command_line
from sidecar.config import SidecarConfig
from sidecar.errors import SidecarError
from sidecar.metrics import render_files

ROOT = Path(__file__).resolve().parent.parent

# Folders in which every file of this pattern is generated: what is not, is left over.
OWNED = (
    "docs/alerts/*.md",
    "deploy/prometheus/rules/*.yaml",
    "deploy/prometheus/tests/*.yaml",
    "grafana/dashboards/*.json",
)

HELP_WIDTH = 100
"""Columns of the help texts in docs/cli.md."""

_ERRORS = """\
# Errors

<!-- Generated from sidecar/errors.py by tools/golden.py; do not edit. -->

Every error the sidecar foresees has a code that never changes. Messages begin with it and say which
value was wrong and what to do. Clients match on the code; the metrics count under the reason.

At start-up every problem is listed and the exit status is 2. After start-up nothing ends the daemon:
bad input is refused and counted, overload drops and counts.

| code | error | gRPC status | reason | what happened | who mends it |
|---|---|---|---|---|---|
"""

_CONFIGURATION = """\
# Configuration

<!-- Generated from sidecar/config/ by tools/golden.py; do not edit. -->

`sidecar serve --config sidecar.yaml` reads one YAML file, checks it whole, and starts only if nothing
is wrong with it. `sidecar check config --config sidecar.yaml` does the checking alone. Unknown keys are
errors. Relative paths are relative to the file's folder. Every key may be left out, but for those marked
*required*.
"""


_COMMANDS = """\
# Command line

<!-- Generated from sidecar/cli/ by tools/golden.py; do not edit. -->

Data goes to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 wrong
usage or configuration, 3 not found, 4 conflict, 5 the daemon cannot be reached or is overloaded, 6 a gate
failed.
"""


def files() -> dict[str, str]:
    """Return every generated file: path in the project to text."""
    documents = {
        "docs/cli.md": render_commands(),
        "docs/configuration.md": render_configuration(),
        "docs/errors.md": render_errors(),
    }
    return {**render_files(), **documents}


def render_commands() -> str:
    """Return ``docs/cli.md``: the help of every command."""
    return _COMMANDS + "".join(
        _helps(command_line, click.Context(command_line, info_name="sidecar"))
    )


def _helps(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the help of a command and of those inside it, as wide as the documents are."""
    context.max_content_width, context.terminal_width = HELP_WIDTH, HELP_WIDTH
    yield f"\n## `{context.command_path}`\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _helps(inner, click.Context(inner, info_name=name, parent=context))


def render_errors() -> str:
    """Return ``docs/errors.md``: the error tree as a table, sorted by code."""
    notes = dict(re.findall(r"── (\w+) {2,}(\S.*)", errors.__doc__ or ""))
    rows = sorted(
        f"| `{kind.code}` | `{kind.__name__}` | `{kind.grpc_status}` | `{kind.reason}` "
        f"| {_first_sentence(kind)} | {_note(kind, notes)} |\n"
        for kind in _descendants(SidecarError)
    )
    return _ERRORS + "".join(rows)


def _descendants(kind: type[SidecarError]) -> Iterator[type[SidecarError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


def _first_sentence(kind: type[SidecarError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _note(kind: type[SidecarError], notes: dict[str, str]) -> str:
    """Return what the tree says beside the class, or beside the nearest one above it."""
    return next((notes[above.__name__] for above in kind.__mro__ if above.__name__ in notes), "")


def render_configuration() -> str:
    """Return ``docs/configuration.md``: every key, its type, default and meaning."""
    schema = SidecarConfig.model_json_schema()
    sections = [_section("", schema, schema)]
    return _CONFIGURATION + "".join(text for section in sections for text in section)


def _section(prefix: str, node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """Yield the table of one section, then those of the sections inside it."""
    inner = []
    title = f"`{prefix.rstrip('.')}`" if prefix else "The whole file"
    about = node.get("description", "") if prefix else "Sections, and what stands outside them."
    yield f"\n## {title}\n\n{about}\n\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for name, given in node["properties"].items():
        item = _resolved(given, root)
        key = f"{prefix}{name}"
        required = name in node.get("required", ())
        default = "*required*" if required else _default(given)
        meaning = given.get("description") or item.get("description", "")
        yield f"| `{key}` | {_type(item, root)} | {default} | {meaning} |\n"
        below = _below(item, root)
        if "properties" in below:
            inner.append((f"{key}[]." if item.get("type") == "array" else f"{key}.", below))
    for below_prefix, below in inner:
        yield from _section(below_prefix, below, root)


def _below(item: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return the section that an entry is, may be, or is a list of; else the entry."""
    if item.get("type") == "array":
        return _resolved(item.get("items", {}), root)
    choices = [_resolved(one, root) for one in item.get("anyOf", ())]
    return next((one for one in choices if "properties" in one), item)


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref", "")
    return root["$defs"][reference.rpartition("/")[2]] if reference else node


def _default(node: dict[str, Any]) -> str:
    if "default" not in node:
        return "see below"
    value = node["default"]
    return "none" if value is None or value == "" else f"`{value}`"


def _type(node: dict[str, Any], root: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(_type(_resolved(one, root), root) for one in node["anyOf"])
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(_resolved(node['items'], root), root)}"
    if "properties" in node:
        return "section"
    words = {
        "string": "path" if node.get("format") in ("path", "file-path") else "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "object": "mapping",
        "null": "none",
    }
    return ", ".join([words[node["type"]], *_bounds(node)])


def _bounds(node: dict[str, Any]) -> Iterator[str]:
    for key, words in (
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "less than"),
    ):
        if key in node:
            yield f"{words} {node[key]:g}"


def left_over(expected: dict[str, str]) -> list[Path]:
    """Return generated files on disk that nothing generates any more."""
    found = [path for pattern in OWNED for path in ROOT.glob(pattern)]
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in expected)


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on differences")
    check = parser.parse_args().check
    expected = files()
    stale = left_over(expected)
    changed = [name for name, text in expected.items() if _read(ROOT / name) != text]
    for name in [*changed, *(str(path.relative_to(ROOT)) for path in stale)]:
        print(f"{'differs' if check else 'written'}: {name}")
    if check:
        if changed or stale:
            print("run: make golden")
        return int(bool(changed or stale))
    for path in stale:
        path.unlink()
    for name in changed:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(expected[name], encoding="utf-8")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())

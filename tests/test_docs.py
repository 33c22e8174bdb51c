"""The documents name everything there is, and nothing that is not."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import click
import pytest

from sidecar import errors
from sidecar.cli import main
from sidecar.detect import State
from sidecar.errors import SidecarError
from sidecar.jobs import manifest
from sidecar.jobs.manifest import SCHEMA
from sidecar.jobs.verification import SCHEMAS, load_schema
from sidecar.recipes import RECIPES, Maximisation

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "demo/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)


def read(name: str) -> str:
    """Return the text of a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def commands(command: click.Command, path: str) -> Iterator[str]:
    """Yield the full name of a command and of every command inside it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path} {name}")


def test_every_command_is_documented() -> None:
    """What can be typed can be looked up."""
    text = read("docs/cli.md")

    assert [] == [name for name in commands(main, "sidecar") if f"## `{name}`" not in text]


def test_every_error_code_is_documented_and_none_is_used_twice() -> None:
    """A code found in a log leads to one explanation."""
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SidecarError)
    ]
    codes = [kind.code for kind in kinds]
    text = read("docs/errors.md")

    assert sorted(set(codes)) == sorted(codes)
    assert [] == [c for c in codes if c != SidecarError.code and f"| `{c}` |" not in text]


def test_every_error_is_drawn_in_the_tree() -> None:
    """The docstring of the module shows the whole tree."""
    drawn = set(re.findall(r"── (\w+)", errors.__doc__ or "")) | {"SidecarError"}
    there = {
        k.__name__
        for k in vars(errors).values()
        if isinstance(k, type) and issubclass(k, Exception)
    }

    assert there == drawn


def test_every_recipe_value_is_documented_with_its_default() -> None:
    """The table of the recipe is the recipe."""
    text = read("docs/portraits.md") + read("docs/comparing.md")

    for one in (one for kind in RECIPES.values() for one in fields(kind)):
        assert f"`{one.name}`" in text, one.name
    assert f"| `steps` | {Maximisation().steps} |" in text
    assert f"| `noise` | {Maximisation().noise} |" in text


@pytest.mark.parametrize("version", SCHEMAS)
def test_every_key_of_the_manifest_is_documented(version: int) -> None:
    """The tables of the page and of the module have the keys of the schemas, the newest no other."""
    section = read("docs/portraits.md").partition("## What the manifest says")[2]
    table = section.partition("\n## ")[0]
    documented = {
        name
        for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    required = set(load_schema(version)["required"])

    assert required <= documented
    if version == SCHEMA:
        assert required == documented
        assert required == set(re.findall(r"``(\w+)``", manifest.__doc__ or "")) & required


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    """No link of the documents is dead."""
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]

    assert [] == [link for link in inside if not (page.parent / link).exists()]


def test_the_make_targets_the_documents_name_exist() -> None:
    """Commands that a reader copies work."""
    makefile = read("Makefile")
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"`make (\w+)|^\$? ?make (\w+)", page.read_text(), re.MULTILINE))

    targets = {a or b for a, b in named}
    assert {"demo", "test"} <= targets
    assert [] == [t for t in sorted(targets) if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


def test_the_readme_yaml_is_a_configuration(tmp_path: Path) -> None:
    """The example a new user copies is accepted, but for files it cannot know."""
    import yaml  # noqa: PLC0415 - only here

    from sidecar.config import load  # noqa: PLC0415 - only here

    block = re.search(r"```yaml\n# sidecar.yaml.*?\n(.*?)```", read("README.md"), re.DOTALL)
    assert block is not None
    document = yaml.safe_load(block[1])
    document["models"][0].pop("weights")
    document["state_dir"] = str(tmp_path)
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(document))

    assert "red round things" == load(path).flags[0].name


def sections_of(text: str) -> dict[str, str]:
    """Return the third-level sections of a page: heading in backticks to text."""
    parts = re.split(r"^### `(.+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_endpoint_of_the_api_is_documented_with_an_example() -> None:
    """The page lists the routes there are, and no other, each with a command to paste."""
    from starlette.routing import Route  # noqa: PLC0415 - only here

    from sidecar.web import create_app  # noqa: PLC0415 - only here

    app = create_app(cast("Any", object()), console_url="http://127.0.0.1:8080")
    routes = [one for one in app.routes if isinstance(one, Route) and "/api/" in one.path]
    served = {
        f"{method} {one.path.replace(':path', '')}"
        for one in routes
        for method in (one.methods or set()) - {"HEAD"}
    }
    documented = sections_of(read("docs/api.md"))

    assert served == set(documented)
    for name, section in documented.items():
        assert "curl -s" in section, name
        assert "arameters" in section or "| parameter |" in section or name.startswith("POST"), name


def test_every_query_parameter_of_the_api_is_documented() -> None:
    """Whatever a request may ask for stands in the table of its endpoint."""
    source = read("sidecar/web/api.py")
    documented = sections_of(read("docs/api.md"))
    names = {
        "baselines": "GET /api/v1/baselines",
        "features": "GET /api/v1/features",
        "distribution": "GET /api/v1/features/{feature}/distribution",
        "evidence": "GET /api/v1/features/{feature}/evidence",
        "jobs": "GET /api/v1/jobs",
        "artifacts": "GET /api/v1/artifacts",
    }
    bodies = dict(
        re.findall(r"^(?:async )?def (\w+)\(.*?\n(.*?)(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
    )

    asked = {
        function: {
            *re.findall(r"(?:params, |params\.get\()\"(\w+)\"", body),
            *re.findall(r"\b(state|window)\((?:params|request\.query_params)\)", body),
        }
        for function, body in bodies.items()
    }
    tables = {
        function: re.findall(r"^\| (`.+?) \|", documented[heading], re.MULTILINE)
        for function, heading in names.items()
    }

    assert {f: a for f, a in asked.items() if a} == {
        f: set(re.findall(r"`(\w+)`", " ".join(rows))) for f, rows in tables.items()
    }


def test_the_examples_of_the_api_have_every_key() -> None:
    """The examples are JSON, and what an answer has is in one of them."""
    page = read("docs/api.md")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    shown = set(re.findall(r'"(\w+)":', "".join(examples)))
    keys = {
        key.value
        for node in ast.walk(ast.parse(read("sidecar/web/serialise.py")))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and key.value != "cache-control"
    }

    assert all(isinstance(json.loads(example), dict) for example in examples)
    assert set() == keys - shown - {"code", "message"}


def audit_names(path: Path) -> Iterator[str]:
    """Yield the names of the audit entries that a module makes."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            inside = list(ast.walk(function))
            for node in inside:
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Event" and node.args:
                    yield from texts_of(node.args[1], inside)


def texts_of(node: ast.expr, inside: Sequence[ast.AST]) -> Iterator[str]:
    """Yield every text an event's name may be: a constant, a choice, a state's, or a variable's."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from texts_of(node.body, inside)
        yield from texts_of(node.orelse, inside)
    elif isinstance(node, ast.JoinedStr):
        yield from (f"feature_{state}" for state in State)
    elif isinstance(node, ast.Name):
        for one in inside:
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == node.id:
                yield from texts_of(one.value, inside)


def test_every_audit_event_is_documented() -> None:
    """The table has the entries that the code can make, and no other."""
    made = {name for path in (ROOT / "sidecar/monitor").glob("*.py") for name in audit_names(path)}
    for path in (ROOT / "sidecar/audits").glob("*.py"):
        made |= set(re.findall(r'"(audit_[a-z]+)"', path.read_text(encoding="utf-8")))
    table = read("docs/events.md").partition("## The daemon's log")[0]

    assert made == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_every_line_of_the_daemons_log_is_documented() -> None:
    """What stands in the log can be looked up, at the level it has."""
    call = re.compile(r'(?:\.(info|warning|error|exception|note)|_(tried))\(\s*"([a-z_]+)"')
    levels = {"exception": "error", "note": "warning", "tried": "warning"}
    said = {
        (name, levels.get(how or tried, how))
        for path in (ROOT / "sidecar").rglob("*.py")
        for how, tried, name in call.findall(path.read_text(encoding="utf-8"))
    }
    table = read("docs/events.md").partition("## The daemon's log")[2]

    assert said == set(re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE))

"""The documents name everything there is, and nothing that is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sidecar import errors
from sidecar.cli import main
from sidecar.errors import SidecarError
from sidecar.recipes import Recipe

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
    text = read("docs/portraits.md")

    for name in Recipe.__dataclass_fields__:
        assert f"`{name}`" in text, name
    assert f"| `steps` | {Recipe().steps} |" in text
    assert f"| `noise` | {Recipe().noise} |" in text


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

"""Verification finds every way in which picture and manifest can be wrong."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from sidecar.jobs.manifest import encode_manifest
from sidecar.jobs.verification import SCHEMAS, load_schema, parse_manifest, verify
from tests.jobs.pictures import facts_of, pair_of, picture_of

pytestmark = pytest.mark.unit

Change = Callable[[dict[str, Any]], object]


def failed(contents: dict[str, bytes], digest: str) -> list[str]:
    """Return the checks that failed, by name."""
    return [f.check for f in verify(digest, contents.get).findings if f.ok is False]


def rewritten(contents: dict[str, bytes], change: Change) -> tuple[dict[str, bytes], str]:
    """Return the contents with a changed manifest, under its new name, and that name."""
    picture, manifest = contents.items()
    facts = json.loads(manifest[1])
    change(facts)
    text = encode_manifest(facts)
    digest = hashlib.sha256(text).hexdigest()
    return {picture[0]: picture[1], digest: text}, digest


def test_an_honest_pair_holds_in_every_respect() -> None:
    """Content, schema, picture, texts and key: all were checked, and all hold."""
    contents = pair_of(facts_of())

    found = verify(list(contents)[1], contents.get)

    assert ["content", "schema", "picture", "texts", "content_key"] == [
        f.check for f in found.findings
    ]
    assert found.ok
    assert (facts_of()["feature"], next(iter(contents))) == (found.feature, found.picture)


def test_a_manifest_of_schema_1_is_still_read() -> None:
    """What earlier releases wrote has fewer keys, and holds as well."""
    newer = ("inputs", "parents", "reproduces", "reliability", "timings")
    facts = {name: value for name, value in facts_of(schema=1).items() if name not in newer}
    contents = pair_of(facts)

    assert verify(list(contents)[1], contents.get).ok


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda facts: facts.pop("timings"), "schema"),
        (lambda facts: facts.update(schema=3), "manifest"),
        (lambda facts: facts["recipe"].update(steps=999), "texts"),
        (lambda facts: facts.update(content_key="0" * 64), "content_key"),
        (lambda facts: facts["model"].update(digest="cd" * 32), "texts"),
        (lambda facts: facts["activation"].update(plain=9.0), "texts"),
        (lambda facts: facts["picture"].update(sha256="0" * 64), "picture"),
        (
            lambda facts: facts["inputs"].append(
                {"kind": "artifact", "name": "start", "digest": "0" * 64}
            ),
            "inputs",
        ),
        (lambda facts: facts["device"].update(threads=0), "schema"),
    ],
)
def test_a_manifest_that_was_changed_is_found(change: Change, check: str) -> None:
    """Each lie is told by the check that is there for it."""
    contents, digest = rewritten(pair_of(facts_of()), change)

    assert check in failed(contents, digest)


def test_bytes_under_a_false_name_are_found() -> None:
    """A damaged manifest and a damaged picture."""
    contents = pair_of(facts_of())
    picture, manifest = contents
    other = picture_of(facts_of(seed=1))

    assert ["content"] == failed({**contents, manifest: contents[manifest] + b" "}, manifest)
    assert ["picture", "texts"] == failed({**contents, picture: other}, manifest)
    assert ["picture", "texts"] == failed({**contents, picture: b"no png"}, manifest)
    assert ["content"] == failed({}, manifest)


def test_an_input_that_is_kept_is_checked() -> None:
    """An artifact given as input is looked up; a data set is said not to be."""
    seen = hashlib.sha256(b"image").hexdigest()
    inputs = [
        {"kind": "artifact", "name": "start", "digest": seen},
        {"kind": "dataset", "name": "photos", "digest": "1" * 64},
    ]
    contents = pair_of(facts_of(inputs=inputs))
    digest = list(contents)[1]

    found = verify(digest, {**contents, seen: b"image"}.get)

    assert [True, None] == [f.ok for f in found.findings if f.check == "inputs"]
    assert found.ok


def test_another_methods_key_is_left_alone() -> None:
    """A key that this release cannot compute is neither right nor wrong."""
    contents = pair_of(facts_of(method={"name": "dreaming", "version": 4}))

    found = verify(list(contents)[1], contents.get)

    assert [None] == [f.ok for f in found.findings if f.check == "content_key"]
    assert found.ok


@pytest.mark.parametrize("version", SCHEMAS)
def test_the_schemas_are_schemas(version: int) -> None:
    """Both files are valid by the draft they name."""
    jsonschema.Draft202012Validator.check_schema(load_schema(version))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 7}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    """Anything but a JSON object of a known schema."""
    from sidecar.errors import CorruptState  # noqa: PLC0415 - only here

    with pytest.raises(CorruptState):
        parse_manifest(content)

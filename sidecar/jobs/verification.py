"""Checks a picture and its manifest against each other and against their names.

Nothing here trusts what it reads: the bytes may come from a daemon, from its state directory, or from
a folder that somebody sent. Needs neither torch nor an image library.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from sidecar.errors import CorruptState, SidecarError
from sidecar.jobs.png import read_texts
from sidecar.recipes import RECIPES, Recipe, Target, content_key, recipe_of

SCHEMAS = (1, 2)
"""Versions of the manifest that are read."""

MANIFEST_LIMIT_BYTES = 4 << 20
"""A manifest has at most 64 points of history; more than this is none."""

Reader = Callable[[str], bytes | None]
"""Returns the content under a sha256; None where there is none."""

_PREFIX = "sidecar."

_UNNAMED = {"typical_range": "typical", "directions": "directions"}
"""Inputs of which a request has one, by their kind: keys know them by these words."""

_KEYED_SCHEMA = 2
"""First schema whose content keys are computed as today."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: Stable name: ``content``, ``manifest``, ``schema``, ``picture``, ``texts``,
            ``content_key`` or ``inputs``.
        ok: Whether it holds; None where it cannot be told from here.
        detail: What was found, and where it does not hold, what to do.
    """

    check: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of checking one manifest, or one file that belongs to none.

    Attributes:
        digest: sha256 that was asked about.
        feature: Text form of the feature, as the manifest says; empty where it does not.
        picture: sha256 of the picture, likewise.
        findings: What was checked, in order.
    """

    digest: str
    feature: str
    picture: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return all(finding.ok is not False for finding in self.findings)


def _holds(check: str, detail: str) -> Finding:
    return Finding(check, ok=True, detail=detail)


def _fails(check: str, detail: str) -> Finding:
    return Finding(check, ok=False, detail=detail)


def _unknown(check: str, detail: str) -> Finding:
    return Finding(check, ok=None, detail=detail)


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Return a manifest of any known schema.

    Raises:
        CorruptState: It is no JSON object, or of a schema that this release does not know.
    """
    try:
        facts = json.loads(content) if len(content) <= MANIFEST_LIMIT_BYTES else None
    except (ValueError, RecursionError) as error:
        raise CorruptState(f"the manifest is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise CorruptState("the manifest is no JSON object")
    if facts.get("schema") not in SCHEMAS:
        raise CorruptState(
            f"manifest schema {str(facts.get('schema'))[:20]!r}: this release reads "
            f"{' and '.join(map(str, SCHEMAS))}; use the release that wrote it"
        )
    return facts


@cache
def load_schema(version: int) -> Mapping[str, Any]:
    """Return the JSON Schema of a version of the manifest."""
    name = f"manifest-{version}.schema.json"
    text = (resources.files("sidecar.jobs") / name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def request_of(facts: Mapping[str, Any]) -> tuple[Target, Recipe]:
    """Return what a manifest's picture was asked for.

    Raises:
        CorruptState: The manifest does not say it, or asks for what this release cannot make.
    """
    try:
        target = {
            name: facts[name] for name in ("feature", "position", "side", "terms") if name in facts
        }
        return Target.of(target), recipe_of(facts["recipe"])
    except (KeyError, TypeError, ValueError, AttributeError, SidecarError) as error:
        raise CorruptState(f"the manifest does not say what was asked for: {error}") from error


def verify(digest: str, read: Reader) -> Verification:
    """Check a manifest with its picture; raises nothing but what ``read`` raises.

    Args:
        digest: sha256 of the manifest.
        read: Where contents come from.
    """
    content = read(digest)
    if content is None:
        lost = _fails("content", f"there is no {digest}: restore it, or ask for it anew")
        return Verification(digest, "", "", (lost,))
    findings = [_named("content", digest, content)]
    try:
        facts = parse_manifest(content)
    except CorruptState as error:
        findings.append(_fails("manifest", error.message))
        return Verification(digest, "", "", tuple(findings))
    findings.append(_valid(facts))
    if findings[-1].ok:
        findings += [*_picture(facts, read), _key(facts), *_inputs(facts, read)]
    picture = facts.get("picture")
    name = picture.get("sha256", "") if isinstance(picture, dict) else ""
    return Verification(digest, str(facts.get("feature", "")), str(name), tuple(findings))


def _named(check: str, digest: str, content: bytes) -> Finding:
    found = hashlib.sha256(content).hexdigest()
    if found == digest:
        return _holds(check, f"sha256 of the {len(content)} bytes is the name")
    words = f"{digest} holds other bytes, of sha256 {found}: restore it, or ask for it anew"
    return _fails(check, words)


def _valid(facts: Mapping[str, Any]) -> Finding:
    import jsonschema  # noqa: PLC0415 - a tenth of a second that few commands need

    version = facts["schema"]
    validator = jsonschema.Draft202012Validator(load_schema(version))
    problems = sorted(validator.iter_errors(facts), key=lambda error: list(map(str, error.path)))
    if not problems:
        return _holds("schema", f"valid by schema {version}")
    where = "/".join(map(str, problems[0].path)) or "the manifest"
    words = f"{where}: {problems[0].message[:300]} ({len(problems)} in all): it was not written so"
    return _fails("schema", words)


def _picture(facts: Mapping[str, Any], read: Reader) -> Iterator[Finding]:
    name = facts["picture"]["sha256"]
    content = read(name)
    if content is None:
        words = f"picture {name} is not there: restore it, or ask for it anew"
        yield _fails("picture", words)
        return
    yield _named("picture", name, content)
    try:
        texts = read_texts(content)
    except CorruptState as error:
        yield _fails("texts", error.message)
        return
    expected = picture_texts(facts)
    wrong = [key for key, text in expected.items() if texts.get(key, "") != text]
    if wrong:
        shown = f"{wrong[0]} is {texts.get(wrong[0], '')[:80]!r}, not {expected[wrong[0]][:80]!r}"
        words = f"the picture's texts are not the manifest's: {shown}: one of them is another's"
        yield _fails("texts", words)
    else:
        yield _holds("texts", f"{len(expected)} texts of the picture are the manifest's")


def picture_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what the text chunks of a manifest's picture must say, empty ones included."""
    position, recipe = facts["position"], facts["recipe"]
    said = {
        "method": f"{facts['method']['name']}/{facts['method']['version']}",
        "feature": facts["feature"],
        "position": "" if position is None else ",".join(map(str, position)),
        "model_digest": facts["model"]["digest"],
        "recipe": json.dumps(recipe, sort_keys=True),
        "seed": str(facts["seed"]),
        "typical_digest": facts["typical_digest"],
        "content_key": facts["content_key"],
        "activation": repr(facts["activation"]["plain"]),
    }
    return {_PREFIX + name: text for name, text in said.items()}


def _key(facts: Mapping[str, Any]) -> Finding:
    name, version = facts["method"]["name"], facts["method"]["version"]
    kind = RECIPES.get(name)
    if kind is None or kind.version != version or facts["schema"] < _KEYED_SCHEMA:
        words = f"made by {name} {version}, whose keys this release cannot compute"
        return _unknown("content_key", words)
    try:
        target, recipe = request_of(facts)
    except CorruptState as error:
        return _fails("content_key", error.message)
    found = content_key(target, recipe, _given(facts))
    if found == facts["content_key"]:
        return _holds("content_key", "the key of the request is the recorded one")
    words = f"the request has key {found}, recorded is {facts['content_key']}: it was changed"
    return _fails("content_key", words)


def _given(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a manifest's inputs by the names that ``content_key`` knows them by."""
    return {
        _UNNAMED.get(one["kind"], f"{one['kind']}:{one['name']}"): one["digest"]
        for one in facts["inputs"]
    }


def _inputs(facts: Mapping[str, Any], read: Reader) -> Iterator[Finding]:
    for one in facts.get("inputs", ()):
        kind, name, digest = one["kind"], one["name"], one["digest"]
        if kind != "artifact":
            words = f"{kind} {name} of sha256 {digest} is kept elsewhere: not looked for"
            yield _unknown("inputs", words)
            continue
        content = read(digest)
        if content is None:
            words = f"input {name}, {digest}, is not there: restore it"
            yield _fails("inputs", words)
        else:
            yield _named("inputs", digest, content)

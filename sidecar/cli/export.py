"""The files of an export: pictures and manifests with what led to them, readable without a sidecar."""

import html
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sidecar

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Portraits</title>
<style>body{{font:16px/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}}
article{{border-top:1px solid #ccc;padding:1rem 0}}img{{float:right;width:16rem;margin-left:1rem}}
dt{{font-weight:600}}dd{{margin:0 0 .5rem;overflow-wrap:anywhere}}article::after{{content:"";display:block;clear:both}}</style>
<h1>{count} from feature-sidecar {version}</h1>
<p>These pictures were computed; they are not from anybody's traffic. Check them with
<code>sidecar artifact verify --all --folder</code> and the path of this folder.</p>
{articles}
</html>
"""

_README = """# {count} from feature-sidecar {version}

`index.html` shows them. `artifacts/` has each picture and its manifest, named by their sha256; `jobs/` and
`evidence/` what led to them. Nothing here needs a network. To check all of it:

    sidecar artifact verify --all --folder {place}

| feature | picture | manifest |
|---|---|---|
{rows}
"""


@dataclass(slots=True)
class Exported:
    """One picture and what led to it.

    Attributes:
        picture: sha256 of the picture.
        manifest: sha256 of its manifest.
        facts: The manifest.
        contents: Bytes by sha256, of both and of the artifacts the picture was made from.
        job: The job that made it; empty where it is not known any more.
        evidence: Why the feature fired; empty where nothing did, or the record has expired.
    """

    picture: str
    manifest: str
    facts: Mapping[str, Any]
    contents: Mapping[str, bytes]
    job: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)


def export_files(ones: Sequence[Exported], place: str) -> dict[str, bytes]:
    """Return the files of an export: path in it to content.

    Args:
        ones: What is exported.
        place: Where it will lie, for the command that checks it.
    """
    files: dict[str, bytes] = {}
    for one in ones:
        for digest, content in one.contents.items():
            ending = {one.picture: ".png", one.manifest: ".json"}.get(digest, ".bin")
            files[f"artifacts/{digest}{ending}"] = content
        if one.job:
            files[f"jobs/{one.job['id']}.json"] = _json(one.job)
        if one.evidence:
            files[f"evidence/{one.evidence['id']}.json"] = _json(one.evidence)
    count = f"{len(ones)} portrait{'' if len(ones) == 1 else 's'}"
    said = {"count": count, "version": sidecar.__version__, "place": place}
    rows = "\n".join(f"| `{o.facts['feature']}` | `{o.picture}` | `{o.manifest}` |" for o in ones)
    articles = "\n".join(_article(one) for one in ones)
    files["README.md"] = _README.format(**said, rows=rows).encode()
    files["index.html"] = _PAGE.format(**said, articles=articles).encode()
    files["index.json"] = _json({"sidecar": sidecar.__version__, "portraits": _listed(ones)})
    return files


def _listed(ones: Sequence[Exported]) -> list[dict[str, Any]]:
    return [
        {
            "feature": one.facts["feature"],
            "picture": one.picture,
            "manifest": one.manifest,
            "verdict": _verdict(one),
            "job": one.job.get("id"),
            "alert": (one.facts.get("parents") or {}).get("alert"),
            "evidence": one.evidence.get("id"),
        }
        for one in ones
    ]


def _verdict(one: Exported) -> str:
    return str((one.facts.get("reliability") or {}).get("verdict", ""))


def _reasons(one: Exported) -> list[str]:
    found: list[str] = (one.facts.get("reliability") or {}).get("reasons", [])
    return found


def _article(one: Exported) -> str:
    facts = one.facts
    parents = facts.get("parents") or {}
    alert = parents.get("alert")
    asked = f"{facts['job']['origin']}, job {facts['job']['id']}"
    lines = {
        "Model": f"{facts['model']['name']}, weights sha256 {facts['model']['digest']}",
        "Method": f"{facts['method']['name']} {facts['method']['version']}, seed {facts['seed']}",
        "Recipe": ", ".join(f"{name} {value}" for name, value in sorted(facts["recipe"].items())),
        "Verdict": " ".join([_verdict(one).upper() or "not assessed", *_reasons(one)]),
        "Activation": f"{facts['activation']['plain']:.6g} ({facts['activation']['view']})",
        "Made by": ", ".join(f"{n} {v}" for n, v in facts["code"].items() if v is not None),
        "Made on": f"{facts['device']['type']} {facts['device']['name']}, {facts['started']}",
        "Asked for by": asked,
        "Alert": f"{alert['fingerprint']}, since {alert['started']}" if alert else "none",
        "Evidence": parents.get("evidence") or "none",
        "Picture": one.picture,
        "Manifest": one.manifest,
    }
    rows = "".join(f"<dt>{n}</dt><dd>{html.escape(str(v))}</dd>" for n, v in lines.items())
    feature = html.escape(str(facts["feature"]))
    return (
        f'<article><h2>{feature}</h2><img src="artifacts/{one.picture}.png" '
        f'alt="Synthetic picture that excites {feature}"><dl>{rows}</dl></article>'
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def write_export(files: Mapping[str, bytes], place: Path) -> None:
    """Write files into a folder, made where it is missing, or into a new zip archive.

    Raises:
        OSError: They cannot be written.
    """
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(files.items()):
                archive.writestr(name, content)
        return
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

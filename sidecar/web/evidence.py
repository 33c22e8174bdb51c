"""The page that says why a feature fired."""

import math

from starlette.requests import Request
from starlette.responses import Response

from sidecar.errors import NotFound
from sidecar.monitor import EvidenceRecord, Exposure
from sidecar.web import wording
from sidecar.web.console import Console
from sidecar.web.filters import text

RECORDS = 10
"""Records that are offered; who wants more asks the API."""

ROWS_WORDS = {
    Exposure.NONE: "Rows and request ids are not kept: evidence.enabled is off. Requests and "
    "exceedances are counted by slice either way.",
    Exposure.DROP: "Request ids are not kept: evidence.ids is drop.",
    Exposure.HASH: "Request ids are hashed with a key of this daemon alone: equal ids have equal hashes.",
    Exposure.KEEP: "Request ids are those the model server gave.",
}
"""What became of the requests' ids, below the table of rows."""


TITLES = {
    "short_rate": "Exceeding in the short windows",
    "level": "Recent level",
    "baseline_share": "Baseline",
    "tolerated": "Tolerated",
    "evidence_log10": "Evidence",
    "threshold_log10": "An alarm takes",
}
"""What the detector's numbers are called, in the order in which people read them."""

_FORMER = {"baseline_rate": "Granted for the baseline"}
"""What records of earlier releases have instead: a share, or more where few requests were measured."""

_SUFFIX = "_log10"


def numbers(record: EvidenceRecord) -> list[tuple[str, str]]:
    """Return titles and words of a record's numbers: shares in percent, evidence as a power of ten.

    Numbers without a title follow under their own name, as they are.
    """
    found = record.numbers
    known = TITLES | _FORMER
    titled = [(title, _words(name, found[name])) for name, title in known.items() if name in found]
    others = sorted(name for name in found if name not in known)
    return titled + [(name.replace("_", " "), wording.number(found[name])) for name in others]


def _words(name: str, value: float) -> str:
    if not name.endswith(_SUFFIX):
        return wording.percent(value)
    return f"10^{value:.1f}" if math.isfinite(value) else wording.ABSENT


def page(request: Request) -> Response:
    """``/f/{feature}/evidence``: the newest record, or the one that ``record`` names."""
    console = Console.of(request)
    backend, key = console.backend, console.backend.resolve(request.path_params["feature"])
    wanted = text(request.query_params, "record")
    records = backend.evidence(key, RECORDS)
    shown = next((one for one in records if wanted in ("", one.id)), None)
    if wanted and shown is None:
        raise NotFound(f"evidence {wanted!r} of {key} is not there: it expired, or never was")
    status = backend.feature(key)
    unit = wording.unit_name(key, tuple(backend.labels(key.layer.model)))
    return console.page(
        "evidence.html",
        key=key,
        status=status,
        name=(status.flag.name if status.flag else "") or unit,
        record=shown,
        records=records,
        numbers=numbers(shown) if shown else [],
        rows_words=ROWS_WORDS[shown.exposure] if shown else "",
        command=wording.command("sidecar", "feature", "evidence", wording.short_key(key)),
        notice="",
    )

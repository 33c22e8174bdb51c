"""Which nights are kept."""

from collections.abc import Sequence

from sidecar.audits.book import Entry
from sidecar.audits.gathering import held

LEAST = 2
"""Nights kept whatever their size: the newest, and what it is held against."""


def superfluous(past: Sequence[Entry], nights: int, limit_bytes: int) -> tuple[Entry, ...]:
    """Return the nights that go.

    The newest ones whose counts and verdicts later nights are held against stay, however old they are: a
    regression would else become the normal as soon as the last good night is gone.

    Args:
        past: Judged nights, the newest first.
        nights: Most that stay.
        limit_bytes: Most bytes of reports that stay; ``LEAST`` nights do in any case.
    """
    compared = (one for one in past if one.facts.layers and held(one, "counts"))
    pictured = (one for one in past if _has_verdicts(one) and held(one, "verdict"))
    references = (next(compared, None), next(pictured, None))
    gone, used = [], 0
    for place, one in enumerate(past):
        used += one.report_bytes
        if place < LEAST or any(one is kept for kept in references):
            continue
        if place >= nights or used > limit_bytes:
            gone.append(one)
    return tuple(gone)


def _has_verdicts(entry: Entry) -> bool:
    return any(one.verdict for one in entry.facts.portraits)

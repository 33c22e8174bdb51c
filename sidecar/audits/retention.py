"""Which nights are kept."""

from collections.abc import Sequence

from sidecar.audits.book import Entry
from sidecar.audits.gathering import held

LEAST = 2
"""Nights kept whatever their size: the newest, and what it is held against."""


def superfluous(past: Sequence[Entry], nights: int, limit_bytes: int) -> tuple[Entry, ...]:
    """Return the nights that go.

    The newest one whose counts later nights are held against stays, however old it is.

    Args:
        past: Judged nights, the newest first.
        nights: Most that stay.
        limit_bytes: Most bytes of reports that stay; ``LEAST`` nights do in any case.
    """
    compared = (one for one in past if one.facts.layers and held(one, "counts"))
    reference = next(compared, None)
    gone, used = [], 0
    for place, one in enumerate(past):
        used += one.report_bytes
        if place < min(nights, LEAST) or one is reference:
            continue
        if place >= nights or used > limit_bytes:
            gone.append(one)
    return tuple(gone)

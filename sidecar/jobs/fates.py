"""What becomes of every artifact at the next collection, and why."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sidecar.store import Entry, Reference, Removal

_GOES = {
    "age": "older than store.artifact_max_age_days, and nobody refers to it",
    "bytes": "the oldest that nobody refers to, beyond store.artifact_limit_bytes",
}


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one artifact.

    Attributes:
        digest: sha256 of it.
        size: Bytes.
        modified: Unix seconds at which it was last stored.
        reason: ``bytes`` or ``age`` where it goes; empty where it stays.
        why: The same in words, or why it stays.
    """

    digest: str
    size: int
    modified: float
    reason: str
    why: str


def fates(
    entries: Sequence[Entry],
    removals: Sequence[Removal],
    references: Sequence[Reference],
    newest: AbstractSet[str],
) -> tuple[Fate, ...]:
    """Say of every artifact whether it goes, and why; as ``entries`` are ordered.

    Args:
        entries: Everything that is stored.
        removals: What a collection would remove.
        references: Who refers to what.
        newest: Artifacts of the newest answer of each feature.
    """
    goes = {removal.entry.digest: removal.reason for removal in removals}
    held: dict[str, list[str]] = {}
    for one in references:
        note = f" ({one.note})" if one.note else ""
        held.setdefault(one.digest, []).append(f"{one.kind} {one.owner}{note}")
    found = []
    for entry in entries:
        reason = goes.get(entry.digest, "")
        why = _GOES[reason] if reason else _stays(held.get(entry.digest, []), entry, newest)
        found.append(Fate(entry.digest, entry.size, entry.modified, reason, why))
    return tuple(found)


def _stays(held: Sequence[str], entry: Entry, newest: AbstractSet[str]) -> str:
    reasons = list(held)
    if entry.digest in newest:
        reasons.append("the newest answer of its feature")
    return "; ".join(reasons) or "within the limits"

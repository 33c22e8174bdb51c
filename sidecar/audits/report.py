"""A night in values, as its report says it, and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sidecar
from sidecar.audits.book import Entry
from sidecar.audits.checks import WORSENED
from sidecar.audits.facts import Facts, Portrayed
from sidecar.audits.gathering import Findings
from sidecar.compare import as_json as compared_as_json
from sidecar.config import AuditConfig
from sidecar.features import short_revision

SCHEMA = 1
"""Of ``report.json``; raised when a name in it is taken away or changes its meaning."""

TREND_NIGHTS = 60
"""Nights that the trend shows: two months of one a day."""


@dataclass(frozen=True, slots=True)
class NightReport:
    """All of one night.

    Attributes:
        audit: As configured.
        entry: The night, judged.
        found: What it found.
        past: Earlier nights, the newest first.
    """

    audit: AuditConfig
    entry: Entry
    found: Findings
    past: tuple[Entry, ...]

    @property
    def before(self) -> Entry | None:
        """The night before; None where this is the first."""
        return self.past[0] if self.past else None

    def earlier(self, feature: str) -> tuple[str, Portrayed] | None:
        """Return the newest earlier portrait of a feature, with its night; None where there is none."""
        found = ((one.night.id, one.facts.portrait(feature)) for one in self.past)
        return next(((night, it) for night, it in found if it is not None), None)

    @property
    def trend(self) -> tuple[Entry, ...]:
        """The newest nights with this one, the oldest first."""
        return (*reversed(self.past[: TREND_NIGHTS - 1]), self.entry)


def changes(now: Facts, before: Facts | None) -> tuple[str, ...]:
    """Return what is otherwise than the night before, a sentence each; without one, nothing."""
    if before is None:
        return ()
    return (*_renamed(now, before), *_moved(now, before), *_judged(now, before))


def _renamed(now: Facts, before: Facts) -> Iterator[str]:
    for what, new, old in (
        ("The audited model's weights", now.digest, before.digest),
        ("The other model's weights", now.other_digest, before.other_digest),
        ("The images", now.dataset_digest, before.dataset_digest),
    ):
        if new and old and new != old:
            yield f"{what} changed, from {short_revision(old)} to {short_revision(new)}."


def _moved(now: Facts, before: Facts) -> Iterator[str]:
    known = {layer.layer: layer for layer in before.layers}
    for layer in now.layers:
        if layer.layer not in known:
            yield f"{layer.layer} was not compared before."
            continue
        for fate in (*WORSENED, "new"):
            more = layer.counts.get(fate, 0) - known[layer.layer].counts.get(fate, 0)
            if more:
                yield f"{layer.layer}: {abs(more)} units {'more' if more > 0 else 'fewer'} {fate}, {layer.counts.get(fate, 0)} now."


def _judged(now: Facts, before: Facts) -> Iterator[str]:
    for one in now.portraits:
        was = before.portrait(one.feature)
        if was is not None and was.verdict != one.verdict:
            yield f"{one.feature} is {one.verdict or 'not judged'}, was {was.verdict or 'not judged'}."


def as_json(report: NightReport) -> str:
    """Return a report as JSON, without the pictures themselves."""
    entry, found, audit = report.entry, report.found, report.audit
    night = entry.night
    before = report.before
    document = {
        "schema": SCHEMA,
        "sidecar": sidecar.__version__,
        "audit": {
            "name": audit.name,
            "model": audit.model,
            "digest": found.facts.digest,
            "against": audit.against,
            "dataset": audit.dataset,
            "fail_on": audit.fail_on,
            "tolerance": audit.tolerance,
        },
        "night": {
            "id": night.id,
            "state": night.state.value,
            "actor": night.actor,
            "due": entry.due,
            "started_at": night.started_at,
            "ended_at": night.ended_at,
        },
        "checks": [asdict(one) for one in night.checks],
        "counts": dict(night.counts),
        "changes": changes(found.facts, before.facts if before else None),
        "jobs": [asdict(one) for one in found.jobs],
        "features": [
            {"feature": one.feature, "why": one.reason.words} for one in entry.plan.chosen or ()
        ],
        "portraits": [_portrait(report, one) for one in found.facts.portraits],
        "again": [asdict(one) for one in found.repeats],
        "served": asdict(found.served),
        "comparison": json.loads(compared_as_json(found.report)) if found.report else None,
        "trend": [_point(one) for one in report.trend],
    }
    return json.dumps(document, indent=2) + "\n"


def _portrait(report: NightReport, one: Portrayed) -> dict[str, Any]:
    earlier = report.earlier(one.feature)
    changed = next((c for c in report.found.changes if c.now.feature == one.feature), None)
    before = None
    if earlier is not None:
        night, was = earlier
        before = {
            "night": night,
            "picture": was.picture,
            "verdict": was.verdict,
            "changed": changed is not None,
            "max_difference": changed.max_difference if changed else 0.0,
        }
    return {**asdict(one), "reasons": one.reasons.splitlines(), "before": before}


def _point(entry: Entry) -> dict[str, Any]:
    night = entry.night
    return {
        "id": night.id,
        "state": night.state.value,
        "counts": dict(night.counts),
        "failed": [one.name for one in night.failed_checks],
        "accepted": entry.accepted,
    }

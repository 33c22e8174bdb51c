"""What a night came to: every check over everything that was found."""

from sidecar.audits.checks import (
    comparison,
    complete,
    counts,
    in_order,
    live,
    reproduced,
    revision,
    verdict,
    verified,
)
from sidecar.audits.gathering import Findings
from sidecar.audits.status import Check
from sidecar.config import AuditConfig


def judge(audit: AuditConfig, found: Findings) -> tuple[Check, ...]:
    """Return what came of each check, in the order in which reports list them."""
    facts = found.facts
    return in_order(
        (
            complete(found.jobs),
            comparison(audit.against or "", found.gate),
            counts(facts, found.reference, audit.tolerance),
            reproduced(found.repeats, sum(one.cached for one in facts.portraits)),
            verdict(facts, found.earlier),
            verified(found.verifications),
            revision(facts.digest, found.served),
            live(found.served),
        )
    )

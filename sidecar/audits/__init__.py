"""Nightly audits: a model is looked at again and again, and told as soon as it is not what it was.

The room promises that a night runs once however often the daemon ends in between, and is judged once; that
one that was missed is made up for once; that its jobs make way for everybody else's; that every check says
with numbers why it passed, failed or was not possible; and that reports and the pictures they show are kept
together and within bounds. No torch here: jobs compute, this room reads what they made.
"""

from sidecar.audits.describe import describe
from sidecar.audits.nightly import NightlyAudits, Tools
from sidecar.audits.status import (
    CHECKS,
    Audits,
    AuditState,
    AuditStatus,
    Check,
    Night,
    NightState,
    Outcome,
)

__all__ = [
    "CHECKS",
    "AuditState",
    "AuditStatus",
    "Audits",
    "Check",
    "Night",
    "NightState",
    "NightlyAudits",
    "Outcome",
    "Tools",
    "describe",
]

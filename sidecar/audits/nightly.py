"""Runs audits at their time, judges their nights, and says how they stand."""

from collections.abc import Callable, Sequence
from typing import Literal

from sidecar.audits.status import AuditState, AuditStatus, Night
from sidecar.config import AuditConfig
from sidecar.errors import UnknownAudit
from sidecar.jobs import next_start


class NightlyAudits:
    """The configured audits; see ``status.Audits`` for what it answers."""

    def __init__(self, audits: Sequence[AuditConfig], *, clock: Callable[[], float]) -> None:
        """Take the configured audits."""
        self._audits = {one.name: one for one in audits}
        self._clock = clock

    def statuses(self) -> tuple[AuditStatus, ...]:
        """Return how every configured audit stands, in the order of the configuration."""
        return tuple(map(self.status, self._audits))

    def status(self, name: str) -> AuditStatus:
        """Return how one audit stands; UnknownAudit where there is none of that name."""
        audit = self._find(name)
        return AuditStatus(
            name=audit.name,
            model=audit.model,
            against=audit.against or "",
            state=AuditState.WAITING,
            last=None,
            running=None,
            next_at=next_start(audit.schedule, audit.zone, self._clock()),
            overdue=False,
        )

    def night(self, name: str, night_id: str) -> Night:
        """Return one night; UnknownAudit where it is not kept."""
        self._find(name)
        raise UnknownAudit(
            f"audit {name!r} has no night {night_id[:40]!r}: see `sidecar audit show`"
        )

    def report(self, name: str, night_id: str, form: Literal["html", "json"]) -> bytes:
        """Return a night's report; UnknownAudit where there is none, or not yet."""
        raise UnknownAudit(f"audit {name!r} has no {form} report of night {night_id[:40]!r}")

    def start(self, name: str, actor: str) -> Night:
        """Run an audit now, or return the night that already runs."""
        self._find(name)
        raise UnknownAudit(f"audit {name!r} cannot be started by {actor} yet")

    def _find(self, name: str) -> AuditConfig:
        audit = self._audits.get(name)
        if audit is None:
            known = ", ".join(self._audits) or "none is configured: name one under audits"
            raise UnknownAudit(f"audit {name[:80]!r} is unknown: use one of {known}")
        return audit

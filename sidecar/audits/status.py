"""How audits stand: the values that metrics, the console and the command line are told.

All are immutable. Times are unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol


class Outcome(StrEnum):
    """What came of one check of a night."""

    PASSED = "passed"
    FAILED = "failed"
    IMPOSSIBLE = "impossible"


class NightState(StrEnum):
    """How a night stands."""

    RUNNING = "running"
    PASSED = "passed"
    REGRESSED = "regressed"
    FAILED = "failed"

    @property
    def judged(self) -> bool:
        """Whether nothing more will happen."""
        return self is not NightState.RUNNING


class AuditState(StrEnum):
    """How an audit stands: ``overdue`` before ``running`` before what the last night came to."""

    WAITING = "waiting"
    RUNNING = "running"
    PASSED = "passed"
    REGRESSED = "regressed"
    FAILED = "failed"
    OVERDUE = "overdue"


CHECKS = (
    "complete",
    "comparison",
    "counts",
    "reproduced",
    "verdict",
    "verified",
    "revision",
    "live",
)
"""Names of the checks of a night, in the order in which reports list them."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a night.

    Attributes:
        name: One of ``CHECKS``.
        outcome: ``impossible`` where there was nothing to hold it against; that is no failure.
        value: What was measured; None where there is no one number.
        limit: The most it may be; None likewise.
        reason: Why, in words, with the numbers.
    """

    name: str
    outcome: Outcome
    value: float | None
    limit: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Night:
    """One run of an audit.

    Attributes:
        audit: Name of the audit.
        id: Which night: the UTC time it was due at, ``YYYYmmddTHHMMSSZ``; sorts by time.
        started_at: When its jobs were submitted.
        ended_at: When it was judged; None while it runs.
        state: How it stands.
        checks: In the order of ``CHECKS``; empty while it runs.
        counts: Units of all compared layers by fate on the images: ``same``, ``moved``, ``lost``, ``new``;
            empty where nothing was compared.
        features: How many features were pictured.
        report: Path of its page on the console, ``/audits/NAME/ID/report.html``; the same with ``.json``
            is its data. None while there is none.
        actor: Who asked for it; ``schedule`` where its time had come.
    """

    audit: str
    id: str
    started_at: float
    ended_at: float | None
    state: NightState
    checks: tuple[Check, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    features: int = 0
    report: str | None = None
    actor: str = "schedule"

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(one for one in self.checks if one.outcome is Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """How one audit stands.

    Attributes:
        name: As configured.
        model: What is audited, ``MODEL`` or ``MODEL@REVISION``.
        against: The other model; empty where nothing is compared.
        state: ``overdue``, else ``running``, else the state of the last night, else ``waiting``.
        last: The newest night that was judged; None before the first.
        running: The night that runs now; None where none does.
        next_at: When the next night is due.
        overdue: Whether a night was due and is still not judged though the next one is due as well.
        nights: Those kept, the newest first, with the running one.
    """

    name: str
    model: str
    against: str
    state: AuditState
    last: Night | None
    running: Night | None
    next_at: float
    overdue: bool
    nights: tuple[Night, ...] = ()

    @property
    def regressed(self) -> bool:
        """Whether a night regressed and none has passed since; one that failed says neither."""
        said = (one.state for one in self.nights)
        told = (NightState.PASSED, NightState.REGRESSED)
        return next((one for one in said if one in told), None) is NightState.REGRESSED


class Audits(Protocol):
    """What the daemon answers about audits.

    Every method may be called from any thread; what goes wrong is a ``SidecarError``. All but ``start``
    and ``report`` answer from memory.
    """

    def statuses(self) -> tuple[AuditStatus, ...]:
        """Return how every configured audit stands, in the order of the configuration."""
        ...

    def status(self, name: str) -> AuditStatus:
        """Return how one audit stands; UnknownAudit where there is none of that name."""
        ...

    def night(self, name: str, night_id: str) -> Night:
        """Return one night; UnknownAudit where it is not kept."""
        ...

    def report(self, name: str, night_id: str, form: Literal["html", "json"]) -> bytes:
        """Return a night's report; UnknownAudit where there is none, or not yet."""
        ...

    def start(self, name: str, actor: str) -> Night:
        """Run an audit now, with an audit entry, or return the night that already runs.

        Args:
            name: Of the audit.
            actor: Who asks: ``cli``, ``console`` or ``api``.

        Raises:
            UnknownAudit: There is none of that name.
            StorageError: The disk refuses it.
        """
        ...

    def accept(self, name: str, night_id: str, note: str) -> Night:
        """Take what a judged night found for the new normal, with an audit entry.

        Args:
            name: Of the audit.
            night_id: Which night; later ones are held against it.
            note: Who accepts it and why.

        Raises:
            UnknownAudit: There is no such night.
            Conflict: It still runs, or failed.
            InvalidInput: The note is empty, too long, or not printable.
        """
        ...

"""``AuditService``: how audits stand, one to be run now, and what they reported."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import grpc

from sidecar.audits import Audits, AuditState, AuditStatus, Check, Night, Outcome
from sidecar.errors import UnknownAudit
from sidecar.ingest import answers
from sidecar.wire.v1 import audits_pb2, audits_pb2_grpc

CHUNK_BYTES = 256 << 10
"""Bytes of a report a message, as of artifacts."""

NIGHTS_LIMIT = 100
"""Nights in one answer: with all their reasons they stay well below gRPC's 4 MiB a message."""

ACTOR = "cli"
"""Who asks over gRPC; the console says so itself."""

STATES = {state: audits_pb2.AuditState.Value(f"AUDIT_STATE_{state.name}") for state in AuditState}
OUTCOMES = {
    outcome: audits_pb2.CheckOutcome.Value(f"CHECK_OUTCOME_{outcome.name}") for outcome in Outcome
}

Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(audits_pb2_grpc.AuditServiceServicer):
    """Answers from ``Audits``; every error carries its stable code."""

    def __init__(self, audits: Audits) -> None:
        """Serve over ``audits``."""
        self._audits = audits

    async def ListAudits(  # noqa: N802 - named by the protocol
        self,
        request: audits_pb2.ListAuditsRequest,  # noqa: ARG002 - it asks for all
        context: Context,
    ) -> audits_pb2.ListAuditsResponse:
        """Return how every audit stands, in the order of the configuration."""
        found = await answers.answer(context, self._audits.statuses)
        return audits_pb2.ListAuditsResponse(audits=map(_audit, found))

    async def DescribeAudit(  # noqa: N802 - named by the protocol
        self, request: audits_pb2.DescribeAuditRequest, context: Context
    ) -> audits_pb2.DescribeAuditResponse:
        """Return one audit with its newest nights."""
        found = await answers.answer(context, self._audits.status, request.name)
        return audits_pb2.DescribeAuditResponse(
            audit=_audit(found), nights=map(_night, found.nights[:NIGHTS_LIMIT])
        )

    async def StartAudit(  # noqa: N802 - named by the protocol
        self, request: audits_pb2.StartAuditRequest, context: Context
    ) -> audits_pb2.StartAuditResponse:
        """Run an audit now, or return the night that runs."""
        found = await answers.answer(context, self._audits.start, request.name, ACTOR)
        return audits_pb2.StartAuditResponse(night=_night(found))

    async def AcceptNight(  # noqa: N802 - named by the protocol
        self, request: audits_pb2.AcceptNightRequest, context: Context
    ) -> audits_pb2.AcceptNightResponse:
        """Take what a night found for the new normal."""
        found = await answers.answer(context, self._accept, request)
        return audits_pb2.AcceptNightResponse(night=_night(found))

    def _accept(self, request: audits_pb2.AcceptNightRequest) -> Night:
        night = self._named(request.name, request.night)
        return self._audits.accept(request.name, night, request.note)

    async def GetReport(  # noqa: N802 - named by the protocol
        self, request: audits_pb2.GetReportRequest, context: Context
    ) -> AsyncIterator[audits_pb2.GetReportResponse]:
        """Send a report in parts."""
        content = await answers.answer(context, self._report, request)
        for start in range(0, len(content), CHUNK_BYTES):
            yield audits_pb2.GetReportResponse(chunk=content[start : start + CHUNK_BYTES])

    def _report(self, request: audits_pb2.GetReportRequest) -> bytes:
        form: Literal["html", "json"] = (
            "json" if request.form == audits_pb2.REPORT_FORM_JSON else "html"
        )
        return self._audits.report(request.name, self._named(request.name, request.night), form)

    def _named(self, name: str, night: str) -> str:
        """Return the night that is meant: the newest judged one where none is named."""
        if night:
            return night
        last = self._audits.status(name).last
        if last is None:
            raise UnknownAudit(
                f"audit {name!r}: no night was judged yet: `sidecar audit run {name}`"
            )
        return last.id


def _audit(one: AuditStatus) -> audits_pb2.Audit:
    return audits_pb2.Audit(
        name=one.name,
        model=one.model,
        against=one.against,
        state=STATES[one.state],
        next_unix_seconds=one.next_at,
        overdue=one.overdue,
        last=None if one.last is None else _night(one.last),
        running=None if one.running is None else _night(one.running),
    )


def _night(one: Night) -> audits_pb2.Night:
    return audits_pb2.Night(
        id=one.id,
        state=STATES[AuditState(one.state.value)],
        started_unix_seconds=one.started_at,
        ended_unix_seconds=one.ended_at or 0.0,
        checks=map(_check, one.checks),
        counts=one.counts,
        features=one.features,
        report=one.report or "",
        actor=one.actor,
    )


def _check(one: Check) -> audits_pb2.Check:
    return audits_pb2.Check(
        name=one.name,
        outcome=OUTCOMES[one.outcome],
        value=one.value,
        limit=one.limit,
        reason=one.reason,
    )

"""``FeatureService``: reads features and steers what is watched."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from sidecar.errors import InvalidInput, MessageTooLarge, Overloaded
from sidecar.features import FeatureKey, LayerKey, revision_matches
from sidecar.ingest import answers
from sidecar.jobs import Portrait
from sidecar.monitor import BaselineVersion, FeatureStatus, Flag, Operations, Watching
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

PAGE_DEFAULT, PAGE_LIMIT = 100, 500
"""Features or layers in a page: enough for a screen, and never a message over gRPC's 4 MiB."""


EVIDENCE_DEFAULT, EVIDENCE_LIMIT = 10, 50
"""Records in an answer; of 50 KB each, so never a message over 4 MiB either."""

TOKEN_LIMIT = 18
"""Digits of a page token: an offset below 2**63."""

IMPORT_LIMIT_BYTES = 512 << 20
"""Largest baseline file: a layer of a million features has some 400 MB."""

IMPORT_SECONDS = 300.0
"""Time for a baseline file to arrive, as long as `sidecar baseline import` waits: others are turned away
meanwhile."""

Context = grpc.aio.ServicerContext[Any, Any]


class FeatureServicer(features_pb2_grpc.FeatureServiceServicer):
    """Answers from ``Operations``; every error carries its stable code."""

    def __init__(self, operations: Operations) -> None:
        """Serve over ``operations``."""
        self._operations = operations
        self._importing = False  # of the event loop alone, so without a lock

    async def ListFeatures(  # noqa: N802 - named by the protocol
        self, request: features_pb2.ListFeaturesRequest, context: Context
    ) -> features_pb2.ListFeaturesResponse:
        """Return one page of features, the flagged ones first, see ``Operations.features``."""
        return await answers.answer(context, self._list, request)

    async def DescribeFeature(  # noqa: N802 - named by the protocol
        self, request: features_pb2.DescribeFeatureRequest, context: Context
    ) -> features_pb2.DescribeFeatureResponse:
        """Return one feature."""
        found = await answers.answer(context, self._describe, request.key)
        return features_pb2.DescribeFeatureResponse(feature=found)

    async def GetDistribution(  # noqa: N802 - named by the protocol
        self, request: features_pb2.GetDistributionRequest, context: Context
    ) -> features_pb2.GetDistributionResponse:
        """Return one feature's distribution over one window."""
        return await answers.answer(context, self._distribution, request)

    async def FlagFeature(  # noqa: N802 - named by the protocol
        self, request: features_pb2.FlagFeatureRequest, context: Context
    ) -> features_pb2.FlagFeatureResponse:
        """Watch a feature."""
        found = await answers.answer(context, self._flag, request)
        return features_pb2.FlagFeatureResponse(feature=found)

    async def UnflagFeature(  # noqa: N802 - named by the protocol
        self, request: features_pb2.UnflagFeatureRequest, context: Context
    ) -> features_pb2.UnflagFeatureResponse:
        """Watch a feature no longer."""
        found = await answers.answer(context, self._unflag, request.key)
        return features_pb2.UnflagFeatureResponse(feature=found)

    async def FreezeBaseline(  # noqa: N802 - named by the protocol
        self, request: features_pb2.FreezeBaselineRequest, context: Context
    ) -> features_pb2.FreezeBaselineResponse:
        """Take what was learned so far as the baseline."""
        layers = await answers.answer(
            context, self._operations.freeze, request.model, request.revision, request.layer
        )
        return features_pb2.FreezeBaselineResponse(layers=layers)

    async def ResetBaseline(  # noqa: N802 - named by the protocol
        self, request: features_pb2.ResetBaselineRequest, context: Context
    ) -> features_pb2.ResetBaselineResponse:
        """Forget baselines and learn anew."""
        where = (request.model, request.revision, request.layer)
        layers = await answers.answer(context, self._operations.reset, *where, request.reason)
        return features_pb2.ResetBaselineResponse(layers=layers)

    async def ListBaselines(  # noqa: N802 - named by the protocol
        self, request: features_pb2.ListBaselinesRequest, context: Context
    ) -> features_pb2.ListBaselinesResponse:
        """Return the stored versions of baselines, newest first."""
        found = await answers.answer(
            context, self._operations.baselines, request.model, request.revision, request.layer
        )
        return features_pb2.ListBaselinesResponse(baselines=map(answers.baseline, found))

    async def ImportBaseline(  # noqa: N802 - named by the protocol
        self,
        request_iterator: AsyncIterator[features_pb2.ImportBaselineRequest],
        context: Context,
    ) -> features_pb2.ImportBaselineResponse:
        """Compare a layer with an exported baseline from now on; one call at a time, see ``_whole``."""
        if self._importing:
            error = Overloaded("another baseline is being imported: try again when that has ended")
            await answers.abort(context, error)
        self._importing, work = True, None
        try:
            content = await _whole(request_iterator, context)
            call = asyncio.to_thread(self._operations.import_baseline, content)
            work = asyncio.create_task(call)
            work.add_done_callback(self._imported)
        finally:
            if work is None:
                self._importing = False
        # A caller who goes away leaves the work behind, and its memory: nobody else begins before it ends.
        found = await answers.settled(context, asyncio.shield(work))
        return features_pb2.ImportBaselineResponse(baseline=answers.baseline(found))

    def _imported(self, work: "asyncio.Task[BaselineVersion]") -> None:
        self._importing = False
        if not work.cancelled():
            work.exception()  # who called was told, or is gone

    async def GetEvidence(  # noqa: N802 - named by the protocol
        self, request: features_pb2.GetEvidenceRequest, context: Context
    ) -> features_pb2.GetEvidenceResponse:
        """Return why a feature fired."""
        return await answers.answer(context, self._evidence, request)

    async def ListLayers(  # noqa: N802 - named by the protocol
        self, request: features_pb2.ListLayersRequest, context: Context
    ) -> features_pb2.ListLayersResponse:
        """Return the matching layers, with what the screen finds in them."""
        return await answers.answer(context, self._layers, request)

    def _message(self, key: FeatureKey) -> features_pb2.Feature:
        portraits = self._operations.portraits(key)
        portrait = portraits[0] if portraits else None
        return self._feature(self._operations.feature(key), portrait, self._shifted())

    def _shifted(self) -> frozenset[LayerKey]:
        return frozenset(one.key for one in self._operations.layers() if one.shifted)

    def _feature(
        self, status: FeatureStatus, portrait: Portrait | None, shifted: frozenset[LayerKey]
    ) -> features_pb2.Feature:
        return answers.feature(
            status,
            portrait,
            console_url=self._operations.console_url,
            runbooks_url=self._operations.runbooks_url,
            shifted=status.key.layer in shifted,
        )

    def _describe(self, text: str) -> features_pb2.Feature:
        return self._message(self._operations.resolve(text))

    def _list(self, request: features_pb2.ListFeaturesRequest) -> features_pb2.ListFeaturesResponse:
        offset = _offset(request.page_token)
        size = min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT)
        found, total = self._operations.features(
            model=request.model,
            revision=request.revision,
            layer=request.layer,
            flagged_only=request.flagged_only,
            offset=offset,
            limit=size,
        )
        end, shifted = offset + len(found), self._shifted()
        answer = features_pb2.ListFeaturesResponse(
            features=[self._feature(status, None, shifted) for status in found],
            next_page_token=str(end) if end < total else "",
            total=total,
        )
        if not offset:
            answer.unmatched.extend(map(answers.unmatched, self._operations.explained_flags()))
            answer.unmatched_total = len(self._operations.unmatched_flags())
        return answer

    def _layers(self, request: features_pb2.ListLayersRequest) -> features_pb2.ListLayersResponse:
        found = [
            one
            for one in self._operations.layers()
            if request.model in ("", one.key.model)
            and revision_matches(request.revision, one.key.revision)
            and request.layer in ("", one.key.layer)
        ]
        offset, size = (
            _offset(request.page_token),
            min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT),
        )
        page = found[offset : offset + size]
        end = offset + len(page)
        return features_pb2.ListLayersResponse(
            layers=map(answers.layer, page),
            next_page_token=str(end) if end < len(found) else "",
            total=len(found),
        )

    def _distribution(
        self, request: features_pb2.GetDistributionRequest
    ) -> features_pb2.GetDistributionResponse:
        window = answers.WINDOWS.get(request.window)
        if window is None:
            raise InvalidInput(
                f"window {request.window} is unknown: use current, baseline, history"
            )
        key = self._operations.resolve(request.key)
        return answers.distribution(self._operations.distribution(key, window))

    def _evidence(
        self, request: features_pb2.GetEvidenceRequest
    ) -> features_pb2.GetEvidenceResponse:
        key = self._operations.resolve(request.key)
        limit = min(request.limit or EVIDENCE_DEFAULT, EVIDENCE_LIMIT)
        found = self._operations.evidence(key, limit)
        return features_pb2.GetEvidenceResponse(evidence=map(answers.evidence, found))

    def _flag(self, request: features_pb2.FlagFeatureRequest) -> features_pb2.Feature:
        key = self._operations.resolve(request.key)
        # What is left out stays as it is, be it set by hand or in the configuration.
        old = self._operations.feature(key).flag or Flag()
        flag = Flag(
            request.name or old.name, request.severity or old.severity, request.owner or old.owner
        )
        watching = Watching.of(
            request.factor if request.HasField("factor") else None,
            request.direction,
            request.slice if request.HasField("slice") else None,
            request.detectors,
        )
        self._operations.flag(key, flag, watching)
        return self._message(key)

    def _unflag(self, text: str) -> features_pb2.Feature:
        key = self._operations.resolve(text)
        self._operations.unflag(key)
        return self._message(key)


def _offset(token: str) -> int:
    """Return where a page begins.

    Raises:
        InvalidInput: The token is none that this service gives out.
    """
    if token and not (token.isascii() and token.isdigit() and len(token) <= TOKEN_LIMIT):
        raise InvalidInput(f"page_token {token[:40]!r} is not one this service gave out")
    return int(token or 0)


async def _whole(
    parts: AsyncIterator[features_pb2.ImportBaselineRequest], context: Context
) -> bytes:
    """Return a file that comes in parts; it is held in memory, so it has a limit and a time."""
    content = bytearray()
    try:
        async with asyncio.timeout(IMPORT_SECONDS):
            async for part in parts:
                content += part.chunk
                if len(content) > IMPORT_LIMIT_BYTES:
                    break
    except TimeoutError:
        late = Overloaded(
            f"baseline file did not arrive within {IMPORT_SECONDS:g} s: send it again over a faster "
            "connection"
        )
        await answers.abort(context, late)
    if len(content) > IMPORT_LIMIT_BYTES:
        error = MessageTooLarge(
            f"baseline file has more than {IMPORT_LIMIT_BYTES} bytes: use one that `sidecar baseline "
            "export` wrote"
        )
        await answers.abort(context, error)
    return bytes(content)

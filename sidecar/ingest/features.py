"""``FeatureService``: reads features and steers what is watched."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from sidecar.errors import InvalidInput, MessageTooLarge
from sidecar.features import FeatureKey
from sidecar.ingest import answers
from sidecar.monitor import Flag, Operations
from sidecar.wire.v1 import features_pb2, features_pb2_grpc

PAGE_DEFAULT, PAGE_LIMIT = 100, 1000
"""Features in a page: enough for a screen, and never a message over gRPC's 4 MiB."""

EVIDENCE_DEFAULT, EVIDENCE_LIMIT = 10, 50
"""Records in an answer; of 50 KB each, so never a message over 4 MiB either."""

TOKEN_LIMIT = 18
"""Digits of a page token: an offset below 2**63."""

IMPORT_LIMIT_BYTES = 512 << 20
"""Largest baseline file: a layer of a million features has some 400 MB."""

Context = grpc.aio.ServicerContext[Any, Any]


class FeatureServicer(features_pb2_grpc.FeatureServiceServicer):
    """Answers from ``Operations``; every error carries its stable code."""

    def __init__(self, operations: Operations) -> None:
        """Serve over ``operations``."""
        self._operations = operations

    async def ListFeatures(  # noqa: N802 - named by the protocol
        self, request: features_pb2.ListFeaturesRequest, context: Context
    ) -> features_pb2.ListFeaturesResponse:
        """Return one page of features, in the order of their keys."""
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
        """Compare a layer with an exported baseline from now on."""
        content = bytearray()
        async for part in request_iterator:
            content += part.chunk
            if len(content) > IMPORT_LIMIT_BYTES:
                error = MessageTooLarge(
                    f"baseline file has more than {IMPORT_LIMIT_BYTES} bytes: use one that `sidecar "
                    "baseline export` wrote"
                )
                await answers.abort(context, error)
        found = await answers.answer(context, self._operations.import_baseline, bytes(content))
        return features_pb2.ImportBaselineResponse(baseline=answers.baseline(found))

    async def GetEvidence(  # noqa: N802 - named by the protocol
        self, request: features_pb2.GetEvidenceRequest, context: Context
    ) -> features_pb2.GetEvidenceResponse:
        """Return why a feature fired."""
        return await answers.answer(context, self._evidence, request)

    def _message(self, key: FeatureKey) -> features_pb2.Feature:
        status = self._operations.feature(key)
        portraits = self._operations.portraits(key)
        return answers.feature(status, portraits[0] if portraits else None)

    def _describe(self, text: str) -> features_pb2.Feature:
        return self._message(self._operations.resolve(text))

    def _list(self, request: features_pb2.ListFeaturesRequest) -> features_pb2.ListFeaturesResponse:
        token = request.page_token
        if token and not (token.isascii() and token.isdigit() and len(token) <= TOKEN_LIMIT):
            raise InvalidInput(f"page_token {token[:40]!r} is not one this service gave out")
        offset = int(token or 0)
        size = min(request.page_size or PAGE_DEFAULT, PAGE_LIMIT)
        found, total = self._operations.features(
            model=request.model,
            revision=request.revision,
            layer=request.layer,
            flagged_only=request.flagged_only,
            offset=offset,
            limit=size,
        )
        end = offset + len(found)
        return features_pb2.ListFeaturesResponse(
            features=[answers.feature(status) for status in found],
            next_page_token=str(end) if end < total else "",
            total=total,
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
        self._operations.flag(key, flag)
        return self._message(key)

    def _unflag(self, text: str) -> features_pb2.Feature:
        key = self._operations.resolve(text)
        self._operations.unflag(key)
        return self._message(key)

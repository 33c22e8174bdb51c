"""An evidence record: what is kept of the moment in which a feature began to fire."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Self

from sidecar.config import EvidenceConfig
from sidecar.detect import Attribution, LeftOut, SliceCount
from sidecar.errors import CorruptState, InvalidInput
from sidecar.features import FeatureKey

ID_DIGITS = 16
"""Hexadecimal digits of a record's id: 64 bits, ample for the records of one state directory."""


class Exposure(IntEnum):
    """How much the rows of a record say of a person, in increasing order.

    ``NONE``: there are no rows. ``DROP``: rows without request ids. ``HASH``: ids as keyed hashes.
    ``KEEP``: ids as the server sent them.
    """

    NONE = 0
    DROP = 1
    HASH = 2
    KEEP = 3


_EXPOSURES = {"keep": Exposure.KEEP, "hash": Exposure.HASH, "drop": Exposure.DROP}


def exposure_of(settings: EvidenceConfig) -> Exposure:
    """Return how much the rows of new records may say of a person."""
    return _EXPOSURES[settings.ids] if settings.enabled else Exposure.NONE


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """One row beyond a feature's threshold.

    Attributes:
        value: The activation; may be infinite.
        at: Unix seconds of its batch.
        request_id: The id of its request, its hash, or empty, see ``Exposure``.
        position: Which of the request's sampled rows it is, from 0.
        traffic: The request's slice, ``key=value`` pairs joined by commas; may be empty or cut.
    """

    value: float
    at: float
    request_id: str
    position: int
    traffic: str


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """Why a feature fired, with the requests that made it.

    Attributes:
        feature: Which feature.
        at: Unix seconds at which it began to fire.
        reason: The detector's words.
        numbers: The detector's numbers by name; NaN where one is not known.
        above: Threshold above which a row is beyond; infinite where there is none.
        below: Threshold below which one is; minus infinity where there is none.
        since: Unix seconds at which the first window at hand began; 0 without any.
        windows: Windows at hand, from the onset on.
        requests: Requests in them.
        exceedances: Those with a row beyond.
        uncounted: Requests with slices beyond those that could be counted.
        attribution: Which slice explains it; of ``ranked`` only the first.
        rows: The rows furthest beyond, the furthest first; none unless evidence is enabled.
        exposure: How much the rows say of a person.
        id: Short hash of all of the above.
    """

    feature: FeatureKey
    at: float
    reason: str
    numbers: Mapping[str, float]
    above: float
    below: float
    since: float
    windows: int
    requests: int
    exceedances: int
    uncounted: int
    attribution: Attribution
    rows: tuple[EvidenceRow, ...] = ()
    exposure: Exposure = Exposure.NONE
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Name the record by its content."""
        digest = hashlib.sha256(_text(self).encode()).hexdigest()
        object.__setattr__(self, "id", digest[:ID_DIGITS])

    def encode(self) -> str:
        """Return the record as text for ``decode``; ASCII, so as many bytes as characters."""
        return _text(self)

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the record that ``encode`` saw.

        Raises:
            CorruptState: The text is something else.
        """
        try:
            saved = json.loads(text)
            said = saved.pop("attribution")
            ranked = tuple(
                LeftOut(**{**one, "left": SliceCount(**one["left"])}) for one in said.pop("ranked")
            )
            rows = tuple(EvidenceRow(**row) for row in saved.pop("rows"))
            return cls(
                feature=FeatureKey.parse(saved.pop("feature")),
                attribution=Attribution(**said, ranked=ranked),
                rows=rows,
                exposure=Exposure(saved.pop("exposure")),
                **saved,
            )
        except (ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise CorruptState(f"evidence cannot be read back: {error!r}") from error


def _text(record: EvidenceRecord) -> str:
    """Return everything but the id, always in the same order; NaN and infinities as Python has them."""
    names = (
        name for name in record.__slots__ if name not in ("id", "feature", "attribution", "rows")
    )
    body: dict[str, Any] = {name: getattr(record, name) for name in names}
    body |= {
        "feature": str(record.feature),
        "numbers": dict(record.numbers),
        "attribution": asdict(record.attribution),
        "rows": [asdict(row) for row in record.rows],
        "exposure": int(record.exposure),
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"))

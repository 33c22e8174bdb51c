"""One registered layer as the monitor keeps its books, and as a snapshot holds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.detect import SpikePolicy
from sidecar.features import Capture, FeatureKey, LayerKey
from sidecar.monitor.activations import Activations
from sidecar.monitor.screening import Screening
from sidecar.monitor.watch import LayerWatch
from sidecar.monitor.windows import Levels
from sidecar.store import Subject


@dataclass(slots=True)
class MonitoredLayer:
    """Book-keeping of one layer beside its statistics."""

    capture: Capture
    watch: LayerWatch
    activations: Activations = field(default_factory=Activations)
    rows: int = 0
    requests: int = 0
    nonfinite: int = 0
    baseline_requests: int = 0
    baseline_started: float = 0.0
    last_seen: float = 0.0
    registered: float = 0.0
    restored: tuple[int, int, int] = (0, 0, 0)
    baseline_digest: str = ""
    baseline_frozen_at: float = 0.0
    baseline_origin: str = ""
    screening: Screening = field(default_factory=Screening)
    levels: Levels = field(default_factory=lambda: Levels.of(None, (), ()))
    subject: Subject | None = None  # of its recorded windows; None after any change of it
    relearns: bool = False  # somebody wants its own baseline, not a shared one

    def to_dict(self, key: LayerKey) -> dict[str, Any]:
        """Return JSON-able values for ``read_layer``."""
        return {
            "key": str(key.feature(0)),
            "capture": asdict(self.capture),
            "rows": self.rows,
            "requests": self.requests,
            "nonfinite": self.nonfinite,
            "baseline_requests": self.baseline_requests,
            "baseline_started": self.baseline_started,
            "last_seen": self.last_seen,
            "baseline": {
                "digest": self.baseline_digest,
                "frozen_at": self.baseline_frozen_at,
                "origin": self.baseline_origin,
                "relearns": self.relearns,
            },
            "watch": self.watch.to_dict(),
            "screening": self.screening.to_dict(),
        }


def read_layer(
    item: Mapping[str, Any], policy: SpikePolicy, now: float
) -> tuple[LayerKey, MonitoredLayer]:
    """Return what ``to_dict`` saw, and its key.

    Raises:
        CorruptState: It is not what ``to_dict`` returns; so may KeyError, TypeError, ValueError,
            OverflowError and InvalidInput say.
    """
    key = FeatureKey.parse(item["key"]).layer
    watch = LayerWatch.empty(key, policy, now)
    watch.restore(item["watch"])
    screening = Screening()
    screening.restore(item["screening"])
    saved = item["baseline"]
    rows, requests, nonfinite = (int(item[n]) for n in ("rows", "requests", "nonfinite"))
    return key, MonitoredLayer(
        Capture(**item["capture"]),
        watch,
        rows=rows,
        requests=requests,
        nonfinite=nonfinite,
        restored=(rows, requests, nonfinite),
        registered=now,
        baseline_requests=int(item["baseline_requests"]),
        baseline_started=float(item["baseline_started"]),
        last_seen=float(item["last_seen"]),
        baseline_digest=str(saved["digest"]),
        baseline_frozen_at=float(saved["frozen_at"]),
        baseline_origin=str(saved["origin"]),
        relearns=bool(saved["relearns"]),
        screening=screening,
    )

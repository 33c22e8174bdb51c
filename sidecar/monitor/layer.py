"""One registered layer as the monitor keeps its books, and as a snapshot holds it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.detect import SpikePolicy
from sidecar.errors import CorruptState
from sidecar.features import Capture, FeatureKey, LayerKey
from sidecar.monitor.activations import Activations
from sidecar.monitor.screening import Screening
from sidecar.monitor.watch import LayerWatch
from sidecar.monitor.windows import Levels
from sidecar.store import Subject

_LONGEST_WINDOW = 2.0
"""Times its length that a window counts as learned at most: more is a clock that jumped, or a daemon that
stood still and saw nothing."""


@dataclass(slots=True)
class MonitoredLayer:
    """Book-keeping of one layer beside its statistics.

    Learning time is added up window by window, and not taken from the clock's difference since it
    began: a clock that is put forward must not end learning, one that is put back not prolong it.
    """

    capture: Capture
    watch: LayerWatch
    activations: Activations = field(default_factory=Activations)
    rows: int = 0
    requests: int = 0
    nonfinite: int = 0
    baseline_requests: int = 0
    baseline_started: float = 0.0  # of the first sample, as the clock was then
    learned_seconds: float = 0.0  # added up by ``learn``
    last_seen: float = 0.0
    registered: float = 0.0
    restored: tuple[int, int, int] = (0, 0, 0)
    baseline_digest: str = ""
    baseline_frozen_at: float = 0.0
    baseline_origin: str = ""
    baseline_capture: Capture | None = None  # as it was measured while it learned, once frozen
    cautions: tuple[str, ...] = ()  # what speaks against the baseline in force
    screening: Screening = field(default_factory=Screening)
    levels: Levels = field(default_factory=lambda: Levels.of(None, (), ()))
    subject: Subject | None = None  # of its recorded windows; None after any change of it
    relearns: bool = False  # somebody wants its own baseline, not a shared one
    failed_windows: int = 0  # that could not be closed, since the daemon started
    failing: bool = False  # whether the last one could not

    def learn(self, began: float, now: float, window_seconds: float) -> None:
        """Count a window, or what there is of it, as time that was learned from.

        Args:
            began: Unix seconds of its beginning.
            now: Unix seconds of its end; earlier than ``began`` where the clock was put back.
            window_seconds: How long a window should be.
        """
        length = now - max(began, self.baseline_started)
        self.learned_seconds += min(max(length, 0.0), _LONGEST_WINDOW * window_seconds)
        # Else a clock that was put back would stop the count until it has caught up.
        self.baseline_started = min(self.baseline_started, now)

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
            "learned_seconds": self.learned_seconds,
            "last_seen": self.last_seen,
            "baseline": {
                "digest": self.baseline_digest,
                "frozen_at": self.baseline_frozen_at,
                "origin": self.baseline_origin,
                "relearns": self.relearns,
                "capture": None if self.baseline_capture is None else asdict(self.baseline_capture),
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
    started, last_seen = float(item["baseline_started"]), float(item["last_seen"])
    # Snapshots of earlier builds do not say: then it is what the clock says.
    learned = float(item.get("learned_seconds", max(last_seen - started, 0.0)))
    if not (math.isfinite(learned) and learned >= 0.0):
        raise CorruptState(f"layer {key} has learned for {learned} s: need a number of at least 0")
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
        baseline_started=started,
        learned_seconds=learned,
        last_seen=last_seen,
        baseline_digest=str(saved["digest"]),
        baseline_frozen_at=float(saved["frozen_at"]),
        baseline_origin=str(saved["origin"]),
        baseline_capture=Capture(**saved["capture"]) if saved.get("capture") else None,
        relearns=bool(saved["relearns"]),
        screening=screening,
    )

"""Which unflagged features of a layer the screen finds, how far they are off, and for how long."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from sidecar.detect import Expected, Screened
from sidecar.features import LayerKey
from sidecar.monitor.views import Anomaly

HELD_LIMIT = 64
"""Findings remembered of a layer, the furthest beyond chance: where a whole layer moves, all of it is
significant, and the layer's own alert says so."""

SHOWN_LIMIT = 10
"""Findings of a layer that anybody is shown: more is a list that nobody reads at night."""

LASTING_WINDOWS = 2
"""Windows from which a finding is more than one of those that are expected to be false: these
seldom come twice."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A finding: when it was significant first and last, in how many windows, and the newest numbers."""

    since: float
    seen: float
    windows: int
    quiet: int
    requests: int
    exceedances: int
    rate: float
    log_p: float
    log_q: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts what lasts before what was there once, then the least likely first."""
        return self.windows < LASTING_WINDOWS, self.log_p


@dataclass(slots=True)
class Anomalies:
    """The unflagged findings of one layer; at most ``HELD_LIMIT`` are remembered."""

    _held: dict[int, _Held] = field(default_factory=dict)

    def forget(self) -> None:
        """Begin anew, as without a baseline."""
        self._held = {}

    def observe(
        self,
        found: Screened,
        exceedances: np.ndarray,
        requests: int,
        expected: Expected,
        *,
        flagged: np.ndarray,
        quiet_windows: int,
        now: float,
    ) -> None:
        """Take in what the screen says of one closed window.

        A finding ends after ``quiet_windows`` windows in which it was not significant.

        Args:
            found: The screen's findings in ``n`` features.
            exceedances: Requests that exceed, shape ``(n,)``.
            requests: Requests of the window.
            expected: What the baseline says of them.
            flagged: Features that have a detector of their own, and are no findings.
            quiet_windows: Windows in a row.
            now: Unix seconds of the window's end.

        Complexity:
            O(n); a few milliseconds for 131,072 features, all of them significant.
        """
        places = _least_likely(found, flagged)
        newest = {
            index: self._seen(index, now, requests, *values)
            for index, *values in zip(
                places.tolist(),
                exceedances[places].tolist(),
                expected.rate[places].tolist(),
                found.log_p[places].tolist(),
                found.log_q[places].tolist(),
                strict=True,
            )
        }
        older = {
            index: replace(one, quiet=one.quiet + 1)
            for index, one in self._held.items()
            if index not in newest and one.quiet < quiet_windows
        }
        kept = sorted({**older, **newest}.items(), key=lambda item: item[1].rank)
        self._held = dict(kept[:HELD_LIMIT])

    def _seen(
        self,
        index: int,
        now: float,
        requests: int,
        exceedances: int,
        rate: float,
        log_p: float,
        log_q: float,
    ) -> _Held:
        before = self._held.get(index)
        since, windows = (before.since, before.windows) if before else (now, 0)
        return _Held(since, now, windows + 1, 0, requests, exceedances, rate, log_p, log_q)

    def top(self, layer: LayerKey, flagged: Collection[int]) -> tuple[Anomaly, ...]:
        """Return the findings to show, the most telling first; none that was flagged since."""
        return tuple(
            Anomaly(
                key=layer.feature(index),
                since=one.since,
                seen=one.seen,
                windows=one.windows,
                requests=one.requests,
                exceedances=one.exceedances,
                baseline_ratio=one.rate,
                p_log10=one.log_p / math.log(10),
                q_log10=one.log_q / math.log(10),
            )
            for index, one in self._held.items()
            if index not in flagged
        )[:SHOWN_LIMIT]


def _least_likely(found: Screened, flagged: np.ndarray) -> np.ndarray:
    """Return the unflagged significant features with the least chances, at most ``HELD_LIMIT``."""
    wanted = found.significant.copy()
    wanted[flagged] = False
    places = np.flatnonzero(wanted)
    if len(places) > HELD_LIMIT:  # sorting all of a layer that moves would cost more than its test
        places = places[np.argpartition(found.log_p[places], HELD_LIMIT)[:HELD_LIMIT]]
    return places[np.argsort(found.log_p[places], kind="stable")]

"""What one policy fires on and another does not, and the whole answer of a replay."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.features import FeatureKey, LayerKey
from sidecar.replay.playing import Alarm, Extent, Playback

SAME_SECONDS = 60.0
"""Alarms of one feature that are at most so far apart are one alarm seen by two policies."""

_SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies over one recording.

    Attributes:
        new: Alarms of the new policy that the one in force does not raise.
        gone: Alarms of the one in force that the new one does not raise.
        kept: Alarms of the new policy that both raise.
    """

    new: tuple[Alarm, ...]
    gone: tuple[Alarm, ...]
    kept: tuple[Alarm, ...]


def compare(new: Sequence[Alarm], in_force: Sequence[Alarm]) -> Comparison:
    """Match alarms of a feature that overlap, or nearly do."""
    return Comparison(
        new=tuple(alarm for alarm in new if not _matched(alarm, in_force)),
        gone=tuple(alarm for alarm in in_force if not _matched(alarm, new)),
        kept=tuple(alarm for alarm in new if _matched(alarm, in_force)),
    )


def _matched(alarm: Alarm, others: Iterable[Alarm]) -> bool:
    return any(
        alarm.feature == other.feature
        and alarm.start <= _end(other) + SAME_SECONDS
        and other.start <= _end(alarm) + SAME_SECONDS
        for other in others
    )


def _end(alarm: Alarm) -> float:
    return math.inf if math.isnan(alarm.end) else alarm.end


def days(extents: dict[LayerKey, Extent]) -> float:
    """Return the days that the longest recorded layer covers, gaps left out."""
    return max((one.seconds for one in extents.values()), default=0.0) / _SECONDS_PER_DAY


@dataclass(frozen=True, slots=True)
class Tally:
    """The alarms of one feature.

    Attributes:
        feature: Which feature.
        pages: Its alarms.
        seconds: Seconds that it fires; of an alarm without an end up to the end of the recording.
        evidence_log10: Greatest evidence of one.
    """

    feature: FeatureKey
    pages: int
    seconds: float
    evidence_log10: float


def tallies(alarms: Sequence[Alarm], extents: dict[LayerKey, Extent]) -> list[Tally]:
    """Return the alarms feature by feature, the noisiest first."""
    pages = Counter(alarm.feature for alarm in alarms)
    found = []
    for feature, count in pages.items():
        mine = [alarm for alarm in alarms if alarm.feature == feature]
        last = extents[feature.layer].last
        seconds = sum((last if math.isnan(a.end) else a.end) - a.start for a in mine)
        found.append(Tally(feature, count, seconds, max(a.evidence_log10 for a in mine)))
    return sorted(found, key=lambda one: (-one.pages, one.feature))


def as_json(
    extents: dict[LayerKey, Extent],
    playback: Playback,
    in_force: Playback | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the whole answer as JSON-able values; a number that is not known is null."""
    compared = None
    if in_force is not None:
        found = compare(playback.alarms, in_force.alarms)
        compared = {
            "in_force": _pages(in_force, extents),
            "new": [_alarm(one) for one in found.new],
            "gone": [_alarm(one) for one in found.gone],
            "kept": [_alarm(one) for one in found.kept],
        }
    return {
        "recording": {
            "days": days(extents),
            "layers": [_extent(layer, one) for layer, one in sorted(extents.items())],
        },
        "policy": _pages(playback, extents),
        "alarms": [_alarm(one) for one in playback.alarms],
        "features": [
            {
                "feature": str(one.feature),
                "pages": one.pages,
                "firing_seconds": one.seconds,
                "evidence_log10": one.evidence_log10,
            }
            for one in tallies(playback.alarms, extents)
        ],
        "compared": compared,
        "notes": [*notes, *playback.notes],
    }


def _pages(playback: Playback, extents: dict[LayerKey, Extent]) -> dict[str, Any]:
    recorded = days(extents)
    return {
        "name": playback.policy,
        "pages": len(playback.alarms),
        "pages_per_day": len(playback.alarms) / recorded if recorded else None,
    }


def _extent(layer: LayerKey, one: Extent) -> dict[str, Any]:
    return {
        "layer": str(layer),
        "features": len(one.features),
        "windows": one.windows,
        "sampled_windows": one.sampled,
        "from": one.first,
        "to": one.last,
        "gaps": [{"from": gap.start, "to": gap.end} for gap in one.gaps],
        "windows_back_in_time": one.backward,
    }


def _alarm(one: Alarm) -> dict[str, Any]:
    return {
        "feature": str(one.feature),
        "start": one.start,
        "end": None if math.isnan(one.end) else one.end,
        "evidence_log10": one.evidence_log10,
        "threshold_log10": one.threshold_log10,
        "peak_rate": one.peak_rate,
        "reason": one.reason,
    }

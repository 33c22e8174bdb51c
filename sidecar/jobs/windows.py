"""When audits may run: windows that open by cron in a time zone of their own.

Windows open by the wall clock and last so many real seconds. Summer time is the zone's affair: a start
that the clock jumps over comes as much later, and one that comes twice counts the first time.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sidecar.config import WindowConfig

_SHIFT = timedelta(hours=3)
"""More than the clock of any zone is put back at once: a start by the wall clock that lies further
ahead than this has not come."""


def windows_open(windows: Sequence[WindowConfig], now: float) -> bool:
    """Return whether audits may run at a time, in unix seconds; always where there are no windows."""
    return not windows or any(_is_open(window, now) for window in windows)


def next_opening(windows: Sequence[WindowConfig], now: float) -> float:
    """Return the unix seconds of the next opening after ``now``; infinity where there are none."""
    return min((next_start(one.cron, one.zone, now) for one in windows), default=float("inf"))


def last_start(cron: str, zone: str, now: float) -> float:
    """Return the unix seconds of the newest time that a schedule names, at ``now`` or before."""
    from croniter import croniter  # noqa: PLC0415 - only where something is scheduled

    place = ZoneInfo(zone)
    starts = croniter(cron, _wall(now, place) + _SHIFT)
    while (start := _instant(starts.get_prev(datetime), place)) > now:
        pass
    return start


def next_start(cron: str, zone: str, now: float) -> float:
    """Return the unix seconds of the first time that a schedule names after ``now``."""
    from croniter import croniter  # noqa: PLC0415 - only where something is scheduled

    place = ZoneInfo(zone)
    starts = croniter(cron, _wall(now, place) - _SHIFT)
    while (start := _instant(starts.get_next(datetime), place)) <= now:
        pass
    return start


def _is_open(window: WindowConfig, now: float) -> bool:
    """Whether the newest opening is not yet over; older ones of equal length end earlier."""
    return now < last_start(window.cron, window.zone, now) + window.duration_seconds


def _wall(now: float, zone: ZoneInfo) -> datetime:
    """Return what the zone's clocks show, without saying of which zone."""
    return datetime.fromtimestamp(now, UTC).astimezone(zone).replace(tzinfo=None)


def _instant(wall: datetime, zone: ZoneInfo) -> float:
    """Return the unix seconds at which the zone's clocks show a time, the first time they do."""
    return wall.replace(tzinfo=zone, fold=0).timestamp()

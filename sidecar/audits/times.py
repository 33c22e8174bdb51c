"""When an audit is due: arithmetic over its schedule, remembered between two times."""

from collections.abc import Sequence

from sidecar.jobs import last_start, next_start


class Times:
    """The times of one schedule; safe to use from several threads.

    Attributes:
        since: Unix seconds from which on the audit is due; times before are not made up for.
    """

    def __init__(self, schedule: str, zone: str, since: float) -> None:
        """Remember a schedule: five fields of cron, in a time zone."""
        self._schedule, self._zone, self.since = schedule, zone, since
        self._between: tuple[float, float] = (0.0, 0.0)

    def last_at(self, now: float) -> float:
        """Return the newest time that was due, at ``now`` or before."""
        return self._around(now)[0]

    def next_at(self, now: float) -> float:
        """Return the first time that is due after ``now``."""
        return self._around(now)[1]

    def overdue(self, served: Sequence[float], running: float | None, now: float) -> bool:
        """Whether a night was due and is still not judged though the next one is due as well.

        Args:
            served: When the nights were due that the schedule began.
            running: When the night was due that runs, if the schedule began it.
            now: Unix seconds.
        """
        last = self.last_at(now)
        if running is not None:
            return running < last
        # A night of a time that has not come was begun by a clock that went wrong, and says nothing.
        newest = max([self.since, *(one for one in served if one <= now)])
        return newest < last and next_start(self._schedule, self._zone, newest) < last

    def _around(self, now: float) -> tuple[float, float]:
        between = self._between
        if not between[0] <= now < between[1]:
            between = (
                last_start(self._schedule, self._zone, now),
                next_start(self._schedule, self._zone, now),
            )
            self._between = between
        return between

"""Audit windows open by the wall clock of their zone, through the changes of summer time too."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import JobsConfig
from sidecar.jobs.windows import next_opening, windows_open

pytestmark = pytest.mark.unit

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "UTC") -> float:
    """Return unix seconds of a wall time, of its first occurrence."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def windows(cron: str, hours: float, zone: str = "UTC") -> JobsConfig:
    """Return a configuration with one window."""
    return JobsConfig(
        audit_windows=[{"cron": cron, "duration_seconds": hours * 3600, "zone": zone}]
    )  # type: ignore[list-item]  # pydantic reads it


def opened(config: JobsConfig, now: float) -> bool:
    """Ask."""
    return windows_open(config.audit_windows, now)


def test_without_windows_audits_may_always_run() -> None:
    """No window is no restriction."""
    assert windows_open((), 0.0)
    assert next_opening((), 0.0) == float("inf")


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-07-06T21:59:59", False),
        ("2026-07-06T22:00:00", True),
        ("2026-07-07T05:59:59", True),
        ("2026-07-07T06:00:00", False),
        ("2026-07-11T02:00:00", True),  # Friday's, on Saturday morning
        ("2026-07-11T23:00:00", False),  # Saturday
    ],
)
def test_a_window_is_open_from_its_start_for_its_duration(moment: str, expected: bool) -> None:
    """Nights of weekdays, by the wall clock of Berlin."""
    config = windows("0 22 * * 1-5", 8, "Europe/Berlin")

    assert expected == opened(config, at(moment, "Europe/Berlin"))


def test_a_start_that_the_clock_jumps_over_comes_as_much_later() -> None:
    """There is no 02:30 in Berlin on 29 March 2026: the window opens at 03:30 and lasts an hour."""
    config = windows("30 2 * * *", 1, "Europe/Berlin")
    start = at("2026-03-29T01:30:00")  # 03:30 in Berlin

    found = [opened(config, start + seconds) for seconds in (-1, 0, 3599, 3600)]

    assert [False, True, True, False] == found


def test_a_start_that_comes_twice_counts_the_first_time() -> None:
    """02:30 comes twice in Berlin on 25 October 2026; the second hour has no window of its own."""
    config = windows("30 2 * * *", 0.5, "Europe/Berlin")
    first = at("2026-10-25T00:30:00")  # 02:30 summer time

    found = [opened(config, first + seconds) for seconds in (-1, 0, 1799, 1800, 3600, 5400)]

    assert [False, True, True, False, False, False] == found


def test_a_window_over_a_change_lasts_its_real_time() -> None:
    """Eight hours from 22:00 end at 07:00 when the clock is put forward, at 05:00 when put back."""
    config = windows("0 22 * * *", 8, "Europe/Berlin")

    ends = [
        (
            opened(config, at(moment, "Europe/Berlin") - 1),
            opened(config, at(moment, "Europe/Berlin")),
        )
        for moment in ("2026-03-29T07:00:00", "2026-10-25T05:00:00")
    ]

    assert [(True, False), (True, False)] == ends


def test_any_open_window_will_do() -> None:
    """Two windows are a union."""
    config = JobsConfig(
        audit_windows=[
            {"cron": "0 1 * * *", "duration_seconds": 3600},
            {"cron": "0 13 * * *", "duration_seconds": 3600},
        ]  # type: ignore[list-item]  # pydantic reads it
    )

    found = [opened(config, at(f"2026-05-05T{hour:02}:30:00")) for hour in (1, 2, 13, 14)]

    assert [True, False, True, False] == found


@given(
    now=st.floats(at("2026-01-01"), at("2027-12-31")),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    cron=st.sampled_from(["0 22 * * *", "30 2 * * *", "*/20 * * * *", "0 3 * * 0"]),
)
def test_the_next_opening_opens(now: float, zone: str, cron: str) -> None:
    """The window is open at the time that is promised, and closed just before where it was closed."""
    config = windows(cron, 0.1, zone)

    start = next_opening(config.audit_windows, now)

    assert start > now
    assert opened(config, start)
    between = (now + start) / 2  # which is the start itself where the two are neighbours
    assert opened(config, now) or between == start or not opened(config, between)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"cron": "0 22 * *", "duration_seconds": 60}, "give five fields"),
        ({"cron": "0 25 * * *", "duration_seconds": 60}, "'0 25 * * *' names no time"),
        ({"cron": "0 0 30 2 *", "duration_seconds": 60}, "'0 0 30 2 *' names no time"),
        ({"cron": "@daily", "duration_seconds": 60}, "give five fields"),
        ({"cron": "0 1 * * *", "duration_seconds": 0}, "greater than 0"),
        ({"cron": "0 1 * * *", "duration_seconds": 60, "zone": "Mars/Base"}, "no known time zone"),
        ({"cron": "0 1 * * *", "duration_seconds": 60, "zone": "../etc"}, "no known time zone"),
    ],
)
def test_windows_that_make_no_sense_are_named(window: dict[str, object], words: str) -> None:
    """A wrong cron expression, duration or zone is a configuration error in words."""
    with pytest.raises(ValueError, match="audit_windows") as caught:
        JobsConfig(audit_windows=[window])  # type: ignore[list-item]  # the fault

    assert words in str(caught.value)

"""A report says what was found, and lets none of it become markup; what is kept has bounds."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.audits import Check, Night, NightState, Outcome
from sidecar.audits.book import Entry, night_id
from sidecar.audits.checks import JobEnd, Repeat, Served
from sidecar.audits.facts import Facts, LayerCounts, Plan, Portrayed
from sidecar.audits.gathering import (
    Change,
    Findings,
    held,
    layers_on_images,
    newest_reference,
    to_repeat,
)
from sidecar.audits.page import render_night
from sidecar.audits.priority import Chosen, Reason
from sidecar.audits.report import NightReport, as_json, changes
from sidecar.audits.retention import LEAST, superfluous
from sidecar.audits.times import Times
from sidecar.compare import Answer
from sidecar.config import AuditConfig
from tests.audits.conftest import DAY, HALF_PAST_TWO, HOUR

pytestmark = pytest.mark.unit

HOSTILE = '<script>alert("x")</script>'
AUDIT = AuditConfig.model_validate({"name": "nightly", "model": "tiny", "layers": ["x"]})


def portrait(picture: str, unit: int = 1, **more: object) -> Portrayed:
    """Return what a night says of a portrait."""
    made = Portrayed(f"x/channel/{unit}", "key", picture, f"manifest {picture}", "weak", HOSTILE)
    return replace(made, **more)  # type: ignore[arg-type] - fields of its own


def entry(
    number: int,
    *portraits: Portrayed,
    failed: str = "",
    moved: int = 0,
    report_bytes: int = 10,
    accepted: str = "",
    digest: str = "d",
    again: tuple[str, ...] = (),
) -> Entry:
    """Return the night of a day."""
    due = HALF_PAST_TWO + number * DAY
    layers = (
        LayerCounts("x/channel", 100, {"same": 100 - moved, "moved": moved, "lost": 0, "new": 0}),
    )
    facts = Facts(digest, "o", "images", layers, portraits, again)
    checks = (Check(failed, Outcome.FAILED, 1.0, 0.0, f"because of {HOSTILE}"),) if failed else ()
    night = Night(
        "nightly",
        night_id(due),
        due,
        due + 1,
        NightState.REGRESSED if failed else NightState.PASSED,
        checks,
        facts.counts,
    )
    chosen = tuple(Chosen(one.feature, Reason.FLAGGED) for one in portraits)
    plan = Plan("r", "d", chosen, {})
    return Entry(night, due, True, plan, facts, "p", "j", report_bytes, accepted)  # noqa: FBT003 - scheduled


def report(
    now: Entry, *past: Entry, repeats: tuple[Repeat, ...] = (), changed: tuple[Change, ...] = ()
) -> NightReport:
    """Return the report of a night, with the jobs and hooks of nobody."""
    jobs = (JobEnd("portraits-0", HOSTILE, "failed", HOSTILE),)
    hooks = Served((HOSTILE,), 1)
    found = Findings(jobs, now.facts, None, None, repeats, {}, None, (), hooks, changed)
    return NightReport(AUDIT, now, found, past)


def test_nothing_of_a_night_becomes_markup() -> None:
    """Reasons, features, jobs and revisions are text, whoever wrote them."""
    now = entry(1, portrait("b", feature=f"{HOSTILE}/channel/1"), failed="counts")
    page = render_night(report(now), lambda _: None)

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "default-src 'none'" in page


def test_a_portrait_is_shown_beside_the_one_it_was() -> None:
    """Where the picture is another; what came out otherwise when made again is shown as well."""
    past = entry(1, portrait("a"), portrait("s", 2))
    now = entry(2, portrait("b"), portrait("s", 2))
    again = Repeat("x/channel/2", past.night.id, "different", 0.5, "t")
    changed = Change(past.night.id, past.facts.portraits[0], now.facts.portraits[0], 0.5)

    page = render_night(report(now, past, repeats=(again,), changed=(changed,)), str.encode)

    images = [page.count(f"base64,{code}") for code in ("YQ==", "Yg==", "cw==", "dA==")]
    assert [1, 2, 2, 1] == images  # tonight's are shown once more among all of tonight's
    assert "<h2>Pictures that changed</h2>" in page


def test_a_picture_that_is_gone_is_named() -> None:
    """A report is made though the store lost one."""
    assert "Picture <code>b</code> is gone." in render_night(
        report(entry(1, portrait("b"))), lambda _: None
    )


def test_what_changed_is_said() -> None:
    """Weights, images, counts and verdicts, in both directions."""
    before = entry(1, portrait("a"), moved=3).facts
    now = replace(
        entry(2, portrait("a", verdict=""), moved=1, digest="e").facts, dataset_digest="i"
    )

    assert () == changes(now, None)
    assert (
        "The audited model's weights changed, from d to e.",
        "The images changed, from images to i.",
        "x/channel: 2 units fewer moved, 1 now.",
        "x/channel/1 is not judged, was weak.",
    ) == changes(now, before)


def test_the_trend_has_every_night_once_the_oldest_first() -> None:
    """Also in the JSON, with what failed and what was accepted."""
    past = [entry(number, failed="counts" * (number == 2), moved=number) for number in (3, 2, 1)]
    past[1] = replace(past[1], accepted="Ada: on purpose")
    found = json.loads(as_json(report(entry(4), *past)))["trend"]
    page = render_night(report(entry(4), *past), lambda _: None)

    assert [night_id(HALF_PAST_TWO + n * DAY) for n in (1, 2, 3, 4)] == [one["id"] for one in found]
    assert [[], ["counts"], [], []] == [one["failed"] for one in found]
    assert "Ada: on purpose" == found[1]["accepted"]
    assert 4 == page.count("<title>2026-09-")
    assert 3 == page.count('<rect class="moved"')
    assert 1 == page.count('<rect class="lost"')


def test_a_night_that_failed_is_no_reference_until_it_is_accepted() -> None:
    """For the check that failed; for others it is."""
    night = entry(1, failed="counts")

    assert [False, True, True] == [
        held(night, "counts"),
        held(night, "verdict"),
        held(replace(night, accepted="Ada"), "counts"),
    ]


def test_what_is_made_again_is_taken_in_turn() -> None:
    """Never made again before longest ago; of these weights alone."""
    past = [
        entry(3, portrait("c", 1), portrait("d", 2), portrait("e", 3), again=("x/channel/1",)),
        entry(2, portrait("c", 1), again=("x/channel/2",)),
        entry(1, portrait("z", 4), digest="other"),
    ]

    assert ["x/channel/3", "x/channel/2", "x/channel/1"] == list(to_repeat(past, "d", 9))
    assert {"x/channel/3": "manifest e"} == to_repeat(past, "d", 1)
    assert {} == to_repeat(past, "d", 0)


def test_counts_do_not_depend_on_what_was_pictured() -> None:
    """A unit whose portrait alone shows that it moved is one of those that are the same on the images."""
    counts = {"same": 9, "moved": 0, "lost": 1, "new": 2}

    def answer(unit: int, fate: str) -> Answer:
        findings = {
            "fate": fate,
            "fate_on_images": "same",
            "layer": {"units": 10, "counts": counts},
        }
        document = {"schema": 2, "feature": f"m@r/conv/channel/{unit};mean", "findings": findings}
        return Answer("k", "p", b"", "m", json.dumps(document).encode())

    found = layers_on_images([answer(1, "moved"), answer(2, "same")])

    assert (LayerCounts("conv/channel;mean", 10, counts),) == found


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(2, 6), st.integers(0, 120))
def test_nights_are_kept_within_both_limits(sizes: list[int], nights: int, limit: int) -> None:
    """The newest, and those that others are held against whatever their age; the rest goes."""
    past = [
        entry(len(sizes) - place, report_bytes=size, failed="counts" * (place < len(sizes) - 1))
        for place, size in enumerate(sizes)
    ]
    gone = superfluous(past, nights, limit)
    kept = [one for one in past if one not in gone]

    assert len(kept) <= nights + 1
    assert past[:LEAST] == kept[:LEAST]
    assert not past or past[-1] in kept
    free = kept[LEAST:-1] if len(kept) > LEAST else []
    assert not free or sum(one.report_bytes for one in kept[: LEAST + len(free)]) <= limit


def test_the_night_that_trust_is_held_against_is_kept() -> None:
    """Else a portrait that lost its trust would be the normal once the last good night is gone."""
    good = entry(1, portrait("a"), failed="counts")
    past = [*(entry(number, portrait("a"), failed="verdict") for number in (5, 4, 3, 2)), good]

    assert tuple(past[2:4]) == superfluous(past, 2, 1 << 30)[:2]
    assert good not in superfluous(past, 2, 1 << 30)


def test_counts_are_held_against_those_of_the_same_two_models_only() -> None:
    """An audit that compares with another model from now on begins anew."""
    night = entry(1)
    night = replace(night, facts=replace(night.facts, against="twin"))

    found = newest_reference([entry(2), night], "twin")
    assert found is not None
    assert night.night.id == found.night
    assert newest_reference([night], "other") is None


def test_a_night_of_a_time_that_has_not_come_hides_none_that_is_late() -> None:
    """A clock that was a year ahead for a while began it."""
    times = Times("30 2 * * *", "UTC", HALF_PAST_TWO)
    ahead, now = HALF_PAST_TWO + 365 * DAY, HALF_PAST_TWO + 3 * DAY + HOUR

    assert times.overdue([ahead, HALF_PAST_TWO + DAY], None, now)
    assert not times.overdue([ahead, HALF_PAST_TWO + 3 * DAY], None, now)
    assert times.overdue([ahead], HALF_PAST_TWO + DAY, now)


def test_a_time_that_summer_time_jumps_over_comes_later_and_one_that_comes_twice_once() -> None:
    """Berlin, 2026: 02:30 of 29 March is 03:30 of summer time; of 25 October only the first counts."""
    times = Times("30 2 * * *", "Europe/Berlin", 0.0)
    march, october = 1_774_747_800.0, 1_792_888_200.0  # 2026-03-29 01:30 UTC, 2026-10-25 00:30 UTC

    assert march == times.next_at(march - HOUR)
    assert october == times.next_at(october - HOUR)
    assert october + 25 * HOUR == times.next_at(october + HOUR)
    assert october == times.last_at(october + HOUR)

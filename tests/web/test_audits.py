"""Pages, reports and JSON of nightly audits."""

import json
import xml.etree.ElementTree as ET
from typing import Any

import httpx
import pytest

from sidecar.audits import Night, NightState
from sidecar.web import WebServer, create_app, trend

pytestmark = pytest.mark.service

PASSED, REGRESSED, FAILED, RUNNING = (
    NightState.PASSED,
    NightState.REGRESSED,
    NightState.FAILED,
    NightState.RUNNING,
)


def strict(response: httpx.Response) -> Any:
    """Parse the answer; NaN and infinities are no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(response.text, parse_constant=refuse)


def test_the_list_says_how_every_audit_stands(client: httpx.Client, audits: Any) -> None:
    """State, what failed, units, and the newest report of each; audits are in the navigation."""
    status = audits.add("nightly-int8", REGRESSED, PASSED)
    audits.add("first", next_at=audits.now - 5)

    page = client.get("/audits").text

    assert '<a href="/audits" aria-current="page">Audits</a>' in page
    assert "163 same, 24 moved, 5 lost, 3 new" in page
    assert "comparison, live" in page
    assert f'href="{status.last.report}"' in page
    assert "waiting" in page
    assert "in 2 h 1 min" in page


def test_without_audits_the_page_says_how_to_have_some(client: httpx.Client) -> None:
    """An empty table would explain nothing."""
    page = client.get("/audits")

    assert (200, True) == (page.status_code, "No audit is configured" in page.text)


def test_a_console_without_audits_answers_as_if_none_were_configured(backend: Any) -> None:
    """An empty page, an empty list, and no audit of any name."""
    server = WebServer(create_app(backend, console_url="http://127.0.0.1:8080"), "127.0.0.1", 0)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            found = [client.get(path) for path in ("/audits", "/api/v1/audits", "/audits/x")]
    finally:
        server.stop()

    assert [200, 200, 404] == [one.status_code for one in found]
    assert {"audits": []} == strict(found[1])


def test_an_audit_says_what_failed_with_numbers_and_leads_to_its_report(
    client: httpx.Client, audits: Any
) -> None:
    """The verdict first, then each check with what was measured, the trend, and every night."""
    status = audits.add("nightly-int8", REGRESSED, PASSED, FAILED, PASSED)

    page = client.get("/audits/nightly-int8").text

    assert "The newest night regressed: 2 of 8 checks failed." in page
    assert "The check comparison failed, with its numbers." in page
    assert ">12.5</td>" in page
    assert "not possible" in page
    assert "Open the report" in page
    assert 4 == page.count("report.json")
    assert "The night before, 2026-11-22: 184 same, 3 moved" in page
    for night in status.nights:
        assert f"/audits/nightly-int8?night={night.id}" in page


def test_an_older_night_can_be_looked_at(client: httpx.Client, audits: Any) -> None:
    """Its checks stand in the place of the newest one's."""
    status = audits.add("nightly-int8", REGRESSED, PASSED)

    page = client.get("/audits/nightly-int8", params={"night": status.nights[1].id}).text

    assert "12.5" not in page.partition("checks")[2].partition("Nights</h2>")[0].partition("id=")[2]
    assert "of 8 checks failed" in page


def test_a_running_night_is_waited_for_without_script(client: httpx.Client, audits: Any) -> None:
    """The page refreshes itself, and nobody can start a second night."""
    audits.add("nightly-int8", RUNNING, PASSED)

    page = client.get("/audits/nightly-int8").text

    assert 'http-equiv="refresh"' in page
    assert "Run a night now" not in page
    assert "asked by cli" in page


def test_a_report_is_served_as_it_was_written_and_nothing_in_it_runs(
    client: httpx.Client, audits: Any
) -> None:
    """Its own style and pictures are allowed by its policy, and nothing else is."""
    night = audits.add("nightly-int8", PASSED).last

    page, data = client.get(night.report), client.get(night.report.replace(".html", ".json"))

    assert audits.bodies["nightly-int8", night.id, "html"] == page.content
    assert "text/html; charset=utf-8" == page.headers["content-type"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.endswith("sandbox")
    assert "nosniff" == page.headers["x-content-type-options"]
    assert {"schema": 1} == data.json()
    assert "application/json" == data.headers["content-type"]


def test_short_addresses_lead_to_reports(client: httpx.Client, audits: Any) -> None:
    """A night leads to its report, `latest` to the newest one; without one, to the audit's page."""
    status = audits.add("nightly-int8", RUNNING, REGRESSED, PASSED)
    audits.add("first")

    def target(path: str) -> tuple[int, str]:
        found = client.get(path)
        return found.status_code, found.headers.get("location", "")

    assert (303, status.last.report) == target("/audits/nightly-int8/latest")
    assert (303, status.last.report) == target(f"/audits/nightly-int8/{status.last.id}")
    running = status.running.id
    assert (303, f"/audits/nightly-int8?night={running}") == target(
        f"/audits/nightly-int8/{running}"
    )
    assert (303, "/audits/first") == target("/audits/first/latest")
    assert 200 == client.get(f"/audits/nightly-int8?night={running}").status_code


@pytest.mark.parametrize(
    "path",
    [
        "/audits/other",
        "/audits/other/latest",
        "/audits/nightly-int8/x",
        "/audits/nightly-int8/x/report.html",
        "/audits/nightly-int8?night=x",
        "/api/v1/audits/other",
        "/api/v1/audits/nightly-int8/nights/x",
    ],
)
def test_what_is_not_there_is_not_found(client: httpx.Client, audits: Any, path: str) -> None:
    """With the code of the error."""
    audits.add("nightly-int8", PASSED)

    answer = client.get(path)

    assert (404, True) == (answer.status_code, "SC407" in answer.text)


def test_a_night_is_started_from_the_page_once(
    client: httpx.Client, audits: Any, token: str
) -> None:
    """By who has the page's own form; a second press shows the night that runs."""
    audits.add("nightly-int8", PASSED)
    path = "/audits/nightly-int8/run"

    foreign = client.post(path, data={"token": "x"})
    elsewhere = client.post(path, data={"token": token}, headers={"origin": "http://evil.example"})
    answers = [client.post(path, data={"token": token}) for _ in range(2)]

    assert (403, 403) == (foreign.status_code, elsewhere.status_code)
    assert [("nightly-int8", "console")] == audits.started
    assert {(303, "/audits/nightly-int8?done=started")} == {
        (one.status_code, one.headers["location"]) for one in answers
    }
    assert "A night was started." in client.get(answers[0].headers["location"]).text
    assert 404 == client.post("/audits/other/run", data={"token": token}).status_code


def test_a_wanted_change_is_accepted_with_a_note(
    client: httpx.Client, audits: Any, token: str
) -> None:
    """From the page of a night that regressed, or over the API; never without a word why."""
    night = audits.add("nightly-int8", REGRESSED, PASSED).last
    note = {"note": "Ada: retrained"}
    form, call = (
        f"/audits/nightly-int8/{night.id}/accept",
        f"/api/v1/audits/nightly-int8/nights/{night.id}/accept",
    )

    shown = client.get("/audits/nightly-int8").text
    pressed = client.post(form, data={"token": token, **note})
    called = client.post(call, json=note)
    refused = [
        client.post(form, data={"token": token, "note": " "}),
        client.post(form, data={"token": "x", **note}),
        client.post(call, json=note, headers={"origin": "http://evil.example"}),
        client.post(call, json={}),
        client.post(call, json={"note": 1}),
        client.post(call, json={**note, "more": 1}),
    ]

    assert f'action="{form}"' in shown
    assert (303, "/audits/nightly-int8?done=accepted") == (
        pressed.status_code,
        pressed.headers["location"],
    )
    assert "new normal" in client.get(pressed.headers["location"]).text
    assert night.id == strict(called)["id"]
    assert [400, 403, 403, 400, 400, 400] == [one.status_code for one in refused]
    assert [("nightly-int8", night.id, note["note"])] * 2 == audits.accepted
    audits.add("nightly-int8", PASSED)
    assert "accept" not in client.get("/audits/nightly-int8").text


def test_the_api_has_all_of_it(client: httpx.Client, audits: Any) -> None:
    """The list, one audit with its nights, one night with its checks, and a report's address."""
    status = audits.add("nightly-int8", REGRESSED, PASSED)
    audits.add("first", against="")

    first, second = strict(client.get("/api/v1/audits"))["audits"]
    whole = strict(client.get("/api/v1/audits/nightly-int8"))
    night = strict(client.get(f"/api/v1/audits/nightly-int8/nights/{status.last.id}"))

    assert ("regressed", "waiting", None) == (first["state"], second["state"], second["against"])
    assert (night, None) == (first["last"], second["last"])
    assert [one.id for one in status.nights] == [one["id"] for one in whole["nights"]]
    older = client.get("/api/v1/audits/nightly-int8", params={"limit": 1, "before": night["id"]})
    assert ([status.nights[1].id], 2) == (
        [one["id"] for one in strict(older)["nights"]],
        strict(older)["total"],
    )
    assert 400 == client.get("/api/v1/audits/nightly-int8?limit=0").status_code
    checks = {one["name"]: one for one in night["checks"]}
    assert ("failed", 12.5, 5.0) == tuple(
        checks["comparison"][name] for name in ("outcome", "value", "limit")
    )
    assert ("impossible", None) == (checks["verdict"]["outcome"], checks["verdict"]["value"])
    assert 200 == client.get(night["report_json"]).status_code
    assert 200 == client.get(whole["page"]).status_code


def test_a_night_is_started_over_the_api(client: httpx.Client, audits: Any) -> None:
    """The answer is the night; a page of another site cannot ask."""
    audits.add("nightly-int8", PASSED)
    path = "/api/v1/audits/nightly-int8/run"

    foreign = client.post(path, headers={"origin": "http://evil.example"})
    found = client.post(path)

    assert 403 == foreign.status_code
    assert (202, "running", "api") == (
        found.status_code,
        strict(found)["state"],
        strict(found)["asked_by"],
    )
    assert [("nightly-int8", "api")] == audits.started


def drawn(text: str) -> ET.Element:
    """Read an SVG element."""
    return ET.fromstring(text)  # noqa: S314 - our own


def test_a_trend_has_a_bar_and_a_mark_for_every_night(audits: Any) -> None:
    """As high as its units, the oldest at the left; what a night came to has its own shape."""
    nights = audits.add("a", RUNNING, REGRESSED, FAILED, PASSED).nights
    bars = trend.of_units(nights)

    root = drawn(trend.draw(bars, "Units"))

    assert [PASSED, FAILED, REGRESSED] == [bar.night.state for bar in bars]
    moved = [float(one.get("height")) for one in root.iter("rect") if one.get("class") == "moved"]
    lost = [float(one.get("height")) for one in root.iter("rect") if one.get("class") == "lost"]
    assert moved == pytest.approx([one * lost[0] / 5 for one in (2, 4, 24)], rel=0.02)
    marks = [one for one in root.iter("path") if "mark" in one.get("class", "")]
    assert ["mark passed", "mark failed", "mark regressed"] == [one.get("class") for one in marks]
    assert 3 == len(
        {one.get("d").translate(str.maketrans("", "", "0123456789. -")) for one in marks}
    )
    assert "24 moved" in root.get("aria-label")


@pytest.mark.parametrize("count", [1, 2, 24, 400])
@pytest.mark.parametrize("shape", ["wide", "narrow"])
def test_a_trend_of_any_length_stays_in_its_frame(audits: Any, count: int, shape: str) -> None:
    """Bars are within the picture, none is higher than it, and too many leave out the oldest."""
    bars = trend.of_units(audits.add("a", *[PASSED, REGRESSED] * count).nights)

    root = drawn(trend.draw(bars, "Units", shape=shape))

    *_, width, height = map(float, root.get("viewBox").split())
    rects = [
        {k: float(one.get(k)) for k in ("x", "y", "width", "height")} for one in root.iter("rect")
    ]
    assert 2 * min(2 * count, 60 if shape == "wide" else 24) == len(rects)
    for one in rects:
        assert 0 <= one["x"] <= one["x"] + one["width"] <= width
        assert 0 <= one["y"] <= one["y"] + one["height"] <= height


def test_nights_in_which_nothing_failed_have_a_trend_too() -> None:
    """No bar, and a scale that does not divide by nothing."""
    night = Night("a", "20261123T010000Z", 1_795_400_000.0, 1_795_400_900.0, PASSED)

    root = drawn(trend.draw(trend.of_checks([night]), "Failed checks"))

    assert () == trend.of_units([night])
    assert [] == list(root.iter("rect"))
    assert "0 checks in the newest" in root.get("aria-label")


def test_a_regression_before_a_night_that_failed_can_be_accepted(
    client: httpx.Client, audits: Any
) -> None:
    """The form and the command name the night that regressed; one that passed since ends the offer."""
    status = audits.add("nightly-int8", FAILED, REGRESSED, PASSED)
    audits.add("mended", PASSED, REGRESSED)

    page = client.get("/audits/nightly-int8").text

    assert f"/audits/nightly-int8/{status.nights[1].id}/accept" in page
    assert f"accept nightly-int8 --night {status.nights[1].id} --note" in page
    assert "/accept" not in client.get("/audits/mended").text

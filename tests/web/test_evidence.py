"""The page and the call that say why a feature fired."""

import json
import math
from dataclasses import fields
from typing import Any

import httpx
import pytest

from sidecar.detect import State, Transition
from sidecar.features import FeatureKey, LayerKey
from sidecar.monitor import Exposure
from sidecar.web.evidence import ROWS_WORDS, TITLES, numbers

pytestmark = pytest.mark.service

CAUSE = "Without route=/v1/eu the spike is gone: 94 % of the excess."


def test_the_feature_page_says_the_cause_and_links_to_the_evidence(
    client: httpx.Client, spiking: FeatureKey
) -> None:
    """Whoever follows an alert reads the sentence without another click."""
    text = client.get(f"/f/{spiking.path}").text
    short = spiking.path.replace(spiking.layer.revision, spiking.layer.shown_revision)

    assert CAUSE in text
    assert f'href="/f/{short}/evidence"' in text
    assert "sidecar feature evidence" in text


def test_the_page_shows_slices_rows_and_numbers(client: httpx.Client, spiking: FeatureKey) -> None:
    """Everything of the newest record, and what is not known as such."""
    response = client.get(f"/f/{spiking.path}/evidence")
    text = response.text

    assert 200 == response.status_code
    assert "<h1>Why striped texture fired</h1>" in text
    for part in (CAUSE, "the cause", "68.3 %", "0.52 %", "94 %", "9f2c4a7718d0e35b", "∞", "9.42"):
        assert part in text, part
    assert '<th scope="row">Exceeding in the short windows</th><td>8.3 %</td>' in text
    assert '<th scope="row">long rate</th><td>\u2013</td>' in text
    assert ROWS_WORDS[Exposure.KEEP] in text
    assert "Exceeds below" not in text


def test_the_numbers_are_shares_and_powers_in_the_order_of_reading(
    spiking: Any, backend: Any
) -> None:
    """No reader counts the digits of 1.81e-4, or looks for the baseline above the evidence."""
    found = {"zeta": 2.0, "threshold_log10": 8.6, "evidence_log10": math.inf, "tolerated": 1.81e-4}
    record = backend.add_evidence(
        spiking, numbers={**found, "level": math.nan, "short_rate": 0.103}
    )

    assert [
        ("Exceeding in the short windows", "10.3 %"),
        ("Recent level", "\u2013"),
        ("Tolerated", "0.018 %"),
        ("Evidence", "\u2013"),
        ("An alarm takes", "10^8.6"),
        ("zeta", "2.00"),
    ] == numbers(record)


def test_what_an_earlier_release_granted_is_not_called_a_baseline(
    spiking: Any, backend: Any
) -> None:
    """Its records hold no share."""
    record = backend.add_evidence(spiking, numbers={"baseline_rate": 0.089})

    assert [("Granted for the baseline", "8.9 %")] == numbers(record)


def test_every_number_of_the_detector_has_a_title() -> None:
    """A new number of a transition does not appear under its name in the code."""
    told = {f.name for f in fields(Transition) if f.type in (float, "float") and f.name != "at"}

    assert set(TITLES) == told


def test_an_older_record_has_an_address_of_its_own(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """A link in a post-mortem still leads to what it was about."""
    newest, old = backend.records[spiking]
    text = client.get(f"/f/{spiking.path}/evidence", params={"record": old.id}).text
    missing = client.get(f"/f/{spiking.path}/evidence", params={"record": "0" * 16})

    assert f'record={old.id}" aria-current="page"' in text
    assert f"record={newest.id}" in text
    assert 404 == missing.status_code
    assert "it expired, or never was" in missing.text


@pytest.mark.parametrize("exposure", list(Exposure))
def test_what_became_of_request_ids_is_said(
    client: httpx.Client, backend: Any, channels: LayerKey, exposure: Exposure
) -> None:
    """No reader takes a hash for an id, or a missing row for a missing spike."""
    key = backend.watch(channels.feature(7), State.FIRING)
    backend.add_evidence(key, exposure=exposure, rows=())

    assert ROWS_WORDS[exposure] in client.get(f"/f/{key.path}/evidence").text


def test_without_evidence_the_page_says_so(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """A feature that never fired, and one that nobody watches, are told apart."""
    calm = backend.watch(channels.feature(7), State.NORMAL)

    assert "never fired" in client.get(f"/f/{calm.path}/evidence").text
    assert "Nobody watches" in client.get(f"/f/{channels.feature(8).path}/evidence").text
    assert 404 == client.get("/f/m@r/a/channel/1/evidence").status_code


def test_the_api_gives_the_records_with_nothing_a_json_reader_refuses(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Newest first; what is not finite is null."""
    path = f"/api/v1/features/{spiking.path}/evidence"

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    answer = json.loads(client.get(path).content, parse_constant=refuse)
    newest, old = answer["evidence"]

    assert str(spiking) == answer["key"]
    assert 200 == client.get(answer["page"]).status_code
    assert [r.id for r in backend.records[spiking]] == [newest["id"], old["id"]]
    assert ("route=/v1/eu", CAUSE) == (
        newest["attribution"]["cause"],
        newest["attribution"]["words"][: len(CAUSE)],
    )
    assert newest["attribution"]["slices"][0] == {
        "key": "route",
        "value": "/v1/eu",
        "requests": 60,
        "exceedances": 41,
        "exceedance_ratio": 41 / 60,
        "exceedance_ratio_without": 3 / 580,
        "share": pytest.approx(0.944, abs=1e-3),
        "gone": True,
    }
    assert (None, True, 9.42, False) == (
        newest["rows"][0]["value"],
        newest["rows"][0]["infinite"],
        newest["rows"][1]["value"],
        newest["rows"][1]["infinite"],
    )
    assert (None, 0.083, None) == (
        newest["numbers"]["long_rate"],
        newest["numbers"]["short_rate"],
        newest["below"],
    )
    assert 1 == len(json.loads(client.get(path, params={"limit": 1}).content)["evidence"])
    assert 400 == client.get(path, params={"limit": 51}).status_code


def test_the_feature_as_json_names_its_newest_record(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The id, and null where there is none."""
    firing = client.get(f"/api/v1/features/{spiking.path}").json()
    other = client.get(f"/api/v1/features/{spiking.layer.feature(1).path}").json()

    assert backend.records[spiking][0].id == firing["evidence_id"]
    assert f"/f/{spiking.path}/evidence" == firing["evidence"]
    assert other["evidence_id"] is None


def test_a_record_of_nothing_but_numbers_has_a_page(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Traffic without slices and evidence switched off: the numbers are still evidence."""
    key = backend.watch(channels.feature(7), State.FIRING)
    backend.add_evidence(
        key, rows=(), windows=0, requests=0, exceedances=0, above=math.inf, below=-4.0
    )
    text = client.get(f"/f/{key.path}/evidence").text

    assert "Requests since the onset" not in text
    assert "Exceeds below" in text
    assert "\u22124.00" in text

import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import DiskFull, JobQueueFull
from sidecar.features import FeatureKey

pytestmark = pytest.mark.service

URL = "/api/v1/alertmanager"


def notification(key: FeatureKey, **alert: Any) -> Any:
    """Return a webhook body as Alertmanager sends it, version 4, with one alert."""
    labels = {
        "alertname": "SidecarFeatureSpike",
        "model": key.layer.model,
        "revision": key.layer.revision,
        "layer": key.layer.layer,
        "kind": str(key.layer.kind),
        "feature": key.label,
        "severity": "warning",
    }
    one = {
        "status": "firing",
        "labels": labels,
        "annotations": {"summary": "A flagged feature is beyond its threshold."},
        "startsAt": "2026-11-23T15:32:01.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": "9f2c1b7d4e5a6031",
    }
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "sidecar",
        "groupLabels": {},
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": [{**one, **alert}],
    }


def test_a_firing_alert_asks_for_one_portrait_however_often_it_is_sent(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Alertmanager repeats itself; fingerprint and start make it one job."""
    answers = [client.post(URL, json=notification(spiking)).json() for _ in range(3)]

    assert {1} == {answer["submitted"] for answer in answers}
    assert 1 == len({answer["alerts"][0]["job"] for answer in answers})
    (job,) = backend.queue.values()
    assert ("alert", spiking) == (job.request.origin, job.request.targets[0].feature)


def test_another_start_of_the_same_alert_is_another_job(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The next spike gets its own portrait."""
    client.post(URL, json=notification(spiking))
    client.post(URL, json=notification(spiking, startsAt="2026-11-24T03:00:00+02:00"))

    assert 2 == len(backend.queue)


def test_what_is_not_about_a_feature_is_ignored_with_its_reason(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Resolved alerts, other alerts and unknown features are answered 200 and told apart."""
    body = notification(spiking)
    resolved = {**copy.deepcopy(body["alerts"][0]), "status": "resolved"}
    other = copy.deepcopy(body["alerts"][0])
    del other["labels"]["feature"]
    unknown = copy.deepcopy(body["alerts"][0])
    unknown["labels"]["feature"] = "9999"
    body["alerts"] = [resolved, other, unknown, "nonsense", {}, *body["alerts"]]
    response = client.post(URL, json=body)
    answer = response.json()

    assert 200 == response.status_code
    assert (6, 1, 5, 0) == tuple(
        answer[k] for k in ("received", "submitted", "ignored", "deferred")
    )
    assert ["", "", "SC403", "SC200", "SC200"] == [one["code"] for one in answer["alerts"][:5]]
    assert 1 == len(backend.queue)


def test_portraits_switched_off_are_no_error(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The daemon may decline; Alertmanager is content."""
    backend.portraits_on_alerts = False
    response = client.post(URL, json=notification(spiking))

    assert (200, 1) == (response.status_code, response.json()["ignored"])


@pytest.mark.parametrize("error", [JobQueueFull("256 jobs wait"), DiskFull("no space left")])
def test_what_could_not_be_taken_now_is_asked_for_again(
    client: httpx.Client, backend: Any, spiking: FeatureKey, error: Exception
) -> None:
    """Overload and a full disk answer 503, and the repeated alert is then taken once."""
    backend.failing = error
    refused = client.post(URL, json=notification(spiking))
    backend.failing = None
    taken = client.post(URL, json=notification(spiking))

    assert (503, 1) == (refused.status_code, refused.json()["deferred"])
    assert (200, 1) == (taken.status_code, taken.json()["submitted"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"{}",
        b'{"version": "3", "alerts": []}',
        b'{"version": 4, "alerts": []}',
        b'{"version": "4"}',
        b'{"version": "4", "alerts": {}}',
        b'{"version": "4", "alerts": [' + b"[" * 50_000,
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_notification_is_refused(
    client: httpx.Client, backend: Any, body: bytes
) -> None:
    """Malformed bodies give 400 and a code."""
    response = client.post(URL, content=body, headers={"content-type": "application/json"})

    assert (400, "SC200") == (response.status_code, response.json()["code"])


def test_an_oversized_notification_is_refused(client: httpx.Client) -> None:
    """No more than the limit is read."""
    body = b'{"version": "4", "alerts": [], "x": "' + b"x" * (2 << 20) + b'"}'
    response = client.post(URL, content=body, headers={"content-type": "application/json"})

    assert (413, "SC205") == (response.status_code, response.json()["code"])


def test_more_alerts_than_the_limit_are_not_acted_on(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """A storm of alerts is one bounded piece of work."""
    body = notification(spiking)
    body["alerts"] *= 300
    answer = client.post(URL, json=body).json()

    assert (300, 256, 44) == (answer["received"], answer["submitted"], answer["ignored"])


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("status", "labels", "annotations", "startsAt", "fingerprint"), GARBAGE)))  # fmt: skip
def test_any_garbage_in_an_alert_is_ignored_without_harm(
    client: httpx.Client, backend: Any, spiking: FeatureKey, change: dict[str, Any]
) -> None:
    """Whatever types the fields have, the answer is 200 and JSON."""
    body = notification(spiking)
    body["alerts"][0].update(change)
    response = client.post(
        URL, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )

    assert 200 == response.status_code
    assert 1 == response.json()["received"]

import json
import math
from typing import Any

import httpx
import numpy as np
import pytest

from sidecar.detect import State
from sidecar.errors import JobQueueFull
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobState, MadePicture, Quarantined
from sidecar.monitor import Anomaly, Window

pytestmark = pytest.mark.service


def strict(response: httpx.Response) -> Any:
    """Read JSON and refuse NaN, as other languages do."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(response.content, parse_constant=refuse)


def test_features_are_listed_with_their_total(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The flagged one leads; unknown numbers are null."""
    answer = strict(client.get("/api/v1/features", params={"limit": 2}))

    assert 192 == answer["total"]
    assert ("firing", "striped texture") == (
        answer["features"][0]["state"],
        answer["features"][0]["flag"]["name"],
    )
    assert answer["features"][1]["threshold"] is None


def test_flags_that_fit_nothing_are_told_beside_the_features(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """With the part of their name that is wrong."""
    none = strict(client.get("/api/v1/features"))["unmatched_flags"]
    backend.unmatched = ["lite0/conv9/channel/1"]
    (found,) = strict(client.get("/api/v1/features"))["unmatched_flags"]

    assert [] == none
    assert ("lite0/conv9/channel/1", "layer", "conv9", ["conv1"]) == (
        found["flag"],
        found["field"],
        found["value"],
        found["nearest"],
    )


def test_what_holds_of_a_feature_leads_to_its_alerts(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Where the whole layer moves, one alert stands for those of its features, and comes first."""
    key = backend.watch(channels.feature(1), State.FIRING, conditions=("silent",), least=-2.0)
    alone = strict(client.get(f"/api/v1/features/{key.path}"))
    backend.add_layer(channels, 192, shifted=True)
    moved = strict(client.get(f"/api/v1/features/{key.path}"))

    assert (["SidecarFeatureSilent", "SidecarFeatureSpike"], False, -2.0) == (
        alone["alerts"],
        alone["layer_shifted"],
        alone["least"],
    )
    assert ("SidecarLayerShift", True) == (moved["alerts"][0], moved["layer_shifted"])


def test_features_are_filtered_and_paged(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Flagged only, by state, by offset, and the total alone."""
    backend.watch(spiking.layer.feature(2), State.NORMAL)

    def get(**params: Any) -> Any:
        return strict(client.get("/api/v1/features", params=params))

    assert 2 == get(flagged="true")["total"]
    assert 1 == get(state="normal")["total"]
    assert [] == get(limit=0)["features"]
    last = get(offset=191)["features"]
    assert [191] == [item["index"] for item in last]


@pytest.mark.parametrize(
    "query", ["limit=1001", "limit=x", "offset=-1", "flagged=maybe", "state=odd", f"q={'x' * 201}"]
)
def test_nonsense_in_the_query_is_refused_as_json(client: httpx.Client, query: str) -> None:
    """Bad parameters give 400 and a code."""
    response = client.get(f"/api/v1/features?{query}")

    assert (400, "SC200") == (response.status_code, strict(response)["code"])


def test_a_feature_is_found_by_prefix_with_its_portraits(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The answer names the full key, the page and every picture."""
    answer = strict(client.get("/api/v1/features/lite0@3fa1/_blocks.14/channel/33"))

    assert str(spiking) == answer["key"]
    assert 2 == len(answer["portraits"])
    assert 200 == client.get(answer["portraits"][0]["manifest"]).status_code
    assert 200 == client.get(answer["page"]).status_code


def test_a_distribution_is_the_one_of_its_window(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Counts add up to the count, and edges have one entry more."""
    path = f"/api/v1/features/{spiking.path}/distribution"
    now = strict(client.get(path))
    baseline = strict(client.get(path, params={"window": "baseline"}))

    assert (1960, 20_000) == (now["count"], baseline["count"])
    assert now["count"] == sum(now["counts"])
    assert len(now["edges"]) == len(now["counts"]) + 1
    assert 400 == client.get(path, params={"window": "odd"}).status_code


def test_a_distribution_without_values_has_nulls(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """No NaN reaches a JSON reader."""
    key = channels.feature(4)
    backend.fill(key, Window.CURRENT, np.array([math.nan]))
    answer = strict(client.get(f"/api/v1/features/{key.path}/distribution"))

    assert (0, 1, None) == (answer["count"], answer["nonfinite"], answer["mean"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("features/nonsense", 400, "SC204"),
        ("features/lite0@3fa1/_blocks.14/channel/9999", 404, "SC403"),
        ("features/other@3fa1/_blocks.14/channel/1", 404, "SC401"),
        ("jobs/none", 404, "SC404"),
        ("jobs/none/events", 404, "SC404"),
        ("nothing", 404, "HTTP404"),
    ],
)
def test_errors_are_json_with_their_code(
    client: httpx.Client, channels: LayerKey, path: str, status: int, code: str
) -> None:
    """Every refusal has a stable code and a message."""
    response = client.get(f"/api/v1/{path}")

    assert status == response.status_code
    assert code == strict(response)["code"]
    assert strict(response)["message"]


def test_a_job_is_submitted_once_per_key(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The same idempotency key is one job; its recipe starts from the default."""
    body = {"features": [str(spiking)], "recipe": {"steps": 32}, "idempotency_key": "once"}
    first, second = (client.post("/api/v1/jobs", json=body) for _ in range(2))

    assert 202 == first.status_code
    assert strict(first)["id"] == strict(second)["id"]
    assert (32, 256) == (strict(first)["recipe"]["steps"], strict(first)["recipe"]["canvas"])
    assert first.headers["location"] == strict(first)["page"]
    listed = strict(client.get("/api/v1/jobs", params={"feature": str(spiking)}))["jobs"]
    assert [strict(first)["id"]] == [job["id"] for job in listed]


@pytest.mark.parametrize("deadline", [1_777_608_000, "2026-05-01T06:00+02:00", "2026-05-01T04:00Z"])
def test_a_job_has_a_priority_and_a_deadline(
    client: httpx.Client, spiking: FeatureKey, deadline: object
) -> None:
    """As asked for; a deadline is a number or a time with its zone."""
    body = {"features": [str(spiking)], "priority": "audit", "deadline": deadline}

    found = strict(client.post("/api/v1/jobs", json=body))

    assert ("audit", 1_777_608_000) == (found["priority"], found["deadline"])


def test_a_job_is_interactive_and_patient_by_default(
    client: httpx.Client, spiking: FeatureKey
) -> None:
    """Whoever calls the API waits for the answer."""
    found = strict(client.post("/api/v1/jobs", json={"features": [str(spiking)]}))

    assert ("interactive", None) == (found["priority"], found["deadline"])


def test_an_unknown_state_is_answered_with_the_known_ones(client: httpx.Client) -> None:
    """The message is a list one can choose from."""
    answer = strict(client.get("/api/v1/features", params={"state": "loud"}))

    assert "'loud' is unknown: use one of unknown, normal, pending" in answer["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "SC200"),
        (b"[]", "SC200"),
        (b"[" * 100_000, "SC200"),
        (b'{"features": []}', "SC200"),
        (b'{"features": "x"}', "SC200"),
        (b'{"features": [1]}', "SC200"),
        (b'{"features": ["x"], "other": 1}', "SC200"),
        (b'{"features": ["x"]}', "SC204"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "recipe": {"stepz": 1}}', "SC207"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "recipe": {"steps": 1.5}}', "SC207"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "time_limit_seconds": -1}', "SC200"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "time_limit_seconds": NaN}', "SC200"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "priority": "urgent"}', "SC200"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "deadline": NaN}', "SC200"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "deadline": true}', "SC200"),
        (b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "deadline": "soon"}', "SC200"),
        (
            b'{"features": ["lite0@3fa1/_blocks.14/channel/1"], "deadline": "2026-05-01T06:00"}',
            "SC200",
        ),
    ],
)
def test_a_job_that_cannot_be_is_refused(
    client: httpx.Client, backend: Any, channels: LayerKey, body: bytes, code: str
) -> None:
    """Broken JSON, unknown keys and wrong values leave the queue empty."""
    headers = {"content-type": "application/json"}
    response = client.post("/api/v1/jobs", content=body, headers=headers)

    assert (400, code) == (response.status_code, strict(response)["code"])
    assert not backend.queue


def test_a_job_request_must_be_sent_as_json(client: httpx.Client, channels: LayerKey) -> None:
    """What a foreign form can send without being asked first is refused."""
    body = '{"features": ["lite0@3fa1/_blocks.14/channel/1"]}'
    plain = client.post("/api/v1/jobs", content=body, headers={"content-type": "text/plain"})
    foreign = client.post("/api/v1/jobs", json={}, headers={"origin": "http://evil.example"})
    large = client.post("/api/v1/jobs", json={"features": ["x" * 300_000]})

    assert (400, 403, 413) == (plain.status_code, foreign.status_code, large.status_code)


def test_a_full_queue_says_when_to_try_again(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Clients back off instead of hammering."""
    backend.failing = JobQueueFull("256 jobs wait")
    response = client.post("/api/v1/jobs", json={"features": [str(spiking)]})

    assert (429, "SC602") == (response.status_code, strict(response)["code"])
    assert "retry-after" in response.headers


def test_a_job_is_cancelled_over_the_api(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The answer is the job as it stands then."""
    job = backend.add_job(spiking, JobState.QUEUED)

    assert "cancelled" == strict(client.post(f"/api/v1/jobs/{job.id}/cancel"))["state"]


def made_pictures(backend: Any, channels: LayerKey) -> list[MadePicture]:
    """Put five pictures of two features into the store, the newest first; return them."""
    found = [
        MadePicture(
            manifest_digest=f"{n:064x}",
            picture_digest=f"{n + 100:064x}",
            content_key=f"{n + 200:064x}",
            feature=str(channels.feature(n % 2)),
            model=channels.model,
            revision=channels.revision,
            method="search" if n == 3 else "activation_maximisation",
            job_id=f"01K{n // 2:023d}",
            origin="cli",
            reproduces="",
            created=backend.now - n,
            verdict=("trusted", "weak", "")[n % 3],
        )
        for n in range(5)
    ]
    backend.made = found
    return found


def test_made_pictures_are_listed_page_by_page(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Each once, newest first; the last page says that it is."""
    made = made_pictures(backend, channels)
    seen, query = [], {"limit": "2"}
    for _ in range(3):
        page = strict(client.get("/api/v1/artifacts", params=query))
        seen += [one["manifest_digest"] for one in page["artifacts"]]
        query["before"] = page["next"]

    assert [one.manifest_digest for one in made] == seen
    assert page["next"] is None
    whole = strict(client.get("/api/v1/artifacts", params={"limit": "5"}))
    assert (5, None) == (len(whole["artifacts"]), whole["next"])
    assert (f"/artifacts/{seen[0]}", "trusted", None) == (
        whole["artifacts"][0]["page"],
        whole["artifacts"][0]["verdict"],
        whole["artifacts"][2]["verdict"],
    )


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ({"feature": "lite0/_blocks.14/channel/1"}, [1, 3]),
        ({"method": "search"}, [3]),
        ({"verdict": "weak"}, [1, 4]),
        ({"job": f"01K{1:023d}"}, [2, 3]),
        ({"model": "lite0", "revision": "3fa1", "verdict": "trusted"}, [0, 3]),
        ({"model": "other"}, []),
    ],
)
def test_made_pictures_are_found_by_what_they_are(
    client: httpx.Client, backend: Any, channels: LayerKey, query: dict[str, str], places: list[int]
) -> None:
    """Every filter alone, and some together."""
    made = made_pictures(backend, channels)

    found = strict(client.get("/api/v1/artifacts", params=query))["artifacts"]

    assert [made[n].manifest_digest for n in places] == [one["manifest_digest"] for one in found]


def test_pictures_of_a_layer_that_is_gone_are_found_by_their_whole_name(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """A picture may outlive its layer; a name that is not whole cannot be looked up then."""
    made = made_pictures(backend, channels)
    backend.known_layers.clear()

    found = client.get("/api/v1/artifacts", params={"feature": made[0].feature})
    short = client.get("/api/v1/artifacts", params={"feature": "lite0/_blocks.14/channel/0"})

    assert 3 == len(strict(found)["artifacts"])
    assert 404 == short.status_code


@pytest.mark.parametrize("query", ["limit=200", "verdict=good", "before=x", "feature=x"])
def test_a_list_of_pictures_that_cannot_be_is_refused(client: httpx.Client, query: str) -> None:
    """Too many, unknown verdicts, digests that are none, names that are none."""
    assert 400 == client.get(f"/api/v1/artifacts?{query}").status_code


def test_what_is_quarantined_is_listed(client: httpx.Client, backend: Any) -> None:
    """Why, until when, and where its job is; a feature that is forgotten is null."""
    backend.refused = [Quarantined("ab" * 32, "01K0", "", "SIGSEGV", backend.now + 60)]

    (found,) = strict(client.get("/api/v1/quarantine"))["quarantine"]

    assert (None, "SIGSEGV", backend.now + 60, "/jobs/01K0") == (
        found["feature"],
        found["reason"],
        found["until"],
        found["page"],
    )


def test_baselines_are_listed_newest_first_and_filtered(
    client: httpx.Client, backend: Any, channels: LayerKey, logits: LayerKey
) -> None:
    """What was learned when, what is wrong with it, and whether traffic is compared with it."""
    old = backend.add_baseline(channels, origin="imported")
    new = backend.add_baseline(channels, "it covers 2 h, not a day")
    backend.add_baseline(logits)

    def get(**params: str) -> Any:
        return strict(client.get("/api/v1/baselines", params=params))["baselines"]

    first, second = get(layer=channels.layer, revision=channels.revision[:6])
    assert [new.stored.digest, old.stored.digest] == [first["digest"], second["digest"]]
    assert (["it covers 2 h, not a day"], 22.5) == (first["cautions"], first["hours"])
    assert ("imported", False) == (second["origin"], second["in_force"])
    assert (3, 0) == (len(get()), len(get(model="other")))


def test_layers_are_listed(client: httpx.Client, channels: LayerKey) -> None:
    """Every layer with how it is measured and its baseline."""
    (layer,) = strict(client.get("/api/v1/layers"))["layers"]

    assert (192, True, "float32") == (
        layer["width"],
        layer["baseline_frozen"],
        layer["capture"]["dtype"],
    )


def test_a_layer_names_the_unflagged_features_that_stand_out(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """With every number the screen has, and a page."""
    key = channels.feature(7)
    finding = Anomaly(key, 1.0, 2.0, 3, 64, 32, 0.01, -23.0, -21.5)
    backend.add_layer(channels, 192, anomalies=(finding,))
    backend.findings[key] = finding
    (layer,) = strict(client.get("/api/v1/layers"))["layers"]
    (found,) = layer["anomalies"]

    assert found == strict(client.get(f"/api/v1/features/{key.path}"))["anomaly"]
    assert (str(key), 50.0, 0.5, -21.5, 3) == (
        found["key"],
        found["factor"],
        found["exceedance_ratio"],
        found["q_log10"],
        found["windows"],
    )
    assert 200 == client.get(found["page"]).status_code

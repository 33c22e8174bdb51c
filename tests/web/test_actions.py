import re
from typing import Any

import httpx
import pytest

from sidecar.detect import State
from sidecar.errors import JobQueueFull
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobState, Quarantined

pytestmark = pytest.mark.service


def test_a_flag_set_in_the_form_is_kept_and_shown(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """Name, severity and owner arrive; the reader is led back to the page with a notice."""
    key = channels.feature(7)
    fields = {"token": token, "name": "fur", "severity": "critical", "owner": "ann"}
    response = client.post(f"/f/{key.path}/flag", data=fields)

    assert 303 == response.status_code
    assert ("fur", "critical", "ann") == (
        backend.watched[key].flag.name,
        backend.watched[key].flag.severity,
        backend.watched[key].flag.owner,
    )
    assert "Flag saved" in client.get(response.headers["location"]).text


def test_how_a_feature_is_watched_is_set_in_the_form(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """Side, factor, slice and detectors arrive, and the form shows them again."""
    key = channels.feature(7)
    fields = {"token": token, "name": "fur", "direction": "below", "factor": "2.5"}
    fields |= {"slice": "route=/eu", "detector-spike": "on", "detector-drift": "on"}
    response = client.post(f"/f/{key.path}/flag", data=fields)
    page = client.get(response.headers["location"]).text

    assert 303 == response.status_code
    flag = backend.watched[key].flag
    assert (2.5, "below", "route=/eu") == (flag.factor, flag.direction, str(flag.traffic))
    assert ("spike", "drift") == flag.detectors
    assert '<option value="below" selected="selected">' in page
    assert 'name="factor" inputmode="decimal" maxlength="20" value="2.5"' in page
    assert 'name="slice" maxlength="400" value="route=/eu"' in page
    checked = re.findall(r'name="detector-(\w+)" value="on" checked="checked"', page)
    assert ["spike", "drift"] == checked


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("factor", "x", "factor &#39;x&#39;: use a number above 1, or nothing"),
        ("factor", "0.5", "factor 0.5"),
        ("direction", "up", "use one of above, below, both"),
        ("slice", "eu", "use key=value pairs"),
        ("detector-spike", None, "choose at least one"),
    ],
)
def test_a_way_of_watching_that_cannot_be_is_refused(
    client: httpx.Client,
    backend: Any,
    channels: LayerKey,
    token: str,
    field: str,
    value: str | None,
    told: str,
) -> None:
    """The page names the field, what was in it, and what may be."""
    fields = {"token": token, "direction": "above", "detector-spike": "on", field: value}
    data = {name: text for name, text in fields.items() if text is not None}
    response = client.post(f"/f/{channels.feature(7).path}/flag", data=data)

    assert 400 == response.status_code
    assert told in response.text
    assert not backend.watched


def test_a_flag_can_be_removed(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """One press, and nobody is told any more."""
    response = client.post(f"/f/{spiking.path}/unflag", data={"token": token})

    assert 303 == response.status_code
    assert spiking not in backend.watched


@pytest.mark.parametrize(
    "fields",
    [{"severity": "odd"}, {"name": "x" * 81}, {"owner": "a\x00b"}, {"name": "line\nbreak"}],
)
def test_a_flag_that_cannot_be_is_refused(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str, fields: dict[str, str]
) -> None:
    """Unknown severities, long names and control characters never reach the daemon."""
    response = client.post(f"/f/{channels.feature(7).path}/flag", data={"token": token, **fields})

    assert 400 == response.status_code
    assert not backend.watched


def test_the_portrait_form_makes_one_job_however_often_it_is_sent(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """A double press is one job; a page loaded anew is another."""
    page = client.get(f"/f/{spiking.path}").text
    form_key = re.search(r'name="form_key" value="(\w+)"', page)[1]
    fields = {"token": token, "form_key": form_key, "seed": "3", "steps": "64", "canvas": "128"}
    answers = [client.post(f"/f/{spiking.path}/portrait", data=fields) for _ in range(2)]

    assert {303} == {answer.status_code for answer in answers}
    assert 1 == len({answer.headers["location"] for answer in answers})
    (job,) = backend.queue.values()
    assert (3, 64, 128) == (
        job.request.recipe.seed,
        job.request.recipe.steps,
        job.request.recipe.canvas,
    )
    assert "console" == job.request.origin
    assert 200 == client.get(answers[0].headers["location"]).status_code


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "0"), ("steps", "1e3"), ("canvas", "9999"), ("seed", "-1"), ("seed", "9" * 40)],
)
def test_a_recipe_that_cannot_be_is_refused(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str, name: str, value: str
) -> None:
    """Values outside the limits give a page with a code and no job."""
    response = client.post(f"/f/{spiking.path}/portrait", data={"token": token, name: value})

    assert 400 == response.status_code
    assert not backend.queue


def test_a_full_queue_is_told_with_when_to_try_again(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """Overload is nobody's fault and says so."""
    backend.failing = JobQueueFull("256 jobs wait: try later")
    response = client.post(f"/f/{spiking.path}/portrait", data={"token": token})

    assert 429 == response.status_code
    assert "retry-after" in response.headers
    assert "SC602" in response.text


def test_a_job_can_be_cancelled_once(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """The second press is refused: the job has ended."""
    job = backend.add_job(spiking, JobState.RUNNING)
    first, second = (client.post(f"/jobs/{job.id}/cancel", data={"token": token}) for _ in range(2))

    assert (303, 409) == (first.status_code, second.status_code)
    assert JobState.CANCELLED is backend.job(job.id).state


def test_what_is_quarantined_is_shown_and_let_go(
    client: httpx.Client, backend: Any, spiking: FeatureKey, token: str
) -> None:
    """The list marks the job and says until when; one press lets it go, a second finds nothing."""
    job = backend.add_job(spiking, JobState.FAILED, error_code="SC806", error="SIGSEGV")
    backend.refused = [Quarantined("ab" * 32, job.id, str(spiking), "SIGSEGV", backend.now + 3600)]

    listed, own = client.get("/jobs").text, client.get(f"/jobs/{job.id}").text
    pressed = client.post(f"/jobs/{job.id}/release", data={"token": token})
    again = client.post(f"/jobs/{job.id}/release", data={"token": token})
    foreign = client.post(f"/jobs/{job.id}/release", data={"token": "x"})

    assert "In quarantine" in listed
    assert "in quarantine" in listed.partition("All jobs")[2]
    assert "is refused until" in own
    assert (303, "/jobs?done=released") == (pressed.status_code, pressed.headers["location"])
    assert "Let go." in client.get("/jobs?done=released").text
    assert (404, 403) == (again.status_code, foreign.status_code)
    assert "quarantine" not in client.get("/jobs").text


def test_a_baseline_is_frozen_and_reset_for_one_layer_only(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """The form names one layer of one revision; others are left alone."""
    other = backend.add_layer(LayerKey("lite0", channels.revision, "_blocks.2"), 10)
    fields = {
        "token": token,
        "model": "lite0",
        "revision": channels.revision,
        "layer": "_blocks.14",
    }
    reset = client.post("/layers/reset", data={**fields, "reason": "new camera"})
    silent = client.post("/layers/reset", data=fields)

    assert (303, 303) == (reset.status_code, silent.status_code)
    assert ["new camera", ""] == backend.reasons
    assert not backend.known_layers[channels].baseline_frozen
    assert backend.known_layers[other].baseline_frozen
    assert 303 == client.post("/layers/freeze", data=fields).status_code
    assert backend.known_layers[channels].baseline_frozen


def test_an_empty_layer_never_means_all_layers(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """A form that lost its fields resets nothing."""
    response = client.post("/layers/reset", data={"token": token, "model": "lite0"})

    assert 400 == response.status_code
    assert backend.known_layers[channels].baseline_frozen


def test_the_notice_is_a_known_sentence_not_the_query(
    client: httpx.Client, spiking: FeatureKey
) -> None:
    """Nobody can put words into the console's mouth by a link."""
    text = client.get(f"/f/{spiking.path}?done=You+were+hacked").text

    assert "hacked" not in text
    assert 'class="notice"' not in text


def test_a_feature_can_be_flagged_twice_with_another_name(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """Saving again changes the flag in place."""
    key = backend.watch(channels.feature(1), State.NORMAL, "old")
    client.post(f"/f/{key.path}/flag", data={"token": token, "name": "new"})

    assert "new" == backend.watched[key].flag.name

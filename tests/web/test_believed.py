"""A portrait that cannot be believed is shown as such wherever it is shown."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from sidecar.features import FeatureKey
from sidecar.jobs import JobState

pytestmark = pytest.mark.service

REASON = "Only 4% of the excitation survives JPEG."


@pytest.fixture
def portrayed(backend: Any, spiking: FeatureKey) -> FeatureKey:
    """A feature whose newest portrait is unreliable."""
    pictures = backend.pictures[str(spiking)]
    pictures[0] = replace(pictures[0], verdict="unreliable", reasons=REASON)
    return spiking


def test_pages_mark_an_unreliable_portrait(
    client: httpx.Client, backend: Any, portrayed: FeatureKey
) -> None:
    """Its own page says so beside the picture and why, the list in the picture and to screen readers."""
    page = client.get(f"/f/{portrayed.path}").text
    row = client.get("/").text

    assert 'class="stamp unreliable">Synthetic, unreliable' in page
    assert "<b>Unreliable</b>" in page
    assert REASON in page
    assert 'class="unreliable" title="Unreliable portrait' in row
    assert 'alt="Unreliable portrait of' in row

    backend.pictures[str(portrayed)][0] = replace(
        backend.pictures[str(portrayed)][0], verdict="trusted", reasons=""
    )
    assert "nreliable" not in client.get(f"/f/{portrayed.path}").text
    assert "nreliable portrait" not in client.get("/").text


def test_the_api_says_verdict_and_reasons(client: httpx.Client, portrayed: FeatureKey) -> None:
    """Of every portrait; an older one without a verdict has an empty one."""
    newest, *older = client.get(f"/api/v1/features/{portrayed.path}").json()["portraits"]

    assert ("unreliable", [REASON]) == (newest["verdict"], newest["reasons"])
    assert {""} == {one["verdict"] for one in older}


def test_where_no_caption_fits_a_card_stands_in(
    client: httpx.Client, backend: Any, portrayed: FeatureKey
) -> None:
    """The address that dashboards embed shows it on demand only, and says what it is all the same."""
    address = f"/f/{portrayed.path}/portrait.png"
    card, bare = client.get(address), client.get(f"{address}?unreliable=show")
    picture = backend.artifact(backend.portraits(portrayed)[0].picture_digest)[0].read_bytes()

    assert "unreliable" == card.headers["x-sidecar-portrait"]
    assert card.content != picture
    assert picture == bare.content
    assert "unreliable" == bare.headers["x-sidecar-portrait-verdict"]


def test_a_jobs_page_marks_what_it_made(
    client: httpx.Client, backend: Any, portrayed: FeatureKey
) -> None:
    """Where the person who asked looks first."""
    made = tuple(backend.pictures[str(portrayed)][:1])
    job = backend.add_job(portrayed, JobState.DONE, portraits=made)

    page = client.get(f"/jobs/{job.id}").text

    assert 'class="stamp unreliable">Synthetic, unreliable' in page
    assert REASON in page


def test_a_portrait_without_a_verdict_says_why(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """In the words of its manifest."""
    backend.add_portrait(spiking, findings={"not_assessed": "photographs are <shown> as they are"})

    page = client.get(f"/f/{spiking.path}").text

    assert "<b>Not assessed</b>: photographs are &lt;shown&gt; as they are." in page

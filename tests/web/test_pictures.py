from typing import Any

import httpx
import pytest

from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobState, Portrait

pytestmark = pytest.mark.service

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_portrait_address_serves_the_newest_picture(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """One stable address, revalidated by the picture's digest."""
    newest = backend.portraits(spiking)[0]
    response = client.get(f"/f/{spiking.path}/portrait.png")
    again = client.get(
        f"/f/{spiking.path}/portrait.png", headers={"if-none-match": response.headers["etag"]}
    )

    assert ("image/png", "ready") == (
        response.headers["content-type"],
        response.headers["x-sidecar-portrait"],
    )
    assert backend.artifact(newest.picture_digest)[0].read_bytes() == response.content
    assert 304 == again.status_code


def test_without_a_portrait_the_address_serves_a_card(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Alerts link the picture before there is one; chats get a PNG all the same."""
    key = channels.feature(8)
    absent = client.get(f"/f/{key.path}/portrait.png")
    backend.add_job(key, JobState.RUNNING)
    rendering = client.get(f"/f/{key.path}/portrait.png")

    assert (200, 200) == (absent.status_code, rendering.status_code)
    assert absent.content.startswith(PNG)
    assert rendering.content.startswith(PNG)
    assert absent.content != rendering.content
    assert ("absent", "rendering") == (
        absent.headers["x-sidecar-portrait"],
        rendering.headers["x-sidecar-portrait"],
    )
    assert "no-store" == absent.headers["cache-control"]


def test_a_feature_not_seen_yet_has_a_card_but_nonsense_has_not(client: httpx.Client) -> None:
    """After a restart an alert may come before the layer; what is no key at all is refused."""
    known = client.get("/f/lite0@3fa1/_blocks.14/channel/33/portrait.png")
    nonsense = client.get("/f/lite0/portrait.png")

    assert 200 == known.status_code
    assert known.content.startswith(PNG)
    assert 400 == nonsense.status_code


def test_a_portrait_whose_file_is_gone_gives_way_to_the_next(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The store makes room by dropping old files; the address never breaks."""
    gone = Portrait(str(spiking), "c" * 64, "d" * 64, "e" * 64, backend.now)
    backend.pictures[str(spiking)].insert(0, gone)
    removed = backend.portraits(spiking)[1]
    backend.artifact(removed.picture_digest)[0].unlink()
    response = client.get(f"/f/{spiking.path}/portrait.png")

    assert 200 == response.status_code
    assert f'"{backend.portraits(spiking)[2].picture_digest}"' == response.headers["etag"]


def test_artifacts_are_immutable_and_inert(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Cached for ever by digest; nothing in them may run or fetch."""
    digest = backend.portraits(spiking)[0].picture_digest
    response = client.get(f"/api/v1/artifacts/{digest}")
    again = client.get(f"/api/v1/artifacts/{digest}", headers={"if-none-match": f'"{digest}"'})

    assert f'"{digest}"' == response.headers["etag"]
    assert "immutable" in response.headers["cache-control"]
    assert "sandbox" in response.headers["content-security-policy"]
    assert "nosniff" == response.headers["x-content-type-options"]
    assert (304, b"") == (again.status_code, again.content)


@pytest.mark.parametrize("media_type", ["text/html", "image/svg+xml", "application/x-sh"])
def test_artifacts_that_could_run_are_handed_out_as_files(
    client: httpx.Client, backend: Any, media_type: str
) -> None:
    """HTML and SVG from a worker never open in the console's origin."""
    digest = backend.store(b"<script>alert(1)</script>", media_type)
    response = client.get(f"/api/v1/artifacts/{digest}")

    assert "application/octet-stream" == response.headers["content-type"]
    assert "attachment" == response.headers["content-disposition"]


@pytest.mark.parametrize("digest", ["0" * 64, "xyz", "A" * 64, "0" * 65])
def test_an_artifact_that_is_not_there_is_not_found(client: httpx.Client, digest: str) -> None:
    """Well-formed or not, the answer is JSON with the code."""
    response = client.get(f"/api/v1/artifacts/{digest}")

    assert 404 == response.status_code
    assert "SC405" == response.json()["code"]


def test_an_artifact_whose_file_vanished_is_not_found(client: httpx.Client, backend: Any) -> None:
    """A file removed between look-up and reading is no server error."""
    digest = backend.store(b"{}", "application/json")
    (backend.folder / digest).unlink()

    assert 404 == client.get(f"/api/v1/artifacts/{digest}").status_code


def test_the_preview_follows_the_job(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """A card before the first intermediate picture, then the newest one."""
    job = backend.add_job(spiking, JobState.RUNNING)
    before = client.get(f"/api/v1/jobs/{job.id}/preview.png")
    backend.show(job.id, PNG + b"one", 5)
    after = client.get(f"/api/v1/jobs/{job.id}/preview.png")
    unknown = client.get("/api/v1/jobs/none/preview.png")

    assert "rendering" == before.headers["x-sidecar-portrait"]
    assert PNG + b"one" == after.content
    assert 404 == unknown.status_code


def test_static_files_are_cached_for_ever_by_version_only(client: httpx.Client) -> None:
    """A link with the right version never shows old bytes; one without is checked each time."""
    page = client.get("/").text
    start = page.index("/static/console.css?v=")
    link = page[start : page.index('"', start)]
    exact, stale = client.get(link), client.get("/static/console.css?v=000000000000")
    again = client.get(link, headers={"if-none-match": exact.headers["etag"]})

    assert "immutable" in exact.headers["cache-control"]
    assert "no-cache" == stale.headers["cache-control"]
    assert 304 == again.status_code
    assert 404 == client.get("/static/none.css").status_code

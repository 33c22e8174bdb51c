import threading
from typing import Any

import httpx
import numpy as np
import pytest

from sidecar.audits import NightState
from sidecar.detect import Attribution, State
from sidecar.features import FeatureKey, LayerKey
from sidecar.jobs import JobState, Quarantined
from sidecar.monitor import Anomaly
from sidecar.web import WebServer

pytestmark = pytest.mark.e2e

# For every element with text of its own: is it too faint on what is painted behind it?
FAINT = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return rgba(getComputedStyle(document.documentElement).backgroundColor);
  };
  const faint = [];
  for (const node of document.body.querySelectorAll('*')) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = rgba(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.push(node.tagName + ' ' + node.textContent.slice(0, 40));
  }
  return faint;
})()
"""

# Boxes that hide part of what is in them; what only screen readers are told is one pixel wide.
CUT_OFF = """
[...document.querySelectorAll('body *')]
  .filter((node) => getComputedStyle(node).overflowX === 'hidden' && node.clientWidth > 1)
  .filter((node) => node.scrollWidth > node.clientWidth + 1)
  .map((node) => node.tagName + '.' + node.className)
"""


@pytest.fixture
def pages(
    server: WebServer, backend: Any, audits: Any, spiking: FeatureKey, logits: LayerKey
) -> list[str]:
    """Every kind of page, with everything on it."""
    nights = [NightState.REGRESSED, NightState.PASSED, NightState.FAILED, NightState.PASSED] * 12
    audits.add("nightly-int8", *nights)
    audits.add("x" * 60, NightState.RUNNING, *nights, model=f"lite0@{'ab' * 32}", overdue=True)
    portraits = tuple(backend.portraits(spiking)[:1])
    jobs = [
        backend.add_job(spiking, JobState.DONE, portraits=portraits, ended=backend.now),
        backend.add_job(spiking, JobState.FAILED, error_code="SC801", error="no such factory"),
        backend.add_job(logits.feature(3), JobState.RUNNING, step=3, steps=9),
    ]
    paths = ["/", "/?show=all", "/?q=nothing", "/layers", "/jobs", "/missing"]
    paths += [f"/f/{spiking.path}", f"/f/{logits.feature(3).path}"]
    long = "tenant=" + "x" * 200
    said = Attribution(f"Without {long} the spike is gone.", long, 1.0)
    backend.add_evidence(logits.feature(3), attribution=said)
    paths += [f"/f/{key.path}/evidence" for key in (spiking, *map(logits.feature, (3, 4)))]
    paths += [f"/jobs/{job.id}" for job in jobs]
    backend.refused = [
        Quarantined("ab" * 32, jobs[1].id, str(spiking), "SIGSEGV " * 9, backend.now + 60)
    ]
    paths += ["/audits", "/audits/nightly-int8", f"/audits/{'x' * 60}"]
    stuck = backend.watch(
        logits.feature(7),
        State.NORMAL,
        conditions=("never_seen", "nonfinite", "silent", "saturated"),
        drifting=True,
        drift_js=0.4,
        direction="both",
        low_threshold=-3.25,
    )
    paths.append(f"/f/{stuck.path}")
    finding = Anomaly(logits.feature(9), backend.now - 300, backend.now, 3, 64, 47, 0.012, -23, -21)
    backend.add_layer(logits, 1000, shifted=True, screened_features=1000, anomalies=(finding,) * 2)
    backend.findings[finding.key] = finding
    paths.append(f"/f/{finding.key.path}")
    backend.unmatched = [f"{'x' * 180}/conv9/channel/4"]
    backend.add_baseline(
        logits, "it covers 1 h, not a day: traffic of other hours may look unusual"
    )
    return [f"http://127.0.0.1:{server.port}{path}" for path in paths]


def test_every_page_fits_reads_and_obeys_its_policy(browser: Any, pages: list[str]) -> None:
    """At 320 px and wide, light and dark: nothing cut off, no faint text, no complaint."""
    for url in pages:
        for width, dark in ((320, False), (320, True), (1280, False), (1280, True)):
            page = browser.open(url, width=width, dark=dark)

            needed = page.evaluate("document.documentElement.scrollWidth")
            assert needed <= width, (url, needed)
            assert [] == page.evaluate(CUT_OFF), (url, width)
            assert [] == page.evaluate(FAINT), (url, dark)
            page.call("Page.close")
    # A page that is not there is written to the console as such, and nothing else is.
    assert [] == [words for words in browser.said() if "404" not in words]


def test_colour_schemes_follow_the_reader(
    browser: Any, server: WebServer, spiking: FeatureKey
) -> None:
    """Light is light, dark is dark, and the part above the threshold is marked in both."""
    url = f"http://127.0.0.1:{server.port}/f/{spiking.path}"
    light, dark = (browser.open(url, dark=dark).picture().astype(int) for dark in (False, True))

    assert light.mean() > 170
    assert dark.mean() < 90
    for picture in (light, dark):
        plot = picture[420:800, 60:850]
        assert ((plot[..., 0] - plot[..., 1]) > 40).sum() > 3000


def test_a_job_page_follows_its_job_to_the_end(
    browser: Any, server: WebServer, backend: Any, spiking: FeatureKey
) -> None:
    """Progress, picture and result arrive without a press."""
    job = backend.add_job(spiking, JobState.RUNNING, started=backend.now - 2, step=1, steps=128)
    portrait = backend.portraits(spiking)[0]
    page = browser.open(f"http://127.0.0.1:{server.port}/jobs/{job.id}")
    page.wait_for("document.querySelector('[data-step]').textContent === '1'")
    backend.show(job.id, backend.artifact(portrait.picture_digest)[0].read_bytes(), 64)
    page.wait_for("document.querySelector('[data-step]').textContent === '64'")
    page.wait_for("document.querySelector('[data-preview]').src.endsWith('?v=1')")
    page.wait_for("document.querySelector('progress').value === 64")
    backend.change(job.id, state=JobState.DONE, portraits=(portrait,), ended=backend.now)
    page.wait_for(f"document.documentElement.innerHTML.includes('{portrait.picture_digest}')")

    assert page.evaluate("document.querySelector('[data-job-events]')") is None
    assert "Cancel the job" not in page.evaluate("document.body.textContent")


def test_a_form_in_the_browser_is_accepted(
    browser: Any, server: WebServer, backend: Any, channels: LayerKey
) -> None:
    """Origin, fetch metadata, token and policy agree in a real browser."""
    key = channels.feature(12)
    page = browser.open(f"http://127.0.0.1:{server.port}/f/{key.path}")
    page.evaluate("document.querySelector('#flag-name').value = 'from a browser'")
    page.evaluate("document.querySelector('form[action$=\"/flag\"]').requestSubmit()")
    page.wait_for("document.querySelector('[role=status]') !== null")

    assert "from a browser" == backend.watched[key].flag.name


def test_the_slash_key_goes_to_the_search(
    browser: Any, server: WebServer, spiking: FeatureKey
) -> None:
    """One key, and not while typing."""
    page = browser.open(f"http://127.0.0.1:{server.port}/")
    for _ in range(2):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="/", text="/")
        page.call("Input.dispatchKeyEvent", type="keyUp", key="/")

    assert "q" == page.evaluate("document.activeElement.id")
    assert "/" == page.evaluate("document.activeElement.value")


def test_without_script_every_page_looks_the_same(browser: Any, pages: list[str]) -> None:
    """Nothing waits for JavaScript: with it switched off the same pixels are painted."""
    for url in pages:
        on, off = (browser.open(url, script=script).picture() for script in (True, False))

        assert on.shape == off.shape
        assert np.abs(on.astype(int) - off).mean() < 0.5, url


def test_with_script_switched_off_no_stream_is_opened(
    browser: Any, server: WebServer, backend: Any, spiking: FeatureKey
) -> None:
    """The control of the test above: the switch really switches."""
    job = backend.add_job(spiking, JobState.RUNNING, step=1, steps=9)
    streams = server._app.state.console.streams  # noqa: SLF001 - the count is not shown anywhere
    browser.open(f"http://127.0.0.1:{server.port}/jobs/{job.id}", script=False)
    without = streams._open  # noqa: SLF001
    browser.open(f"http://127.0.0.1:{server.port}/jobs/{job.id}", script=True)
    pause = threading.Event()
    for _ in range(200):
        if streams._open:  # noqa: SLF001
            break
        pause.wait(0.05)

    assert 0 == without
    assert 1 == streams._open  # noqa: SLF001


def test_a_name_with_script_in_it_runs_nothing(
    browser: Any, server: WebServer, backend: Any, channels: LayerKey
) -> None:
    """The browser itself sees words, not elements."""
    evil = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    key = backend.watch(channels.feature(1), "firing", evil, explanation=evil)
    backend.add_evidence(key, reason=evil, attribution=Attribution(evil))
    for path in ("/", f"/f/{key.path}", f"/f/{key.path}/evidence"):
        page = browser.open(f"http://127.0.0.1:{server.port}{path}")

        assert "pwned" not in page.evaluate("document.title").replace(evil, "")
        assert 0 == page.evaluate("document.querySelectorAll('img[src=x]').length")
    assert [] == browser.said()


def test_the_feature_page_is_light(client: httpx.Client, spiking: FeatureKey) -> None:
    """Page, style, script and mark together stay far below 100 KB, pictures aside."""
    sizes = {
        path: len(client.get(path).content)
        for path in (
            f"/f/{spiking.path}",
            "/static/console.css",
            "/static/console.js",
            "/static/mark.svg",
        )
    }

    assert sum(sizes.values()) < 60_000, sizes

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import httpx
import numpy as np
import pytest

from sidecar.audits import NightState
from sidecar.detect import Attribution, LeftOut, SliceCount, State
from sidecar.errors import CorruptState, JobQueueFull
from sidecar.features import FeatureKey, FeatureKind, LayerKey
from sidecar.jobs import JobState, Quarantined
from sidecar.monitor import Anomaly, Event, EvidenceRow, Flag, Window

pytestmark = pytest.mark.service

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onload='x"


def parse(text: str) -> ET.Element:
    """Read a page as XML: stricter than any browser about nesting and quoting."""
    return ET.fromstring(text.removeprefix("<!doctype html>"))  # noqa: S314 - our own page


class Elements(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep one element."""
        self.found.append((tag, dict(attrs)))


def test_every_page_is_well_formed_with_unique_ids_and_named_controls(
    client: httpx.Client, backend: Any, audits: Any, spiking: FeatureKey, logits: LayerKey
) -> None:
    """Each page parses as XML, repeats no id, and labels every control and picture."""
    running = backend.add_job(spiking, JobState.RUNNING, started=backend.now - 9, step=3, steps=9)
    failed = backend.add_job(spiking, JobState.FAILED, error_code="SC801", error="no factory")
    backend.refused = [Quarantined("ab" * 32, failed.id, "", "SIGSEGV", backend.now + 60)]
    done = backend.add_job(
        spiking, JobState.DONE, portraits=tuple(backend.portraits(spiking)[:1]), ended=backend.now
    )
    pages = ["/", "/?show=all", "/?q=nothing", "/?page=9", "/layers", "/jobs", "/missing"]
    pages += [f"/f/{spiking.path}", f"/f/{logits.feature(130).path}"]
    pages += [f"/f/{spiking.path}/evidence", f"/f/{logits.feature(130).path}/evidence"]
    pages += [f"/jobs/{job.id}" for job in (running, failed, done)]
    audits.add("nightly-int8", NightState.REGRESSED, NightState.PASSED, NightState.FAILED)
    audits.add("tonight", NightState.RUNNING, overdue=True)
    audits.add("first")
    pages += ["/audits", "/audits/nightly-int8", "/audits/tonight", "/audits/first"]
    for page in pages:
        root = parse(client.get(page).text)

        ids = Counter(node.get("id") for node in root.iter() if node.get("id"))
        assert [] == [name for name, times in ids.items() if times > 1], page
        labelled = {node.get("for") for node in root.iter("label")}
        for control in [*root.iter("input"), *root.iter("select")]:
            assert control.get("type") == "hidden" or control.get("id") in labelled, page
        assert all(image.get("alt") is not None for image in root.iter("img")), page
        assert 1 == len(list(root.iter("h1"))), page


def test_no_page_holds_inline_script_style_or_foreign_addresses(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The strict policy would block them, so none may be relied on."""
    backend.add_job(spiking, JobState.RUNNING, step=1, steps=2)
    for page in ("/", f"/f/{spiking.path}", f"/f/{spiking.path}/evidence", "/layers", "/jobs"):
        for tag, attributes in Elements(client.get(page).text).found:
            assert "style" not in attributes
            assert tag != "style"
            assert not any(name.startswith("on") for name in attributes)
            assert tag != "script" or attributes["src"].startswith("/static/")
            if tag in ("img", "script", "link") and attributes.get("rel") != "canonical":
                assert (attributes.get("src") or attributes.get("href")).startswith("/")


def test_names_and_explanations_from_outside_are_only_text(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Script in a flag's name, owner, explanation, event, label or error stays words."""
    key = backend.watch(channels.feature(1), State.FIRING, EVIL, explanation=EVIL)
    backend.watched[key] = replace(backend.watched[key], flag=Flag(EVIL, EVIL, EVIL))
    backend.log = [Event(1.0, EVIL, str(key), EVIL)]
    backend.version = EVIL
    backend.add_portrait(
        key, 0, method={"name": EVIL}, device={"type": EVIL}, code={"sidecar": EVIL}
    )
    job = backend.add_job(key, JobState.FAILED, error_code=EVIL, error=EVIL, message=EVIL)
    live = backend.add_job(key, JobState.RUNNING, message=EVIL, step=1, steps=2)
    pages = ("/", f"/f/{key.path}", "/jobs", f"/jobs/{job.id}", f"/jobs/{live.id}")
    left = LeftOut(SliceCount(EVIL, EVIL, 9, 9), 0.1, 1.0, gone=True, telling=True)
    backend.add_evidence(
        key,
        reason=EVIL,
        numbers={EVIL: 1.0},
        attribution=Attribution(EVIL, EVIL, 1.0, (left,)),
        rows=(EvidenceRow(1.0, 1.0, EVIL, 0, EVIL),),
    )
    pages += (f"/f/{key.path}/evidence", f"/f/{key.path}/evidence?record={EVIL}")
    pages += (f"/?q={EVIL}", f"/?model={EVIL}&layer={EVIL}&revision={EVIL}", f"/f/{EVIL}")
    for page in pages:
        response = client.get(page)
        found = Elements(response.text).found

        assert all(
            attributes.get("src", "").startswith("/static/")
            for tag, attributes in found
            if tag == "script"
        )
        assert not any(name.startswith("on") for _, attributes in found for name in attributes)
        parse(response.text)


def test_the_list_shows_flagged_features_the_most_urgent_first(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The firing feature leads, with its numbers beside its baseline."""
    backend.watch(spiking.layer.feature(2), State.NORMAL, "calm one")
    text = client.get("/").text

    assert text.index("striped texture") < text.index("calm one")
    assert "8.3 %" in text
    assert re.search(r"0\.1 % usual", text)
    assert re.search(r'loading="lazy"', text)


def test_a_stuck_feature_is_not_shown_green(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """What is certain, and drift, stand above the calm ones in the list and first on the page."""
    backend.watch(channels.feature(1), State.NORMAL, "calm one")
    backend.watch(channels.feature(2), State.RESOLVED, "over now")
    stuck = backend.watch(channels.feature(7), State.NORMAL, "stuck", conditions=("saturated",))
    backend.watch(channels.feature(8), State.NORMAL, "mover", drifting=True)
    backend.watch(channels.feature(9), State.FIRING, "spiker")
    text, page = client.get("/").text, client.get(f"/f/{stuck.path}").text
    places = [text.index(name) for name in ("spiker", "stuck", "mover", "over now", "calm one")]

    assert places == sorted(places)
    assert 1 == text.count("</svg>saturated<")
    assert 1 == text.count("</svg>drifting<")
    assert '<section class="verdict concern"' in page
    assert "<title>stuck, saturated" in page
    assert "Behaves as in its baseline" not in page
    assert 'class="chip normal"' not in page


def test_a_feature_watched_below_is_shown_below(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Page and list name the side, or both sides with both thresholds."""
    low = backend.watch(
        channels.feature(1), State.NORMAL, direction="below", threshold=0.709, low_threshold=0.709
    )
    both = backend.watch(
        channels.feature(2), State.NORMAL, direction="both", threshold=6.5, low_threshold=-1.25
    )
    text = client.get("/").text

    assert "exceeds if below 0.709<" in text
    assert "exceeds if above 6.5 or below \u22121.25<" in text
    assert "0.16 % of the last 640 requests were below 0.709" in client.get(f"/f/{low.path}").text
    assert "<dd>above 6.5 or below \u22121.25</dd>" in client.get(f"/f/{both.path}").text
    assert -1.25 == client.get(f"/api/v1/features/{both.path}").json()["low_threshold"]


def test_flags_that_fit_nothing_are_told_on_the_list(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """A typing error in the configuration does not look like a calm feature."""
    before = client.get("/").text
    backend.unmatched = [f"lite0/conv9/channel/{i}" for i in range(7)]
    text = client.get("/").text

    assert "no feature, so nobody is told" not in before
    assert "7 flags fit no feature" in text
    assert "lite0/conv9/channel/4<" in text
    assert "no hook has registered layer &#39;conv9&#39;; the nearest: &#39;conv1&#39;" in text
    assert "lite0/conv9/channel/5<" not in text
    assert "and 2 more" in text


def test_a_firing_feature_shows_the_evidence_of_its_alarm(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """While an alarm is held the detector gathers none, and 10^0 would look like a mistake."""
    backend.watch(spiking, State.FIRING, evidence_log10=0.0)
    backend.add_evidence(spiking, numbers={"evidence_log10": 12.4})
    firing = client.get(f"/f/{spiking.path}").text
    backend.watch(spiking, State.NORMAL, evidence_log10=0.3)
    calm = client.get(f"/f/{spiking.path}").text

    assert "10<sup>12.4</sup> <small>when it fired</small>" in firing
    assert "10<sup>0.3</sup> <small>of 10<sup>8.6</sup></small>" in calm
    assert "Last spike: Without route=/v1/eu" in calm
    assert "Last spike" not in firing
    assert "When it changed: 53 of 640" in firing
    assert "When it changed" not in calm


def test_the_distances_of_drift_are_shown_when_they_are_known(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """A feature that does not drift has distances, too."""
    key = backend.watch(channels.feature(1), State.NORMAL, drift_js=0.05, drift_js_yesterday=0.04)
    other = backend.watch(channels.feature(2), State.NORMAL)
    text = client.get(f"/f/{key.path}").text

    assert "its last hour is 0.0500 from the baseline" in text
    assert "0.0400 from the same hour of yesterday" in text
    assert "it does not drift" in text
    assert "Drift:" not in client.get(f"/f/{other.path}").text


def test_the_list_says_which_features_live_in_a_shifted_layer(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Nobody has to open the page of the layer to see that it moves as a whole."""
    backend.watch(channels.feature(1), State.NORMAL)
    before = client.get("/").text
    backend.add_layer(channels, 192, shifted=True, screened_features=192)

    assert "layer shifted" not in before
    assert "</svg>layer shifted<" in client.get("/").text


def test_state_is_told_by_word_and_shape_not_by_colour_alone(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Each chip holds a word and an icon of its own."""
    for index, state in enumerate(State):
        backend.watch(channels.feature(index), state)
    text = client.get("/").text
    icons = {
        state: re.search(rf'class="chip {state}"><svg[^>]*>(.*?)</svg>{state}<', text, re.DOTALL)
        for state in State
    }

    assert all(icons.values())
    assert len(State) == len({match[1] for match in icons.values()})


def test_filters_narrow_the_list_and_stay_in_the_form(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Search, layer and state are URL parameters that the page repeats."""
    backend.watch(spiking.layer.feature(2), State.NORMAL, "calm one")

    searched = client.get("/", params={"q": "STRIPED"}).text
    by_state = client.get("/", params={"state": "normal"}).text
    none = client.get("/", params={"q": "no such thing"}).text

    assert "striped texture" in searched
    assert "calm one" not in searched
    assert 'value="STRIPED"' in searched
    assert "calm one" in by_state
    assert "striped texture" not in by_state
    assert "No feature fits" in none


@pytest.mark.parametrize(
    "query", ["state=odd", "page=0", "page=x", "page=-1", "show=x", "page=1e9"]
)
def test_nonsense_in_the_query_is_refused_with_a_code(client: httpx.Client, query: str) -> None:
    """A wrong filter is told, not ignored."""
    response = client.get(f"/?{query}")

    assert 400 == response.status_code
    assert "SC200" in response.text


def test_a_hundred_thousand_features_are_paged(client: httpx.Client, backend: Any) -> None:
    """Pages of a wide model hold one page of rows, and the last page is reachable."""
    layer = backend.add_layer(LayerKey("wide", "ab" * 32, "sae", FeatureKind.LATENT), 100_000)
    first = client.get("/", params={"show": "all"}).text
    last = client.get("/", params={"show": "all", "page": 2000}).text

    assert "1 to 50 of 100,000" in first
    assert 50 == first.count('scope="row"')
    assert "99,951 to 100,000 of 100,000" in last
    assert str(layer.feature(99_999)).rpartition("/")[2] in last
    assert len(first) < 100_000


def test_beyond_the_last_page_the_list_says_so(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """An old link to a page that is gone leads back."""
    assert "There is no page 7" in client.get("/?page=7").text


def test_without_flags_the_layers_are_listed_with_totals(
    client: httpx.Client, channels: LayerKey
) -> None:
    """A fresh installation shows what is measured and what to do next."""
    text = client.get("/").text

    assert "Nothing is flagged yet" in text
    assert "_blocks.14" in text
    assert "frozen at 20,000 requests" in text


def test_a_layer_of_which_less_is_kept_says_so(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Whoever misses a history finds out here why there is none."""
    before = client.get("/layers").text
    backend.add_layer(channels, 192, detail="screened")

    assert "statistics.memory_bytes" not in before
    assert "statistics.memory_bytes" in client.get("/layers").text


def anomaly(key: FeatureKey, now: float, windows: int = 3) -> Anomaly:
    """Return a finding: 47 of 64 requests where 1.23 % is usual."""
    return Anomaly(key, now - 300, now - 10, windows, 64, 47, 0.0123, -23.0, -21.5)


def test_unflagged_features_that_stand_out_are_listed_and_flagged_with_one_press(
    client: httpx.Client, backend: Any, channels: LayerKey, token: str
) -> None:
    """Their numbers, since when, and a form; afterwards somebody is told of them."""
    before = client.get("/layers").text
    key = channels.feature(7)
    backend.add_layer(channels, 192, anomalies=(anomaly(key, backend.now),))
    page = client.get("/layers").text
    (form,) = [one for one in parse(page).iter("form") if "/flag" in (one.get("action") or "")]
    sent = {one.get("name"): one.get("value") for one in form.iter("input")}
    answer = client.post(form.get("action"), data=sent)

    assert "stand out" not in before
    for part in (
        "channel 7 of _blocks.14",
        "59.7\u00d7",
        "73.4 % of 64, 1.2 % usual",
        "1.0e\u221223",
    ):
        assert part in page, part
    assert "q 3.2e\u221222" in page
    assert "3 windows<small>first" in page
    assert 303 == answer.status_code
    assert ("", "warning") == (backend.watched[key].flag.name, backend.watched[key].flag.severity)


def test_the_list_of_what_stands_out_is_bounded(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """With many layers the rest is counted."""
    for number in range(6):
        layer = replace(channels, layer=f"layer{number}")
        found = tuple(anomaly(layer.feature(i), backend.now) for i in range(10))
        backend.add_layer(layer, 192, anomalies=found)

    page = client.get("/layers").text

    assert 50 == page.count(">Flag it</button>")
    assert "10 more are on the pages of single layers" in page


def test_the_page_of_an_unflagged_feature_that_stands_out_says_so(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """It is not called uninteresting because nobody watches it."""
    key = channels.feature(7)
    backend.findings[key] = anomaly(key, backend.now)
    page = client.get(f"/f/{key.path}").text

    assert "Nobody watches this feature, and it stands out: 47 of the 64 requests" in page
    assert "59.7 times as often as in its baseline" in page
    assert "q 3.2e\u221222" in page


def test_what_is_watched_below_shows_its_least_value(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Its greatest says nothing about its threshold."""
    low = backend.watch(
        channels.feature(1), State.NORMAL, direction="below", low_threshold=-1.25, least=-7.5
    )
    both = backend.watch(
        channels.feature(2),
        State.NORMAL,
        direction="both",
        low_threshold=-1.25,
        least=-7.5,
        last=9.42,
    )

    assert "Least value</dt><dd>\u22127.50</dd>" in client.get(f"/f/{low.path}").text
    assert "Values from, to</dt><dd>\u22127.5, 9.42</dd>" in client.get(f"/f/{both.path}").text
    assert 'data-name="Least value">\u22127.50' in client.get("/").text


def test_a_layer_shows_the_versions_and_the_faults_of_its_baseline(
    client: httpx.Client, backend: Any, channels: LayerKey, logits: LayerKey
) -> None:
    """How old and how good it is, what was before it, and a field for why it is learned anew."""
    old = backend.add_baseline(channels, "it covers 1 h, not a day", origin="imported")
    new = backend.add_baseline(channels, "20000 requests are few")
    text = client.get("/layers").text
    cautions = re.findall(r'<ul class="cautions">(.*?)</ul>', text)

    assert ["<li>20000 requests are few</li>"] == cautions
    assert 1 == text.count("2 stored versions")
    assert text.index(new.stored.digest) < text.index(old.stored.digest)
    assert "learned, frozen 2026-" in text
    assert "20,000 requests over 22 h 30 min" in text
    assert "imported, frozen" in text
    assert 2 == len(re.findall(r'<input id="reason-\d" name="reason" maxlength="200"', text))


def test_a_baseline_that_is_stored_outlives_its_layer(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """The page of layers does not break over a version of a layer that is gone."""
    backend.add_baseline(channels)
    backend.known_layers.clear()

    assert 200 == client.get("/layers").status_code


def test_a_baseline_that_learns_says_of_how_many(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """Both minima that it has to pass before it freezes, and which half it is in."""
    backend.add_layer(
        channels,
        192,
        baseline_frozen=False,
        baseline_requests=2976,
        baseline_min_requests=10_000,
        baseline_min_seconds=7200.0,
    )

    words = "learning, 2,976 requests of at least 10,000, over at least 2 h"
    first = client.get("/layers").text
    known = backend.known_layers[channels]
    backend.known_layers[channels] = replace(known, baseline_windows=3)

    assert words in first
    assert f"{words}; in its second half" not in first
    assert f"{words}; in its second half" in client.get("/layers").text


def test_a_shifted_layer_is_seen_on_its_page_and_on_its_features(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """How many features moved, that one alert stands for them, and which baseline says so."""
    backend.add_layer(
        channels,
        192,
        screened_features=192,
        significant_features=180,
        shifted=True,
        baseline_id="7d5d9dd43189",
    )
    key = backend.watch(
        channels.feature(3),
        State.FIRING,
        conditions=("never_seen",),
        drifting=True,
        drift_js=0.21,
        drift_wasserstein=0.4,
        slice="route=/v1/eu",
    )

    layers, page = client.get("/layers").text, client.get(f"/f/{key.path}").text

    assert "180 of 192" in layers
    assert "shifted as a whole" in layers
    assert "7d5d9dd43189" in layers
    for words in ("moves as a whole", "never seen", "Drift: its last", "route=/v1/eu"):
        assert words in page


def test_without_a_model_the_list_says_how_to_attach_one(client: httpx.Client) -> None:
    """The very first page is no empty table."""
    assert "Waiting for a model" in client.get("/").text


def test_the_feature_page_tells_everything(client: httpx.Client, spiking: FeatureKey) -> None:
    """Verdict, distribution, quantiles, portrait, audit log and commands are on one page."""
    text = client.get(f"/f/{spiking.path}").text

    assert "Spikes: 8.3 % of the last 640 requests exceed 4.71" in text
    assert "Now: 1,960 values" in text
    assert "exactly zero" in text
    assert "99.9 %" in text
    assert "Synthetic" in text
    assert "6.54\u00d7 the greatest of 20,000 live values (baseline)" in text
    assert "feature firing" in text
    assert f"sidecar feature get lite0@{spiking.layer.revision[:12]}/_blocks.14/channel/33" in text


def test_a_prefix_of_the_revision_finds_the_feature(
    client: httpx.Client, spiking: FeatureKey
) -> None:
    """People paste short revisions; the page names the full one."""
    response = client.get("/f/lite0@3fa1/_blocks.14/channel/33")

    assert 200 == response.status_code
    assert spiking.layer.revision in response.text


def test_pasted_links_unfurl_with_the_portrait(client: httpx.Client, spiking: FeatureKey) -> None:
    """Open Graph tags carry the verdict and absolute addresses under the console's own URL."""
    root = parse(client.get("/f/lite0@3fa1/_blocks.14/channel/33").text)
    tags = {node.get("property"): node.get("content") for node in root.iter("meta")}
    page = f"http://console.example/f/lite0@{spiking.layer.revision[:12]}/_blocks.14/channel/33"

    assert page == tags["og:url"]
    assert f"{page}/portrait.png" == tags["og:image"]
    assert "striped texture: firing" == tags["og:title"]


def test_a_logit_is_called_by_its_class(client: httpx.Client, logits: LayerKey) -> None:
    """Class names stand in for numbers where they are known, and only there."""
    assert "<h1>flamingo</h1>" in client.get(f"/f/{logits.feature(130).path}").text


def test_a_unit_without_a_method_gets_no_form(client: httpx.Client, backend: Any) -> None:
    """Asking for a picture that cannot be made is not offered."""
    layer = backend.add_layer(LayerKey("lm", "ab" * 32, "sae", FeatureKind.LATENT), 10)
    text = client.get(f"/f/{layer.feature(3).path}").text

    assert "Make the portrait" not in text
    assert "No picture of a latent can be made yet" in text


def test_values_that_are_all_broken_leave_a_readable_page(
    client: httpx.Client, backend: Any, channels: LayerKey
) -> None:
    """A feature that gave only NaN has no histogram, but its count of them."""
    key = backend.watch(channels.feature(5), State.UNKNOWN, threshold=math.nan, last=math.nan)
    backend.fill(key, Window.CURRENT, np.full(50, math.nan))
    backend.fill(key, Window.BASELINE, np.array([1.0, 2.0, math.inf]))
    response = client.get(f"/f/{key.path}")

    assert 200 == response.status_code
    assert re.search(
        r'NaN or infinite</th><td class="bad">50</td><td class="bad">1</td>', response.text
    )
    assert "nan" not in re.sub(r"(?i)nan or infinite", "", response.text).lower().replace(
        "banana", ""
    )


def test_a_feature_that_does_not_exist_is_a_page_not_found(
    client: httpx.Client, channels: LayerKey
) -> None:
    """The answer names the code and the range of indices."""
    response = client.get("/f/lite0@3fa1/_blocks.14/channel/192")

    assert 404 == response.status_code
    assert "SC403" in response.text
    assert "use 0 to 191" in response.text


def test_a_running_job_shows_its_step_and_refreshes_without_script(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Readers without JavaScript see the progress anew every few seconds."""
    job = backend.add_job(spiking, JobState.RUNNING, started=backend.now - 10, step=64, steps=128)
    backend.show(job.id, b"x", 64)
    text = client.get(f"/jobs/{job.id}").text

    assert '<noscript><meta http-equiv="refresh" content="3"/></noscript>' in text
    assert '<span data-step="yes">64</span>' in text
    assert "about 10 s left" in text
    assert f"/api/v1/jobs/{job.id}/preview.png?v=1" in text


def test_a_failed_job_names_cause_and_cure(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """What went wrong comes with what to do, not with a trace."""
    job = backend.add_job(
        spiking, JobState.FAILED, error_code="SC802", error="digest 77ab is not 3fa1"
    )
    text = client.get(f"/jobs/{job.id}").text

    assert "digest 77ab is not 3fa1" in text
    assert "SC802" in text
    assert "Point models.weights at the weights the server loaded" in text


def test_a_finished_job_shows_its_picture_and_no_cancel_button(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """The result takes the place of the progress."""
    portrait = backend.portraits(spiking)[0]
    job = backend.add_job(spiking, JobState.DONE, portraits=(portrait,), from_cache=True)
    text = client.get(f"/jobs/{job.id}").text

    assert f"/api/v1/artifacts/{portrait.picture_digest}" in text
    assert "Answered from the store" in text
    assert "Cancel the job" not in text


def test_a_job_outlives_its_layer(client: httpx.Client, backend: Any, spiking: FeatureKey) -> None:
    """Jobs of a model that is no longer registered still have a page."""
    job = backend.add_job(spiking, JobState.FAILED, error_code="SC806", error="it died")
    backend.known_layers.clear()
    backend.watched.clear()

    assert 200 == client.get(f"/jobs/{job.id}").status_code
    assert 200 == client.get("/jobs").status_code


def test_jobs_are_paged_by_the_last_one_seen(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Older jobs are one link away, and none is shown twice."""
    for _ in range(45):
        backend.add_job(spiking, JobState.DONE)
    first = client.get("/jobs").text
    older = re.search(r'href="(/jobs\?before=[^"]+)"', first)
    second = client.get(older[1]).text

    shown = [set(re.findall(r"01K\d{23}", page)) for page in (first, second)]
    assert 45 == len(shown[0] | shown[1])
    assert 40 == len(shown[0])
    assert not shown[0] & (shown[1] - {older[1].rpartition("=")[2]})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (JobQueueFull("full"), 429),
        (CorruptState("the disk says no"), 503),
        (ValueError("secret"), 500),
    ],
)
def test_what_the_daemon_cannot_do_is_told_with_the_right_status(
    client: httpx.Client, backend: Any, error: Exception, status: int
) -> None:
    """Overload, a broken disk and a bug have their own statuses; a bug shows no inside."""
    backend.failing = error
    response = client.get("/")

    assert status == response.status_code
    assert "secret" not in response.text
    assert "default-src 'self'" in response.headers["content-security-policy"]
    parse(response.text)


def test_pages_are_never_cached(client: httpx.Client, spiking: FeatureKey) -> None:
    """A page says how things are now."""
    assert "no-store" == client.get("/").headers["cache-control"]


def test_what_speaks_against_a_rate_is_on_its_page(
    client: httpx.Client, backend: Any, spiking: FeatureKey
) -> None:
    """Whoever trusts its silence must know from what traffic it learned."""
    backend.watched[spiking] = replace(backend.watched[spiking], caution="learned in a spike")

    page = client.get(f"/f/{spiking.path}").text
    answer = client.get(f"/api/v1/features/{spiking.path}").json()

    assert "Caution: learned in a spike." in page
    assert "learned in a spike" == answer["caution"]


def test_one_layer_is_a_layer(client: httpx.Client, backend: Any, channels: LayerKey) -> None:
    """Numbers and their nouns agree."""
    layer = backend.known_layers[channels]
    backend.known_layers = {channels: layer}
    features = layer.width

    assert f"{features} features in 1 layer are measured" in client.get("/").text

"""How stages are followed: progress, deadlines, and what is said when one fails."""

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo import apis, stages
from demo.apis import Unavailable
from demo.display import Display
from demo.layout import Site
from demo.processes import ChildEnded, Children
from demo.stages import Follower, Look, StageFailed
from demo.story import FLAGGED

pytestmark = pytest.mark.service

REVISION = "3fb5e7531ff6"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


class Follow:
    """A follower that writes to memory."""

    def __init__(self, folder: Path, *, terminal: bool = False) -> None:
        self.text = io.StringIO()
        console = Console(file=self.text, force_terminal=terminal, width=120)
        self.display = Display(console)
        self.children = Children(folder, folder / "logs", os.environ)
        self.follower = Follower(self.display, self.children)


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    """Return a follower whose children end with the test."""
    found = Follow(tmp_path)
    with found.children:
        yield found


@contextmanager
def answering(documents: dict[str, Any]) -> Iterator[str]:
    """Serve JSON documents, or bytes, by path; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = documents.get(self.path)
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _site(folder: Path, console: str) -> Site:
    return Site(folder, "", (), "", console, "", "", console, console)


def _job(state: str, **more: Any) -> dict[str, Any]:
    key = f"lite0@{REVISION}/{FLAGGED[0].layer}/{FLAGGED[0].kind}/{FLAGGED[0].index}"
    picture = {"feature": key, "picture": "/picture", "manifest": "/manifest"}
    return {
        "id": "J1",
        "state": state,
        "features": [key],
        "origin": "alert",
        "step": 3,
        "steps": 128,
        "started": 10.0,
        "ended": 30.0,
        "error": None,
        "page": "/jobs/J1",
        "portraits": [picture] if state == "done" else [],
        **more,
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_ends_when_it_is_done(tmp_path: Path, *, terminal: bool) -> None:
    """It is looked at until it says so, also past answers that never came, and its line stays."""
    follow = Follow(tmp_path, terminal=terminal)
    looks = iter(
        [Look(done=False, detail="half", share=0.5), None, Look(done=True, detail="all 17")]
    )

    def look() -> Look:
        found = next(looks)
        if found is None:
            raise Unavailable("connection refused")
        return found

    with follow.display:
        follow.follower.follow("Layers are registered", 10, look, "the console")

    assert "Layers are registered" in follow.text.getvalue()
    assert "all 17" in follow.text.getvalue()


def test_a_stage_that_is_late_says_what_was_seen_and_where_to_look(follow: Follow) -> None:
    """The message names stage, deadline, the last look and the place for more."""
    message = r"Alerts fire: not within 0 s\. Last seen: 1 of 2\. Look at /var/log/x\."
    with pytest.raises(StageFailed, match=message):
        follow.follower.follow(
            "Alerts fire", 0.3, lambda: Look(done=False, detail="1 of 2"), "/var/log/x"
        )


def test_a_dead_child_ends_the_stage_before_its_deadline(follow: Follow) -> None:
    """Nobody waits a minute for a server that has crashed."""
    child = follow.children.start("server", [sys.executable, "-c", "raise SystemExit(3)"])
    child.process.wait(20)

    with pytest.raises(ChildEnded, match="server ended with exit status 3"):
        follow.follower.follow("Server answers", 60, lambda: Look(done=False, detail=""), "the log")


def test_a_portrait_is_kept_with_its_manifest(follow: Follow, tmp_path: Path) -> None:
    """Picture and manifest are copied through the console's relative links."""
    documents = {
        "/api/v1/jobs": {"jobs": [_job("done")]},
        "/picture": PNG,
        "/manifest": {"seed": 0},
    }
    with answering(documents) as console:
        path = stages.wait_portrait(follow.follower, _site(tmp_path, console), FLAGGED[0])

    assert tmp_path / "portrait-animal-face.png" == path
    assert PNG == path.read_bytes()
    assert {"seed": 0} == json.loads(path.with_suffix(".json").read_text())


def test_a_failed_job_is_told_at_once(follow: Follow, tmp_path: Path) -> None:
    """The job's own words and its page are in the message."""
    job = _job("failed", error="the worker ended")
    with (
        answering({"/api/v1/jobs": {"jobs": [job]}}) as console,
        pytest.raises(StageFailed, match=r"failed: the worker ended See http://.*/jobs/J1"),
    ):
        stages.wait_portrait(follow.follower, _site(tmp_path, console), FLAGGED[0])


def test_a_picture_that_is_none_is_refused(follow: Follow, tmp_path: Path) -> None:
    """An error page must not be kept as a portrait."""
    documents = {"/api/v1/jobs": {"jobs": [_job("done")]}, "/picture": b"<html>"}
    with answering(documents) as console, pytest.raises(StageFailed, match="no PNG"):
        stages.wait_portrait(follow.follower, _site(tmp_path, console), FLAGGED[0])

    assert [] == list(tmp_path.glob("*.png"))


def test_an_alarm_in_everyday_traffic_fails_the_demo(follow: Follow, tmp_path: Path) -> None:
    """A false alarm is a failure with the detector's own reason, not a success."""
    loud = {"state": "firing", "explanation": "8 of 40 requests exceed"}
    with (
        answering({"/api/v1/features?flagged=true": {"features": [loud]}}) as console,
        pytest.raises(StageFailed, match="8 of 40"),
    ):
        stages.stay_quiet(follow.follower, _site(tmp_path, console))


def test_a_quiet_feature_that_fires_fails_the_demo(follow: Follow, tmp_path: Path) -> None:
    """The story holds only if the cats drive what they should, and nothing else."""
    quiet = next(one for one in FLAGGED if not one.spikes)
    key = f"lite0@{REVISION}/{quiet.layer}/{quiet.kind}/{quiet.index}"
    found = {"features": [{"key": key, "state": "firing"}]}
    with (
        answering({"/api/v1/features?flagged=true": found}) as console,
        pytest.raises(StageFailed, match=quiet.name),
    ):
        stages.check_quiet_features(follow.follower, _site(tmp_path, console))


def test_jobs_that_no_alert_asked_for_do_not_count() -> None:
    """Only an alert's job on the very feature is the story's."""
    mine = _job("queued")
    by_hand = _job("queued", origin="cli")
    other = _job("queued", features=[mine["features"][0] + "1"])

    assert mine is stages.job_of(FLAGGED[0], [by_hand, other, mine])
    assert stages.job_of(FLAGGED[0], [by_hand, other]) is None


def test_only_spike_alerts_count() -> None:
    """Other alerts of Prometheus are nobody's spike, and a spike is matched by layer, kind, index."""
    labels = {"layer": "_fc", "kind": "logit", "feature": "282"}
    alerts = [
        {"labels": {"alertname": apis.ALERT, **labels}, "state": "firing", "annotations": {}},
        {"labels": {"alertname": "SidecarDown"}, "state": "firing", "annotations": {}},
    ]
    with answering({"/api/v1/alerts": {"data": {"alerts": alerts}}}) as url:
        spikes = apis.prometheus_spikes(url)

    assert 1 == len(spikes)
    assert [False, True] == [spikes[0].about(one) for one in FLAGGED[:2]]


def test_an_address_that_does_not_answer_is_unavailable() -> None:
    """Nobody there, another status and no JSON are one error, told with the address."""
    with answering({"/text": b"not json"}) as url:
        for path in ("/text", "/absent"):
            with pytest.raises(Unavailable, match=path):
                apis.fetch_json(f"{url}{path}")
    with pytest.raises(Unavailable, match=url):
        apis.fetch(url)

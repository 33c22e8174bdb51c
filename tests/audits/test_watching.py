"""What an audit knows of hooks, flags and failures: a daemon of which nothing runs, fed by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.audits import NightState, Outcome
from sidecar.daemon import Daemon
from sidecar.features import Capture, FeatureKind, LayerKey, LayerSample, Request, View
from sidecar.jobs import Job, JobRequest, JobState, Portrait
from sidecar.monitor import Event
from sidecar.testing import FakeClock
from tests.audits.conftest import DAY, HOUR, built

pytestmark = pytest.mark.service

DIGEST = "ab" * 32
WIDTH = 12


def sample(daemon: Daemon, clock: FakeClock, revision: str = DIGEST, layer: str = "2") -> LayerKey:
    """Let a hook announce a layer and send a few requests."""
    key = LayerKey("tiny", revision, layer, FeatureKind.CHANNEL, View.MAX)
    daemon.monitor.register(key, WIDTH, Capture(), clock())
    values = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)
    requests = tuple(Request(f"r{number}") for number in range(20))
    daemon.monitor.apply(LayerSample(key, values, np.arange(20, dtype=np.int32), requests), clock())
    return key


def advance(daemon: Daemon, ticks: int = 2) -> None:
    """Let the audits take some steps."""
    for _ in range(ticks):
        daemon.audits.tick()


def fail(daemon: Daemon, clock: FakeClock, code: str) -> list[str]:
    """End every waiting job with a code, and return whose revision each asked for."""
    asked = []
    while (job := daemon.queue.claim("test", clock())) is not None:
        asked.append(job.request.targets[0].feature.layer.revision)
        daemon.queue.fail(job.id, "test", code, "so it is", clock(), retry=False)
    return asked


def complete(daemon: Daemon, clock: FakeClock) -> list[str]:
    """End the next waiting job with a picture and a manifest, and return their digests."""
    job = daemon.queue.claim("test", clock())
    assert job is not None
    stored = [daemon.storage.artifacts.put(text, "text/plain").digest for text in (b"p", b"m")]
    feature = str(job.request.targets[0].feature)
    made = Portrait(feature, "key", stored[0], stored[1], clock())
    daemon.queue.complete(job.id, "test", [made], False, clock())  # noqa: FBT003 - not cached
    return stored


def check(daemon: Daemon, name: str) -> tuple[str, str]:
    """Return what came of a check of the newest judged night, and why."""
    night = daemon.audits.status("nightly").last
    assert night is not None
    found = next(one for one in night.checks if one.name == name)
    return found.outcome.value, found.reason


def test_jobs_ask_for_the_served_revision_and_then_for_the_configured_one(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Where the worker finds other weights; under a name that changes with the model's files."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        first = fail(daemon, clock, "SC802")
        assert not daemon.audits.status("nightly").last
        advance(daemon)
        second = fail(daemon, clock, "SC801")
        advance(daemon)

        assert [DIGEST] * 2 == first
        assert 2 == len(second)
        assert all(one.startswith("source-") for one in second)
        (night,) = daemon.audits.status("nightly").nights
        assert NightState.FAILED == night.state


def test_one_refused_job_is_enough_to_ask_for_the_configured_revision(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """The other may have been answered from the store, which has pictures of what is served."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        complete(daemon, clock)
        assert [DIGEST] == fail(daemon, clock, "SC802")
        advance(daemon)

        again = fail(daemon, clock, "SC801")
        assert 2 == len(again)
        assert all(one.startswith("source-") for one in again)


def test_two_revisions_side_by_side_are_none_to_ask_for(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """One that was replaced long ago is no second one."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock, "cd" * 32)
        clock.advance(DAY)
        sample(daemon, clock)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        assert [DIGEST] * 2 == fail(daemon, clock, "SC801")
        advance(daemon)

        clock.advance(60)
        sample(daemon, clock, "cd" * 32)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        assert all(one.startswith("source-") for one in fail(daemon, clock, "SC801"))


def test_a_feature_that_ends_a_job_of_several_is_asked_for_alone(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """The report then names the one, and has portraits of the others."""
    settings["flags"] = [{"feature": f"tiny/2/channel/{unit}"} for unit in (5, 7)]
    settings["audits"][0] |= {"against": None, "fail_on": ""}
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        assert 1 == len(fail(daemon, clock, "SC803"))
        advance(daemon)
        waiting = [job for job in daemon.queue.list(10) if job.state is JobState.QUEUED]
        assert [1, 1] == [len(job.request.targets) for job in waiting]
        fail(daemon, clock, "SC803")
        advance(daemon)

        outcome, reason = check(daemon, "complete")
        assert Outcome.FAILED == outcome
        assert "portraits-0-0 failed" in reason
        assert "portraits-0-1 failed" in reason
        assert "portraits-0 failed" not in reason


def test_a_layer_that_is_not_there_ends_the_comparison_of_no_other(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Each layer is compared alone then; one that is alone already is not asked for again."""
    settings["flags"] += [{"feature": "tiny/away/channel/1"}, {"feature": "tiny/2/channel/6"}]
    settings["audits"][0]["portraits"] = False
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        assert 1 == len(fail(daemon, clock, "SC402"))
        advance(daemon)
        waiting = [job for job in daemon.queue.list(10) if job.state is JobState.QUEUED]
        asked = [[str(t.feature).partition("/")[2] for t in job.request.targets] for job in waiting]
        fail(daemon, clock, "SC402")
        advance(daemon)

        assert [["2/channel/5", "2/channel/6"], ["away/channel/1"]] == sorted(asked)
        assert daemon.audits.status("nightly").last


def test_what_hooks_say_is_checked(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """A flag without a baseline, one that fits nothing, and one whose layer fell silent."""
    settings["flags"] += [{"feature": "tiny/2/channel/99"}]
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        fail(daemon, clock, "SC801")
        advance(daemon)
        outcome, reason = check(daemon, "live")
        assert Outcome.FAILED == outcome
        assert "2 of 2 flagged features: 2/channel/5 has no baseline yet" in reason
        assert "tiny/2/channel/99 fits no feature" in reason

        daemon.operations.freeze("tiny", "", "2")
        clock.advance(60)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        fail(daemon, clock, "SC801")
        advance(daemon)
        assert "1 of 2 flagged features: tiny/2/channel/99 fits" in check(daemon, "live")[1]

        clock.advance(2 * DAY)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        fail(daemon, clock, "SC801")
        advance(daemon)
        assert "2/channel/5 is not sampled any more" in check(daemon, "live")[1]


def test_what_fired_since_the_last_night_is_pictured_first(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Once; then its turn is that of any flag."""
    settings["flags"] = [{"feature": f"tiny/2/channel/{unit}"} for unit in range(6)]
    settings["audits"][0] |= {"against": None, "fail_on": "", "features": 2}
    with built(tmp_path, settings, clock) as daemon:
        event = Event(clock(), "feature_firing", f"tiny@{DIGEST}/2/channel/5", "it fires")
        daemon.operations.record((event,))
        daemon.operations.flush_events()
        asked = []
        for _ in range(3):
            daemon.audits.start("nightly", "cli")
            advance(daemon)
            job = daemon.queue.list(1)[0]
            asked.append([one.feature.index for one in job.request.targets])
            fail(daemon, clock, "SC801")
            advance(daemon)
            clock.advance(DAY)

        assert [[5, 0], [1, 2], [3, 4]] == asked


def test_a_portrait_that_was_done_is_held_before_the_night_is_judged(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Other jobs of the night may wait for hours, while room is made in the store."""
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        stored = complete(daemon, clock)
        advance(daemon)

        assert set(stored) <= set(daemon.storage.references.digests())
        assert not daemon.audits.status("nightly").last


def test_nights_of_another_model_say_nothing_of_this_one(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """An audit that is given another model begins anew: what it pictured of the old one does not count."""
    settings["audits"][0] |= {"against": None, "fail_on": "", "features": 2}
    asked = []
    for model in ("tiny", "tiny", "twin"):
        settings["flags"] = [{"feature": f"{model}/2/channel/{unit}"} for unit in range(4)]
        settings["audits"][0]["model"] = model
        with built(tmp_path, settings, clock) as daemon:
            daemon.audits.start("nightly", "cli")
            advance(daemon)
            targets = daemon.queue.list(1)[0].request.targets
            asked.append([one.feature.index for one in targets])
            fail(daemon, clock, "SC801")
            advance(daemon)
            assert not daemon.audits.status("nightly").running
        clock.advance(HOUR)

    assert [[0, 1], [2, 3], [0, 1]] == asked


def test_what_was_sampled_long_ago_is_not_what_is_served(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Nor is it what jobs ask for."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        clock.advance(2 * DAY)
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        asked = fail(daemon, clock, "SC801")
        advance(daemon)
        night = daemon.audits.status("nightly").last
        assert night is not None
        data = json.loads(daemon.audits.report("nightly", night.id, "json"))

        assert all(one.startswith("source-") for one in asked)
        assert not data["served"]["lately"]
        assert DIGEST in data["served"]["revisions"]


def test_a_daemon_that_was_down_for_days_calls_no_layer_silent_at_once(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Hooks had nobody to send to; an hour later it does."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        daemon.operations.freeze("tiny", "", "2")
        daemon.storage.snapshots.save(daemon.monitor.encode())
    clock.advance(3 * DAY)

    with built(tmp_path, settings, clock) as daemon:
        found = []
        for _ in range(2):
            daemon.audits.start("nightly", "cli")
            advance(daemon)
            fail(daemon, clock, "SC801")
            advance(daemon)
            found.append(check(daemon, "live"))
            clock.advance(HOUR)

        assert [Outcome.PASSED, Outcome.FAILED] == [outcome for outcome, _ in found]
        assert "2/channel/5 is not sampled any more" in found[1][1]


def test_a_digest_that_fits_nothing_configured_ends_the_night(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock
) -> None:
    """Such as the other model's: asking for what is configured again would find the same for ever."""
    with built(tmp_path, settings, clock) as daemon:
        sample(daemon, clock)
        daemon.audits.start("nightly", "cli")
        for _ in range(3):
            advance(daemon)
            fail(daemon, clock, "SC802")

        assert NightState.FAILED == daemon.audits.status("nightly").nights[0].state
        assert "SC802" in check(daemon, "complete")[1]


def test_a_daemon_that_is_killed_asks_for_each_feature_that_is_still_to_be_asked_for(
    tmp_path: Path, settings: dict[str, Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of those that take a failed job's place."""
    settings["flags"] = [{"feature": f"tiny/2/channel/{unit}"} for unit in (5, 6, 7)]
    settings["audits"][0] |= {"against": None, "fail_on": ""}
    with built(tmp_path, settings, clock) as daemon:
        daemon.audits.start("nightly", "cli")
        advance(daemon)
        fail(daemon, clock, "SC803")
        submit, asked = daemon.queue.submit, []

        def die_at_the_second(request: JobRequest, now: float) -> Job:
            asked.append(request)
            if len(asked) > 1:
                raise RuntimeError
            return submit(request, now)

        monkeypatch.setattr(daemon.queue, "submit", die_at_the_second)
        advance(daemon)
    with built(tmp_path, settings, clock) as daemon:
        advance(daemon)
        waiting = [job for job in daemon.queue.list(9) if job.state is JobState.QUEUED]

        assert [7, 6, 5] == [job.request.targets[0].feature.index for job in waiting]

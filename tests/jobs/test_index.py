"""The list of made pictures, and what becomes of them."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.jobs import ArtifactIndex, Cause, JobQueue, JobState, MadePicture
from sidecar.recipes import Maximisation
from sidecar.store import ArtifactStore, OwnerKind, References, RemoteShelf
from tests.jobs.bench import Bench, request, wait_until
from tests.store.objects import object_server

pytestmark = pytest.mark.service


def ran(bench: Bench, *units: int, seed: int = 0, **values: object) -> MadePicture:
    """Have a picture made and return how it is listed."""
    job = bench.ended(bench.submit("work", *units, recipe=Maximisation(seed=seed), **values))
    assert JobState.DONE == job.state, job.error
    found = ArtifactIndex(bench.database).find(job.portraits[0].manifest_digest)
    assert found is not None
    return found


def test_made_pictures_are_listed_page_by_page(bench: Bench) -> None:
    """Newest first, each once, whatever the size of a page."""
    bench.runner().start()
    made = [ran(bench, unit) for unit in range(5)]
    index = ArtifactIndex(bench.database)

    first = index.list(limit=3)
    rest = index.list(limit=3, before=first[-1].manifest_digest)

    assert made[::-1] == [*first, *rest]
    assert [made[2]] == list(index.list(feature=made[2].feature))
    assert [] == list(index.list(model="other"))


def test_pictures_are_found_by_verdict_and_job(bench: Bench) -> None:
    """Each filter alone, and both together."""
    bench.runner().start()
    made = [ran(bench, unit) for unit in range(3)]
    index = ArtifactIndex(bench.database)
    with bench.database.transaction() as cursor:
        cursor.execute(
            "UPDATE artifact_index SET verdict = 'weak' WHERE job_id IN (?, ?)",
            (made[0].job_id, made[1].job_id),
        )

    assert made[1::-1] == [replace(m, verdict="") for m in index.list(verdict="weak")]
    assert [made[2]] == list(index.list(job_id=made[2].job_id))
    assert [] == list(index.list(job_id=made[2].job_id, verdict="weak"))


def test_pictures_of_an_earlier_release_are_listed(bench: Bench) -> None:
    """A database without the list has one made from its jobs and answers."""
    bench.runner().start()
    made = ran(bench, 1)
    with bench.database.transaction() as cursor:
        cursor.execute("DROP INDEX artifact_index_by_picture")
        cursor.execute("DROP INDEX artifact_index_by_feature")
        cursor.execute("DROP INDEX artifact_index_by_job")
        cursor.execute("UPDATE job_portraits SET verdict = 'weak'")
        cursor.execute("DROP TABLE artifact_index")
        cursor.execute("DELETE FROM migrations WHERE component = 'artifact_index'")

    (found,) = ArtifactIndex(bench.database).list()

    assert (made.manifest_digest, made.model, made.revision, made.job_id) == (
        found.manifest_digest,
        found.model,
        found.revision,
        found.job_id,
    )
    assert ("activation_maximisation", "weak") == (found.method, found.verdict)


def test_a_reproduction_is_made_anew_and_answers_nobody(bench: Bench) -> None:
    """It runs although the answer is there, is listed, and leaves the answer as it was."""
    bench.runner().start()
    made = ran(bench, 1)
    answer = bench.queue.portrait(made.content_key)

    again = bench.ended(bench.submit("work", 1, cause=Cause(reproduces=made.manifest_digest)))

    assert (JobState.DONE, False) == (again.state, again.from_cache)
    assert answer == bench.queue.portrait(made.content_key)
    assert bench.ended(bench.submit("work", 1)).from_cache


def test_what_an_alert_shows_stays(bench: Bench) -> None:
    """Newer pictures of its feature do not push the alert's out; once released it goes."""
    bench.artifacts = ArtifactStore(bench.root / "small", 600)
    runner = bench.runner()
    runner.start()
    held = ran(bench, 1, cause=Cause(alert="fp", alert_started=3.0))
    references = References(bench.database)
    owners = {(one.kind, one.owner, one.note) for one in references.of()}

    for seed in range(1, 8):
        ran(bench, 1, seed=seed)

    assert {(OwnerKind.ALERT, "fp:3.000", held.feature)} == owners
    assert bench.artifacts.has(held.picture_digest)
    assert bench.artifacts.has(held.manifest_digest)
    assert any("alert fp:3.000" in one.why for one in runner.fates())
    references.release(OwnerKind.ALERT, "fp:3.000")
    for seed in range(8, 12):
        ran(bench, 1, seed=seed)
    assert not bench.artifacts.has(held.picture_digest)


def test_age_takes_what_nobody_wants_and_says_so_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run names what a collection then removes, and why the rest stays."""
    runner = bench.runner()
    runner.start()
    old, new = (ran(bench, 1, seed=seed) for seed in (1, 2))
    monkeypatch.setattr(runner, "_max_age_seconds", 10.0)
    monkeypatch.setattr(runner, "_clock", lambda: time.time() + 60)

    said = {fate.digest: fate for fate in runner.fates()}
    removed = runner.collect()

    assert {old.picture_digest, old.manifest_digest} == {d for d, f in said.items() if f.reason}
    assert "max_age_days" in said[old.picture_digest].why
    assert "the newest answer of its feature" == said[new.picture_digest].why
    assert 2 == removed
    assert ArtifactIndex(bench.database).find(old.picture_digest) is None


def test_an_outage_of_the_store_fails_the_attempt_and_not_the_job(
    bench: Bench, tmp_path: Path
) -> None:
    """The job waits for its next attempt, says why, and is done once the store answers."""
    # With attempts enough that they are not used up before somebody looks.
    bench.queue = JobQueue(bench.database, queue_limit=4, lease_seconds=30.0, attempt_limit=10)
    with object_server() as server:
        bench.artifacts = ArtifactStore(
            RemoteShelf(server.url, tmp_path / "cache", 1 << 20, pause=lambda _: None), 1 << 20
        )
        server.broken = 1 << 30
        job = bench.submit("work", 1)
        bench.runner().start()
        wait_until(
            lambda: "objects://" in bench.queue.get(job.id).message,
            "the job says that its store does not answer",
        )
        server.broken = 0
        done = bench.ended(job)

        assert JobState.DONE == done.state, done.error
        assert done.attempts > 1
        assert bench.artifacts.has(done.portraits[0].picture_digest)


def test_requests_without_a_cause_are_still_read() -> None:
    """What the release before stored has no cause."""
    import json  # noqa: PLC0415 - only here

    from sidecar.jobs.spec import decode_request, encode_request  # noqa: PLC0415 - as above

    document = json.loads(encode_request(request("work", 1)))
    del document["cause"]

    assert Cause() == decode_request(json.dumps(document)).cause

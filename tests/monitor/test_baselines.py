"""Baselines with versions, over real daemons: stored, exported, imported, shared, never mixed up."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from sidecar.errors import BaselineMismatch, InvalidInput, UnknownLayer
from sidecar.features import Capture, FeatureKind, LayerKey, LayerSample, Request, View
from sidecar.monitor import BaselineVersion, Window
from sidecar.monitor.baselines import cautions
from sidecar.store import BaselineFacts, pack_baseline, unpack_baseline
from sidecar.testing import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.service

LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
WIDTH = 4
CAPTURE = Capture(server="test", dtype="float32")
SETTINGS: dict[str, Any] = {
    "models": [{"name": "m"}],
    "flags": [{"feature": "m/conv/channel/1"}],
    "statistics": {"warmup_rows": 16},
}


def feed(running: RunningDaemon, seed: int, rows: int = 400, layer: LayerKey = LAYER) -> None:
    """Register a layer and send normal activations, one request a row."""
    running.daemon.monitor.register(layer, WIDTH, CAPTURE, 1.0)
    values = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    requests = tuple(Request(str(i)) for i in range(rows))
    sample = LayerSample(layer, values, np.arange(rows, dtype=np.int32), requests)
    running.daemon.monitor.apply(sample, 2.0)


def learned(running: RunningDaemon, seed: int = 0) -> BaselineVersion:
    """Freeze a baseline and return it once it is stored."""
    feed(running, seed)
    running.daemon.operations.freeze("m", "", "")
    return stored(running)[0]


def stored(running: RunningDaemon) -> Sequence[BaselineVersion]:
    """Return the versions once one of them is in force."""
    operations = running.daemon.operations

    def found() -> Sequence[BaselineVersion]:
        versions = operations.baselines("m", "", "")
        return versions if any(one.in_force for one in versions) else []

    return wait_until(found)


def content(running: RunningDaemon, version: BaselineVersion) -> bytes:
    """Return the file of a version."""
    return running.daemon.operations.artifact(version.stored.digest)[0].read_bytes()


def bins(running: RunningDaemon) -> list[list[int]]:
    """Return the baseline's counts of every feature."""
    monitor = running.daemon.monitor
    found = [monitor.distribution(LAYER.feature(i), Window.BASELINE) for i in range(WIDTH)]
    return [one.counts.tolist() for one in found]


def events(running: RunningDaemon, what: str) -> list[str]:
    """Return the details of the layer's audit entries of one kind, newest first."""
    found = running.daemon.operations.events(LAYER.feature(1), 50)
    return [event.detail for event in found if event.what == what]


def test_a_frozen_baseline_is_stored_with_what_it_was_learned_on(tmp_path: Path) -> None:
    """Its version says requests, time, capture and origin, and the page says which is in force."""
    with running_daemon(tmp_path, SETTINGS) as running:
        version = learned(running)
        facts, _ = unpack_baseline(content(running, version))

    assert version.in_force
    assert "by command" == version.stored.origin
    assert (LAYER, CAPTURE, WIDTH, 400) == (
        facts.layer,
        facts.capture,
        facts.width,
        facts.requests,
    )
    assert facts.started < facts.frozen


def test_replicas_share_a_baseline_by_file(tmp_path: Path) -> None:
    """What one daemon exported another compares with: same digest, same counts, same thresholds."""
    with (
        running_daemon(tmp_path / "a", SETTINGS) as first,
        running_daemon(tmp_path / "b", SETTINGS) as second,
    ):
        version = learned(first)
        feed(second, seed=99)
        imported = second.daemon.operations.import_baseline(content(first, version))
        thresholds = [
            one.daemon.monitor.feature(LAYER.feature(1)).threshold for one in (first, second)
        ]

        assert version.stored.digest == imported.stored.digest
        assert imported.in_force
        assert bins(first) == bins(second)
        assert thresholds[0] == thresholds[1]
        wait_until(lambda: events(second, "baseline_imported"))


def test_a_folder_of_baselines_is_taken_on_by_itself(tmp_path: Path) -> None:
    """A replica that starts with the folder never learns; one line of the audit log says so."""
    shared = tmp_path / "shared"
    shared.mkdir()
    with running_daemon(tmp_path / "a", SETTINGS) as first:
        version = learned(first)
        (shared / "conv.baseline").write_bytes(content(first, version))
        (shared / "broken.baseline").write_bytes(b"half of it")
    settings = SETTINGS | {"store": {"shared_baselines": str(shared)}}
    with running_daemon(tmp_path / "b", settings) as second:
        feed(second, seed=5)
        (found,) = stored(second)
        wait_until(lambda: events(second, "baseline_imported"))

        assert (version.stored.digest, "imported") == (found.stored.digest, found.stored.origin)
        assert "conv.baseline" in events(second, "baseline_imported")[0]


def test_who_relearns_is_not_given_the_shared_baseline_again(tmp_path: Path) -> None:
    """The wish outlives a restart, and the reason stands in the audit log."""
    shared = tmp_path / "shared"
    shared.mkdir()
    settings = SETTINGS | {"store": {"shared_baselines": str(shared)}}
    with running_daemon(tmp_path / "a", settings) as running:
        version = learned(running)
        (shared / "conv.baseline").write_bytes(content(running, version))
        running.daemon.operations.reset("m", "", "", reason="the camera was replaced")
        wait_until(lambda: events(running, "baseline_relearned"))
        said = events(running, "baseline_relearned")[0]
    with running_daemon(tmp_path / "a", settings) as running:
        feed(running, seed=6)
        again = learned(running, seed=7)

    assert version.stored.digest[:12] in said
    assert "the camera was replaced" in said
    assert "by command" == again.stored.origin


def test_an_entry_of_an_earlier_build_still_shows(tmp_path: Path) -> None:
    """The audit log keeps the name under which learning anew was told then."""
    with running_daemon(tmp_path, SETTINGS) as running:
        feed(running, seed=0)
        catalogue = running.daemon.storage.catalogue
        catalogue.add_event(1.0, "baseline_reset", str(LAYER), "400 requests forgotten")

        assert ["400 requests forgotten"] == events(running, "baseline_reset")


def test_the_digest_survives_a_restart(tmp_path: Path) -> None:
    """Nothing is stored twice, and what is in force is still known."""
    with running_daemon(tmp_path, SETTINGS) as running:
        before = learned(running)
    with running_daemon(tmp_path, SETTINGS) as running:
        after = stored(running)

    assert (before,) == tuple(after)


def test_a_baseline_of_another_revision_is_refused(tmp_path: Path) -> None:
    """A new revision learns its own; the message says which revisions there are."""
    other = replace(LAYER, revision="b" * 64)
    with running_daemon(tmp_path, SETTINGS) as running:
        file = content(running, learned(running))
        facts, statistics = unpack_baseline(file)
        foreign = pack_baseline(replace(facts, layer=other), statistics)
        with pytest.raises(UnknownLayer, match=r"known at revision aaaaaaaaaaaa.* never used"):
            running.daemon.operations.import_baseline(foreign)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capture": replace(CAPTURE, dtype="float16")}, "dtype 'float16' there and 'float32'"),
        ({"capture": replace(CAPTURE, compiled=True)}, "compiled True there and False here"),
    ],
)
def test_a_baseline_measured_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Series of different captures are never compared."""
    with running_daemon(tmp_path, SETTINGS) as running:
        before = learned(running)
        facts, statistics = unpack_baseline(content(running, before))
        with pytest.raises(BaselineMismatch, match=message):
            running.daemon.operations.import_baseline(
                pack_baseline(replace(facts, **change), statistics)
            )

        assert (before,) == tuple(stored(running))


def test_statistics_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    """A whole file around garbage is refused, and the baseline in force stays."""
    with running_daemon(tmp_path, SETTINGS) as running:
        before = learned(running)
        counts = bins(running)
        facts, _ = unpack_baseline(content(running, before))
        with pytest.raises(InvalidInput):
            running.daemon.operations.import_baseline(pack_baseline(facts, b"garbage"))

        assert counts == bins(running)
        assert before.stored.digest == next(
            one.stored.digest for one in stored(running) if one.in_force
        )


def test_a_reason_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """It would stand in the audit log for ever."""
    with running_daemon(tmp_path, SETTINGS) as running:
        feed(running, seed=1)
        with pytest.raises(InvalidInput, match="reason"):
            running.daemon.operations.reset("m", "", "", reason="a\x00b")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("requests", "hours", "windows", "said"),
    [
        (100_000, 30.0, 5000, []),
        (9_000, 30.0, 5000, ["few for the 99.9 % quantile: use at least 10000"]),
        (100_000, 1.0, 180, ["covers 1 h, not a day"]),
        (100_000, 30.0, 0, ["derived and not counted"]),
        (10, 0.0, 0, ["few for", "covers 0 h", "derived"]),
    ],
)
def test_a_poor_baseline_is_called_one(
    requests: int, hours: float, windows: int, said: list[str]
) -> None:
    """Each weakness is a sentence, and a good baseline has none."""
    facts = BaselineFacts(LAYER, CAPTURE, WIDTH, requests, windows, 0.0, hours * 3600)

    found = cautions(facts, 0.999)

    assert len(said) == len(found)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))


def test_a_baseline_that_no_longer_fits_its_layer_is_cautioned_against_once(
    tmp_path: Path,
) -> None:
    """On the list of versions for as long as it is so, and in the log when it begins."""
    with running_daemon(tmp_path, SETTINGS) as running:
        learned(running)
        operations = running.daemon.operations
        before = stored(running)[0].cautions
        with structlog.testing.capture_logs() as logs:
            changed = replace(CAPTURE, dtype="bfloat16")
            running.daemon.monitor.register(LAYER, WIDTH, changed, 3.0)
            for _ in range(3):
                operations.keep_baselines()
        after = stored(running)[0].cautions

    (told,) = set(after) - set(before)
    assert "dtype 'float32' there and 'bfloat16' here" in told
    (said,) = [one for one in logs if one["event"] == "baseline_caution"]
    assert ("warning", [told]) == (said["log_level"], said["cautions"])

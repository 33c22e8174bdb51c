"""What is asked about made pictures: alerts hold them while they are open, requests make them again."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sidecar.errors import Conflict, CorruptState, UnknownArtifact
from sidecar.features import FeatureSelector
from sidecar.jobs import ArtifactIndex, Cause, Dictionaries, MadePicture
from sidecar.jobs.manifest import encode_manifest
from sidecar.monitor import Event, Flag, Monitor, Pictures
from sidecar.store import OwnerKind, References
from tests.jobs.bench import Bench, bench_at
from tests.jobs.pictures import facts_of, pair_of
from tests.monitor.test_monitor import LAYER, WINDOW, learn, monitor, sample, spike

pytestmark = pytest.mark.service

FEATURE = str(LAYER.feature(2))


@dataclass
class Shown:
    """Pictures over real parts, with what they told the audit log."""

    pictures: Pictures
    bench: Bench
    index: ArtifactIndex
    references: References
    events: list[Event]

    def store(self, **changes: object) -> MadePicture:
        """Put a picture with its manifest into the store and list it."""
        contents = pair_of(facts_of(FEATURE, **changes))  # type: ignore[arg-type]  # whole keys of a manifest
        picture, manifest = (
            self.bench.artifacts.put(content, kind).digest
            for content, kind in zip(
                contents.values(), ("image/png", "application/json"), strict=True
            )
        )
        made = MadePicture(
            manifest,
            picture,
            "k",
            FEATURE,
            "m",
            "a" * 64,
            "activation_maximisation",
            "",
            "",
            "",
            1.0,
        )
        self.index.add(made)
        return made


def shown(watched: Monitor, root: Path) -> Shown:
    """Return pictures over a monitor; nothing of it runs."""
    bench = bench_at(root)
    index, references = ArtifactIndex(bench.database), References(bench.database)
    events: list[Event] = []
    pictures = Pictures(
        watched,
        artifacts=bench.artifacts,
        index=index,
        references=references,
        runner=bench.runner(),
        dictionaries=Dictionaries(),
        record=events.extend,
        clock=lambda: 5.0,
    )
    return Shown(pictures, bench, index, references, events)


def test_an_alert_holds_its_picture_while_its_feature_fires(tmp_path: Path) -> None:
    """Held through collections, and let go once the feature is calm, or is no more."""
    rng, made = np.random.default_rng(7), monitor(LAYER)
    made.set_flags({FeatureSelector.parse("m/conv/channel/2"): Flag("stripes")}, 0.0)
    now = learn(made, rng)
    for _ in range(4):
        made.apply(spike(rng, 2), now + 1)
        now += WINDOW
        made.tick(now)
    desk = shown(made, tmp_path)
    picture = desk.store()
    pair = (picture.picture_digest, picture.manifest_digest)
    desk.references.hold(OwnerKind.ALERT, "fp:1.000", pair, 1.0, FEATURE)
    desk.references.hold(OwnerKind.ALERT, "fp:2.000", pair, 2.0, "gone@r/layer/channel/1")

    desk.pictures.collect()
    held = {one.owner for one in desk.references.of(OwnerKind.ALERT)}
    for _ in range(26):
        made.apply(sample(rng), now + 1)
        now += WINDOW
        made.tick(now)
    desk.pictures.collect()

    assert {"fp:1.000"} == held
    assert () == desk.references.of(OwnerKind.ALERT)


def test_a_reproduction_asks_for_what_the_manifest_says(tmp_path: Path) -> None:
    """The same target and recipe, marked so that it is never answered from the store."""
    desk = shown(monitor(LAYER), tmp_path)
    picture = desk.store(seed=9)

    for name in (picture.picture_digest, picture.manifest_digest):
        request = desk.pictures.reproduction(name)
        assert (FEATURE,) == tuple(str(target.feature) for target in request.targets)
        assert 9 == request.recipe.seed
        assert Cause(reproduces=picture.manifest_digest) == request.cause
    with pytest.raises(UnknownArtifact):
        desk.pictures.reproduction("0" * 64)


def test_typical_ranges_that_are_gone_cannot_be_reproduced(tmp_path: Path) -> None:
    """A picture that used a baseline which is not in force is refused with what to do."""
    desk = shown(monitor(LAYER), tmp_path)
    picture = desk.store(typical_digest="f" * 64)

    with pytest.raises(Conflict, match="import that baseline"):
        desk.pictures.reproduction(picture.picture_digest)


def test_a_manifest_that_says_nothing_cannot_be_reproduced(tmp_path: Path) -> None:
    """One without a recipe names what is missing."""
    desk = shown(monitor(LAYER), tmp_path)
    facts = facts_of(FEATURE)
    del facts["recipe"]
    digest = desk.bench.artifacts.put(encode_manifest(facts), "application/json").digest
    desk.index.add(MadePicture(digest, "p" * 64, "k", FEATURE, "m", "a" * 64, "x", "", "", "", 1.0))

    with pytest.raises(CorruptState, match="recipe"):
        desk.pictures.reproduction(digest)


def test_a_pin_is_written_down(tmp_path: Path) -> None:
    """Who pinned what stands in the audit log and beside the picture."""
    desk = shown(monitor(LAYER), tmp_path)
    picture = desk.store()

    desk.pictures.pin(picture.picture_digest, "audit 7")
    why = {one.note for one in desk.pictures.references(picture)}
    desk.pictures.unpin(picture.manifest_digest)

    assert {"audit 7"} == why
    assert [("artifact_pinned", FEATURE), ("artifact_unpinned", FEATURE)] == [
        (event.what, event.subject) for event in desk.events
    ]
    assert () == desk.references.of()


def test_a_manifest_names_the_alert_and_the_evidence(tmp_path: Path) -> None:
    """What led to a job reaches the specification that its child gets, and comes back whole."""
    from sidecar.jobs.manifest import parents  # noqa: PLC0415 - only here
    from sidecar.jobs.spec import decode_request, encode_request  # noqa: PLC0415 - as above
    from tests.jobs.bench import request  # noqa: PLC0415 - as above

    cause = Cause(alert="fp", alert_started=1.5, evidence="e7")

    again = decode_request(encode_request(request("work", 1, cause=cause)))

    assert cause == again.cause
    expected = {
        "alert": {"fingerprint": "fp", "started": "1970-01-01T00:00:01.500+00:00"},
        "evidence": "e7",
    }
    assert expected == json.loads(json.dumps(parents(again.cause)))

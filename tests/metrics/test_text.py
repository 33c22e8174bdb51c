"""Our text is the client library's, byte for byte, whatever it says and however often."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from sidecar.detect import State
from sidecar.metrics import Collector
from sidecar.metrics.exposition import Exposition
from sidecar.metrics.text import TextRenderer, number
from sidecar.monitor import Flag, IngestCounts

pytestmark = pytest.mark.unit

NASTY = st.text(st.characters(), max_size=30) | st.sampled_from(
    ['a"b', "a\\", "\\n", "\n", "", "é", "\ud800", "{}", 'le="1"', "#", " "]
)
NUMBERS = st.floats() | st.sampled_from(
    [0.0, -0.0, 1e6, 999999.5, 1e15, 1e16, 123456789.25, 5e-324, 1.7976931348623157e308, -1e7, 1e-5]
)


class Twins:
    """A collector, our renderers that outlive a scrape, and the client's way to the same text."""

    def __init__(self, source: Any, **settings: Any) -> None:
        """Take the source."""
        self.collector = Collector(source, version="1", config_digest="cd" * 32, **settings)
        self.registry = CollectorRegistry()
        self.registry.register(self.collector)
        self.plain, self.strict = (TextRenderer(openmetrics=strict) for strict in (False, True))

    def check(self) -> str:
        """Compare both formats; return the plain one."""
        ours = self.plain.render(self.collector.scrape())
        assert generate_latest(self.registry) == ours
        strict = self.strict.render(self.collector.scrape()) + b"# EOF\n"
        assert generate_openmetrics(self.registry) == strict
        return ours.decode()


@settings(deadline=None)
@given(NUMBERS)
def test_numbers_are_written_as_the_client_writes_them(value: float) -> None:
    """Infinities, denormals, negative zero and exponents included."""
    assert floatToGoString(value) == number(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_text_is_byte_for_byte_the_clients(
    data: st.DataObject, source: Any, make_feature: Any, make_layer: Any, make_activations: Any
) -> None:
    """Nasty labels, every kind of number, and sets of series that change between scrapes."""
    twins = Twins(source)
    for _ in range(3):
        indices = data.draw(st.lists(st.integers(0, 5), max_size=4, unique=True))
        keys = [make_layer().feature(index) for index in sorted(indices)]
        source.watched = [
            make_feature(
                key,
                data.draw(st.sampled_from(list(State))),
                Flag(data.draw(NASTY), "warning", data.draw(NASTY)),
                requests=data.draw(st.integers(0, 2)),
                last=data.draw(NUMBERS),
                threshold=data.draw(NUMBERS),
                exceedance_ratio=data.draw(NUMBERS),
                evidence_log10=data.draw(NUMBERS),
                spikes=data.draw(st.integers(0, 2)),
                conditions=data.draw(st.sampled_from([(), ("silent",), ("nonfinite", "silent")])),
                evidence_id=data.draw(NASTY),
                slice=data.draw(NASTY),
            )
            for key in keys
        ]
        bounds = sorted(data.draw(st.lists(st.floats(allow_nan=False), max_size=4, unique=True)))
        finite = [bound for bound in bounds if np.isfinite(bound)]
        row = [*finite, *[np.inf] * (6 - len(finite))]
        below = data.draw(st.lists(st.integers(0, 2**53), min_size=6, max_size=6))
        source.seen = [make_activations(*keys)] if keys else []
        source.seen = [
            replace(one, bounds=np.tile(row, (len(keys), 1)), below=np.tile(below, (len(keys), 1)))
            for one in source.seen
        ]
        source.unmatched = data.draw(st.lists(NASTY, max_size=3))
        source.counts = IngestCounts(
            refused={data.draw(NASTY): data.draw(st.integers(0, 2**60))},
            hook_seconds=data.draw(NUMBERS),
        )
        twins.check()


def test_an_exemplar_names_the_newest_evidence(
    source: Any, make_feature: Any, make_layer: Any
) -> None:
    """The counter of spikes carries it in OpenMetrics, follows it, and the plain format has none."""
    twins = Twins(source)
    line = (
        'sidecar_feature_spikes_total{feature="1",kind="channel",layer="_blocks.14",model="lite0",'
        'revision="3fa1c2d4e5f6"} 1.0'
    )
    watched = make_feature(make_layer().feature(1), spikes=1)
    shown = {}

    for evidence in ("", "ev-1", "ev-2", "e" * 117, "e" * 118):
        source.watched = [replace(watched, evidence_id=evidence)]
        plain = twins.check()
        strict = twins.strict.render(twins.collector.scrape()).decode()
        assert f"{line}\n" in plain
        (shown[evidence],) = (found for found in strict.splitlines() if found.startswith(line))

    assert shown["ev-1"] == f'{line} # {{evidence_id="ev-1"}} 1.0'
    assert shown["ev-2"] == f'{line} # {{evidence_id="ev-2"}} 1.0'
    assert "e" * 117 in shown["e" * 117]
    # OpenMetrics allows 128 characters, those of the label's name included.
    assert shown[""] == shown["e" * 118] == line


def test_a_line_keeps_what_does_not_change(source: Any, make_feature: Any, make_layer: Any) -> None:
    """Values, features, flags and bounds that change between scrapes all arrive in the next one."""
    twins = Twins(source)
    first = make_feature(make_layer().feature(1), last=1.0)
    source.watched = [first]
    assert 'feature="1"' in twins.check()

    source.watched = [replace(first, last=2.5), make_feature(make_layer().feature(2), last=4.0)]
    both = twins.check()
    source.watched = [replace(first, flag=Flag("renamed"), last=7.0)]
    renamed = twins.check()

    lines = [line for line in both.splitlines() if line.startswith("sidecar_feature_last")]
    assert ["2.5", "4.0"] == [line.rpartition(" ")[2] for line in lines]
    assert 'name="renamed"' in renamed
    assert 'feature="2"' not in renamed


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "text/plain;version=0.0.4",
        "application/openmetrics-text;version=1.0.0",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text;version=1.0.0;escaping=dots",
    ],
)
def test_every_text_format_a_client_may_ask_for_is_the_clients(accept: str, source: Any) -> None:
    """The whole answer, the process's own families in front, has the client's lines and type."""
    collector = Collector(source, version="1", config_digest="cd" * 32)
    registry = CollectorRegistry()
    registry.register(collector)
    twin = Exposition(collector).answer(accept)

    encode, media_type = choose_encoder(accept)
    ours = [line for line in twin.body.splitlines() if not re.search(rb"process_|python_", line)]
    assert media_type == twin.media_type
    assert encode(registry).splitlines() == ours

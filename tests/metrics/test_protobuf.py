"""The protobuf exposition, read back by Google's own library from the public field numbers."""

import http.client
import struct
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.features import Capture, LayerSample, Request
from sidecar.metrics import Collector
from sidecar.metrics.exposition import Exposition
from sidecar.metrics.native import histogram_messages
from sidecar.metrics.protobuf import MEDIA_TYPE, varint
from sidecar.monitor import LayerActivations
from sidecar.testing import running_daemon

pytestmark = pytest.mark.service

PACKAGE = "io.prometheus.client"

# What Prometheus 2.42 sends with --enable-feature=native-histograms.
NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;"
    "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)

F = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "string": F.TYPE_STRING,
    "double": F.TYPE_DOUBLE,
    "uint64": F.TYPE_UINT64,
    "uint32": F.TYPE_UINT32,
    "sint32": F.TYPE_SINT32,
    "sint64": F.TYPE_SINT64,
    "int32": F.TYPE_INT32,
}

# The part of the public metrics.proto that is read here: name, type, number, * for repeated.
MESSAGES = {
    "LabelPair": (("name", "string", 1), ("value", "string", 2)),
    "Gauge": (("value", "double", 1),),
    "Exemplar": (("label", "*LabelPair", 1), ("value", "double", 2)),
    "Counter": (("value", "double", 1), ("exemplar", "Exemplar", 2)),
    "Untyped": (("value", "double", 1),),
    "BucketSpan": (("offset", "sint32", 1), ("length", "uint32", 2)),
    "Histogram": (
        ("sample_count", "uint64", 1),
        ("sample_sum", "double", 2),
        ("schema", "sint32", 5),
        ("zero_threshold", "double", 6),
        ("zero_count", "uint64", 7),
        ("negative_span", "*BucketSpan", 9),
        ("negative_delta", "*sint64", 10),
        ("positive_span", "*BucketSpan", 12),
        ("positive_delta", "*sint64", 13),
    ),
    "Metric": (
        ("label", "*LabelPair", 1),
        ("gauge", "Gauge", 2),
        ("counter", "Counter", 3),
        ("untyped", "Untyped", 5),
        ("histogram", "Histogram", 7),
    ),
    "MetricFamily": (
        ("name", "string", 1),
        ("help", "string", 2),
        ("type", "int32", 3),
        ("metric", "*Metric", 4),
    ),
}


def _reader(name: str) -> Any:
    """Return a message class from a pool of its own, so that no other library's is disturbed."""
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package=PACKAGE, syntax="proto2")
    for message, fields in MESSAGES.items():
        made = file.message_type.add(name=message)
        for field, kind, number in fields:
            plain = kind.removeprefix("*")
            made.field.add(
                name=field,
                number=number,
                label=F.LABEL_REPEATED if kind.startswith("*") else F.LABEL_OPTIONAL,
                type=SCALARS.get(plain, F.TYPE_MESSAGE),
                type_name=None if plain in SCALARS else f".{PACKAGE}.{plain}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


FAMILY, HISTOGRAM = _reader("MetricFamily"), _reader("Histogram")


def families(body: bytes) -> dict[str, Any]:
    """Return the families of an answer by name; a name that is there twice is an error."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(body):
        size, at = _DecodeVarint32(body, at)
        family = FAMILY.FromString(body[at : at + size])
        at += size
        assert family.name not in found
        found[family.name] = family
    return found


def samples(family: Any) -> dict[frozenset[tuple[str, str]], float]:
    """Return the numbers of a family by labels."""
    field = {0: "counter", 1: "gauge", 3: "untyped"}[family.type]
    return {
        frozenset((pair.name, pair.value) for pair in metric.label): getattr(metric, field).value
        for metric in family.metric
    }


def buckets(spans: Any, deltas: Any) -> dict[int, int]:
    """Return the counts of one side by bucket index."""
    found, index, count, left = {}, 0, 0, iter(deltas)
    for span in spans:
        index += span.offset
        for _ in range(span.length):
            count += next(left)
            found[index] = count
            index += 1
    assert next(left, None) is None
    return found


def get(server: Any, accept: str, path: str = "/metrics") -> tuple[str, bytes]:
    """Return media type and body of a scrape."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers={"Accept": accept})
    answer = connection.getresponse()
    found = answer.headers["Content-Type"], answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (NATIVE, True),
        (MEDIA_TYPE, True),
        (MEDIA_TYPE + ";q=0.6,text/plain;q=0.5", True),
        ("text/plain;version=0.0.4", False),
        ("text/plain;version=0.0.4," + MEDIA_TYPE, False),
        (MEDIA_TYPE + ";q=0.4,text/plain;q=0.5", False),
        (MEDIA_TYPE + ";q=much", False),
        (MEDIA_TYPE + ";q=0", False),
        ("application/vnd.google.protobuf", False),
        (MEDIA_TYPE.replace("delimited", "text"), False),
        ("*/*", False),
        ("", False),
        (";;=,;q=", False),
    ],
)
def test_protobuf_is_for_who_asks_for_it_first(
    accept: str, wanted: bool, source: Any, serve: Any
) -> None:
    """The order and the qualities of ``Accept`` decide; everybody else gets text."""
    media_type, body = get(serve(source), accept)

    assert wanted == (media_type == MEDIA_TYPE)
    assert wanted != body.startswith(b"# HELP")


def test_a_selection_is_text(source: Any, serve: Any) -> None:
    """``name[]`` is what people use; it answers with what they can read."""
    media_type, body = get(serve(source), NATIVE, "/metrics?name[]=sidecar_streams")

    assert media_type.startswith("application/openmetrics-text")
    assert b"sidecar_streams 2.0" in body


def test_every_series_of_the_text_is_in_the_protobuf(source: Any, serve: Any, scrape: Any) -> None:
    """Names, labels and values are the same in both formats; the native histograms come on top."""
    server = serve(source)

    text = scrape(server)
    found = families(get(server, NATIVE)[1])

    native = found.pop("sidecar_feature_activation")
    assert 4 == native.type
    mine = {name: f for name, f in found.items() if name.startswith("sidecar_")}
    series = {(name, labels): v for name, f in mine.items() for labels, v in samples(f).items()}
    assert {key: v for key, v in text.items() if key[0].startswith("sidecar_")} == series
    assert 0 == mine["sidecar_batches_received_total"].type
    assert 1 == mine["sidecar_queue_bytes"].type
    others = {name for name in found if not name.startswith("sidecar_")}
    there = {key[0] for key in text if not key[0].startswith("sidecar_")}
    assert there == others
    assert samples(found["process_start_time_seconds"])


def test_an_exemplar_names_the_evidence(source: Any, serve: Any) -> None:
    """The feature that has evidence has an exemplar on its counter of spikes; the other has none."""
    _, body = get(serve(source), NATIVE)

    spikes = families(body)["sidecar_feature_spikes_total"].metric
    found = {
        next(pair.value for pair in metric.label if pair.name == "feature"): [
            (pair.name, pair.value, metric.counter.exemplar.value)
            for pair in metric.counter.exemplar.label
        ]
        for metric in spikes
    }
    assert {"33": [("evidence_id", "ev-33", 1.0)], "34": []} == found
    assert [1.0, 0.0] == [metric.counter.value for metric in spikes]


def test_a_native_histogram_holds_the_whole_distribution(source: Any, serve: Any) -> None:
    """Values -1.5, 0 and 3 lie in the buckets whose borders enclose them."""
    found = families(get(serve(source), NATIVE)[1])["sidecar_feature_activation"].metric

    assert ["33", "34"] == [{p.name: p.value for p in m.label}["feature"] for m in found]
    one = found[0].histogram
    assert (3, 1.5, 3, 2.0**-4, 1) == (
        one.sample_count,
        one.sample_sum,
        one.schema,
        one.zero_threshold,
        one.zero_count,
    )
    # Bucket i of schema 3 is (2 ** ((i - 1) / 8), 2 ** (i / 8)].
    assert {5: 1} == buckets(one.negative_span, one.negative_delta)
    assert {13: 1} == buckets(one.positive_span, one.positive_delta)
    assert 2 ** (4 / 8) < 1.5 <= 2 ** (5 / 8)
    assert 2 ** (12 / 8) < 3 <= 2 ** (13 / 8)


def test_a_feature_without_values_has_no_native_histogram(
    source: Any, serve: Any, make_activations: Any
) -> None:
    """It appears with its first values, rather than with borders that these would move."""
    (whole,) = source.activations()
    kept = whole.bucket_features == 0
    source.seen = [
        replace(
            whole,
            count=np.array([3, 0]),
            bucket_features=whole.bucket_features[kept],
            bucket_ranks=whole.bucket_ranks[kept],
            bucket_counts=whole.bucket_counts[kept],
        )
    ]

    found = families(get(serve(source), NATIVE)[1])["sidecar_feature_activation"].metric

    assert 1 == len(found)


@st.composite
def drawn(draw: st.DrawFn, base: LayerActivations, features: int) -> LayerActivations:
    """Draw counts in any buckets of any schema."""
    ranks = st.dictionaries(st.integers(-3000, 3000), st.integers(1, 2**40), max_size=20)
    cells = [
        (feature, rank, count)
        for feature in range(features)
        for rank, count in sorted(draw(ranks).items())
    ]
    owners, places, counts = (np.array([c[i] for c in cells], np.int64) for i in range(3))
    schema = draw(st.lists(st.integers(0, 8), min_size=features, max_size=features))
    zero = draw(st.lists(st.integers(-30, 30), min_size=features, max_size=features))
    return replace(
        base,
        count=np.bincount(owners, counts, features).astype(np.int64),
        sum=np.array(draw(st.lists(st.floats(), min_size=features, max_size=features))),
        schema=np.array(schema),
        zero_exponent=np.array(zero),
        bucket_features=owners,
        bucket_ranks=places,
        bucket_counts=counts,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_histogram_reads_back(
    data: st.DataObject, make_layer: Any, make_activations: Any
) -> None:
    """Spans and deltas say the same counts in the same buckets, for any number of features at once."""
    n = data.draw(st.integers(1, 4))
    given_ = data.draw(drawn(make_activations(*(make_layer().feature(i) for i in range(n))), n))

    messages = [HISTOGRAM.FromString(one) for one in histogram_messages(given_)]

    for place, one in enumerate(messages):
        mine = given_.bucket_features == place
        cells = dict(
            zip(
                given_.bucket_ranks[mine].tolist(), given_.bucket_counts[mine].tolist(), strict=True
            )
        )
        first = int(given_.zero_exponent[place]) << int(given_.schema[place])
        expected = {rank + first: count for rank, count in cells.items() if rank > 0}
        assert expected == buckets(one.positive_span, one.positive_delta)
        expected = {first - rank: count for rank, count in cells.items() if rank < 0}
        assert expected == buckets(one.negative_span, one.negative_delta)
        assert (cells.get(0, 0), sum(cells.values())) == (one.zero_count, one.sample_count)
        assert struct.pack("<d", given_.sum[place]) == struct.pack("<d", one.sample_sum)
        assert (given_.schema[place], 2.0 ** given_.zero_exponent[place]) == (
            one.schema,
            one.zero_threshold,
        )


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_lengths_are_varints(number: int) -> None:
    """Any unsigned number reads back through Google's decoder of a field."""
    one = HISTOGRAM.FromString(b"\x08" + varint(number))

    assert number == one.sample_count


def test_scrapes_of_layers_that_come_and_go_are_right(
    source: Any, make_feature: Any, make_layer: Any
) -> None:
    """What is kept from scrape to scrape is never another layer's."""
    exposition = Exposition(Collector(source, version="1", config_digest="0"))
    seen = []
    for layers in (("a",), ("a", "b"), ("b",), ("a", "b")):
        source.watched = [make_feature(make_layer(name).feature(5)) for name in layers]
        found = families(exposition.answer(NATIVE).body)["sidecar_feature_activation"].metric
        seen.append(tuple({p.name: p.value for p in m.label}["layer"] for m in found))

    assert [("a",), ("a", "b"), ("b",), ("a", "b")] == seen


def test_a_daemon_has_the_histograms_of_its_flagged_features(
    tmp_path: Path, make_layer: Any
) -> None:
    """From the hook's rows over a closed window to the scrape, in a whole daemon."""
    layer = make_layer()
    settings = {
        "models": [{"name": layer.model}],
        "flags": [{"feature": f"{layer.model}/{layer.layer}/{layer.kind}/1"}],
        "statistics": {"warmup_rows": 16},
    }
    with running_daemon(tmp_path, settings) as running:
        monitor, now = running.daemon.monitor, time.time()
        monitor.register(layer, 2, Capture(), now)
        values = np.full((64, 2), 2.5, np.float32)
        index = np.arange(64, dtype=np.int32)
        monitor.apply(LayerSample(layer, values, index, tuple(Request() for _ in index)), now)
        monitor.tick(now + 60)
        request = urllib.request.Request(
            f"{running.metrics_url}/metrics", headers={"Accept": NATIVE}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = families(answer.read())

    (one,) = found["sidecar_feature_activation"].metric
    assert (64, 160.0) == (one.histogram.sample_count, one.histogram.sample_sum)
    (count,) = buckets(one.histogram.positive_span, one.histogram.positive_delta).values()
    assert 64 == count
    levels = samples(found["sidecar_feature_activation_levels_bucket"])
    assert {0.0, 64.0} == set(levels.values())

"""Renders a scrape in Prometheus' protobuf format, the one in which it takes native histograms.

Messages of ``io.prometheus.client`` are written field by field: there are few of them, their numbers
never change, and generated code for them would clash in the process's pool of messages with that of
any other library that brings its own. Field numbers are those of the public ``metrics.proto``:
``MetricFamily`` name 1, help 2, type 3, metric 4; ``Metric`` label 1, gauge 2, counter 3, untyped 5,
histogram 7; ``LabelPair`` name 1, value 2; ``Gauge``, ``Counter`` and ``Untyped`` value 1; ``Counter``
exemplar 2.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Metric

from sidecar.features import LayerKey
from sidecar.metrics.catalogue import FEATURE_ACTIVATION, Family, FamilyType
from sidecar.metrics.native import histogram_messages
from sidecar.metrics.tables import EXEMPLAR, Histograms, Labels, Scrape, Table

MEDIA_TYPE = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)
"""Each message stands behind its length."""

_COUNTER, _GAUGE, _UNTYPED, _HISTOGRAM = 0, 1, 3, 4  # MetricType

# The field of Metric that holds a value of each type: its tag, the length 9, and the tag of a double.
_HOLDERS = {_COUNTER: b"\x1a\x09\x09", _GAUGE: b"\x12\x09\x09", _UNTYPED: b"\x2a\x09\x09"}
_VALUE_BYTES = 8

# Every bucket series is a counter, and goes out as one: a histogram message would bring a sum, which
# is none where values are negative, and series that the text formats do not have.
_TYPES = {
    FamilyType.COUNTER: _COUNTER,
    FamilyType.GAUGE: _GAUGE,
    FamilyType.INFO: _GAUGE,
    FamilyType.HISTOGRAM: _COUNTER,
}
_CLIENT_TYPES = {"counter": _COUNTER, "gauge": _GAUGE, "info": _GAUGE}


class ProtobufRenderer:
    """Renders scrapes as delimited ``MetricFamily`` messages. May be used from several threads.

    Complexity:
        About 0.4 µs a series that was there before, and 20 µs a native histogram.
    """

    def __init__(self) -> None:
        self._known: dict[Family, tuple[Sequence[Labels], bytes, list[bytes]]] = {}
        self._natives: dict[LayerKey, tuple[Sequence[Labels], list[bytes]]] = {}

    def render(self, scrape: Scrape) -> bytes:
        """Return the families of a scrape; those without samples are left out, as Prometheus asks."""
        found = [self._family(table) for table in scrape.tables]
        # Only layers of this scrape: those that are gone do not stay in memory.
        natives = {one.activations.layer: self._paired(one) for one in scrape.histograms}
        self._natives = natives
        found.append(_native(scrape, natives))
        return b"".join(found)

    def _paired(self, one: Histograms) -> tuple[Sequence[Labels], list[bytes]]:
        known = self._natives.get(one.activations.layer)
        if known is not None and known[0] is one.labels:
            return known
        return one.labels, [_pairs(FEATURE_ACTIVATION.labels, labels) for labels in one.labels]

    def _family(self, table: Table) -> bytes:
        _, head, prefixes = self._prepared(table)
        packed = struct.pack(f"<{len(table.values)}d", *table.values)
        metrics = [
            prefix + packed[at : at + _VALUE_BYTES]
            for prefix, value, at in zip(
                prefixes, table.values, range(0, len(packed), _VALUE_BYTES), strict=True
            )
            if value == value  # noqa: PLR0124 - NaN is absent
        ]
        if table.exemplars:  # of counters, which are never absent: places stay places
            for place, text in table.exemplars.items():
                pairs = _pairs(table.family.labels, table.labels[place])
                metrics[place] = _marked(pairs, table.values[place], text)
        return _delimited(head + b"".join(metrics)) if metrics else b""

    def _prepared(self, table: Table) -> tuple[Sequence[Labels], bytes, list[bytes]]:
        family = table.family
        known = self._known.get(family)
        if known is None or (known[0] is not table.labels and known[0] != table.labels):
            kind = _TYPES[family.type]
            prefixes = [_scalar(_pairs(family.labels, labels), kind) for labels in table.labels]
            known = (table.labels, _head(family.sample, family.help, kind), prefixes)
            self._known[family] = known
        return known


def render_metrics(metrics: Iterable[Metric]) -> bytes:
    """Return the client library's own families: a message for each name their samples have."""
    found = []
    for metric in metrics:
        kind = _CLIENT_TYPES.get(metric.type, _UNTYPED)
        for name in dict.fromkeys(sample.name for sample in metric.samples):
            series = [
                _scalar(_pairs(tuple(sample.labels), tuple(sample.labels.values())), kind)
                + struct.pack("<d", sample.value)
                for sample in metric.samples
                if sample.name == name
            ]
            found.append(_delimited(_head(name, metric.documentation, kind) + b"".join(series)))
    return b"".join(found)


def varint(number: int) -> bytes:
    """Return a number from 0 to 2**64 - 1 as protobuf writes lengths and unsigned integers.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _native(
    scrape: Scrape, known: Mapping[LayerKey, tuple[Sequence[Labels], list[bytes]]]
) -> bytes:
    metrics = []
    for one in scrape.histograms:
        messages = histogram_messages(one.activations)
        _, pairs = known[one.activations.layer]
        for mine, place in zip(pairs, one.places, strict=True):
            # One without a value would begin with borders that the first value may move.
            if one.activations.count[place]:
                metrics.append(_field(4, mine + _field(7, messages[place])))
    head = _head(FEATURE_ACTIVATION.name, FEATURE_ACTIVATION.help, _HISTOGRAM)
    return _delimited(head + b"".join(metrics)) if metrics else b""


def _head(name: str, text: str, kind: int) -> bytes:
    return _field(1, name.encode()) + _field(2, text.encode()) + b"\x18" + varint(kind)


def _scalar(pairs: bytes, kind: int) -> bytes:
    """Return a metric up to its value, which is all that is missing."""
    body = pairs + _HOLDERS[kind]
    return b"\x22" + varint(len(body) + _VALUE_BYTES) + body


def _marked(pairs: bytes, value: float, text: str) -> bytes:
    """Return a counter's metric with an exemplar: ``Exemplar`` label 1, value 2."""
    label, mark = EXEMPLAR
    exemplar = _pairs((label,), (text,)) + b"\x11" + struct.pack("<d", mark)
    counter = b"\x09" + struct.pack("<d", value) + _field(2, exemplar)
    return _field(4, pairs + _field(3, counter))


def _pairs(names: Sequence[str], values: Labels) -> bytes:
    pairs = sorted(zip(names, values, strict=True))
    return b"".join(_field(1, _field(1, n.encode()) + _field(2, v.encode())) for n, v in pairs)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def _delimited(message: bytes) -> bytes:
    return varint(len(message)) + message

"""Answers a scrape in the format it asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from sidecar.metrics import protobuf
from sidecar.metrics.collector import Collector
from sidecar.metrics.protobuf import ProtobufRenderer
from sidecar.metrics.text import TextRenderer

_OPENMETRICS = "application/openmetrics-text"
_END = b"# EOF\n"

# Escapings that leave our names as they are; others spell the underscore in ways of their own.
_PLAIN_ESCAPINGS = ("", "underscores", "allow-utf-8")


@dataclass(frozen=True, slots=True)
class Exposed:
    """A scrape in some format.

    Attributes:
        media_type: Which.
        body: The bytes.
    """

    media_type: str
    body: bytes


class Exposition:
    """A collector's families, and the process's own, in three formats.

    The formats are Prometheus' text 0.0.4, OpenMetrics 1.0 and delimited protobuf. The last one, which
    alone has native histograms, is given only to who asks for it before all others. May be used from
    several threads at once.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._process, self._all = CollectorRegistry(), CollectorRegistry()
        for registry in (self._process, self._all):
            ProcessCollector(registry=registry)
            GCCollector(registry=registry)
        self._all.register(collector)
        self._plain = TextRenderer(openmetrics=False)
        self._strict = TextRenderer(openmetrics=True)
        self._protobuf = ProtobufRenderer()

    def answer(self, accept: str, names: Sequence[str] = ()) -> Exposed:
        """Return what is exposed now.

        Args:
            accept: The ``Accept`` header; may be empty.
            names: Samples to choose; none: all. A choice is given as text.
        """
        encode, media_type = choose_encoder(accept)
        if names:
            return Exposed(media_type, encode(self._all.restricted_registry(names)))
        if _wants_protobuf(accept):
            body = protobuf.render_metrics(self._process.collect())
            return Exposed(
                protobuf.MEDIA_TYPE, body + self._protobuf.render(self._collector.scrape())
            )
        if _escaping(media_type) not in _PLAIN_ESCAPINGS:
            return Exposed(media_type, encode(self._all))
        return Exposed(media_type, self._text(encode, media_type))

    def _text(self, encode: Callable[[CollectorRegistry], bytes], media_type: str) -> bytes:
        process, scrape = encode(self._process), self._collector.scrape()
        if media_type.startswith(_OPENMETRICS):
            return process.removesuffix(_END) + self._strict.render(scrape) + _END
        return process + self._plain.render(scrape)


def _wants_protobuf(accept: str) -> bool:
    """Whether delimited ``MetricFamily`` messages are what an ``Accept`` header likes best."""
    found = [_media_range(item) for item in accept.split(",")]
    quality, best = max(found, key=lambda one: one[0])  # the first of equals
    return (
        quality > 0
        and best.get("") == "application/vnd.google.protobuf"
        and best.get("proto") == "io.prometheus.client.MetricFamily"
        and best.get("encoding") == "delimited"
    )


def _media_range(item: str) -> tuple[float, dict[str, str]]:
    """Return the quality of one item of ``Accept``, and its parameters with its type under ``""``."""
    kind, *parameters = (part.strip() for part in item.split(";"))
    found = {"": kind.lower()}
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        found[name.strip().lower()] = value.strip().strip('"')
    try:
        return float(found.get("q", "1")), found
    except ValueError:
        return 0.0, found


def _escaping(media_type: str) -> str:
    return _media_range(media_type)[1].get("escaping", "")

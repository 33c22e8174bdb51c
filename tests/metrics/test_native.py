"""A real Prometheus, with native histograms and without, reads known distributions off a monitor."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.features import (
    Capture,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    View,
)
from sidecar.metrics import render_rules
from sidecar.monitor import FeatureStatus, Flag, LayerActivations, LayerStatus, Monitor
from tests.prometheus import eventually

pytestmark = pytest.mark.e2e

LAYER = LayerKey("lite0", "3f" * 32, "_blocks.14", FeatureKind.NEURON, View.RAW)
ROWS = 4000

# The widest bucket of schema 4, and the widest bin of the statistics: what a quantile may be off by.
BUCKET, BIN = 2 ** (1 / 16) - 1, 1 / 16


class LiveSource:
    """A monitor under traffic: every scrape finds one more window of known distributions.

    Feature 0 is standard normal, 1 is normal around 100, 2 is zero nine times in ten, and 3 is normal
    of a scale that may change.
    """

    def __init__(self, source: Any) -> None:
        """Learn and freeze a baseline; everything but features and layers comes from ``source``."""
        self._source, self._rng, self._now = source, np.random.default_rng(5), 0.0
        self._scale = 1.0
        self._lock = threading.Lock()  # scrapes and the test both send
        settings = StatisticsConfig(window_seconds=1.0, warmup_rows=256)
        self._monitor = Monitor(settings, SpikeConfig(), now=0.0)
        self._monitor.register(LAYER, 4, Capture(), 0.0)
        flags = [FeatureSelector.parse(f"lite0/_blocks.14/neuron/{index}") for index in range(4)]
        self._monitor.set_flags({flag: Flag() for flag in flags}, 0.0)
        self.window()
        self._monitor.freeze([LAYER], self._now)

    def window(self, outlier: float = 0.0) -> None:
        """Send a window; an outlier takes the place of one value of feature 0."""
        with self._lock:
            self._window(outlier)

    def _window(self, outlier: float) -> None:
        normal = self._rng.normal(size=ROWS)
        normal[0] = outlier
        values = np.stack(
            (
                normal,
                self._rng.normal(100.0, 1.0, ROWS),
                np.maximum(self._rng.normal(-1.2815515655, 1.0, ROWS), 0.0),
                self._rng.normal(0.0, self._scale, ROWS),
            ),
            axis=1,
        ).astype(np.float32)
        requests = tuple(Request() for _ in range(ROWS))
        sample = LayerSample(LAYER, values, np.arange(ROWS, dtype=np.int32), requests)
        self._monitor.apply(sample, self._now + 0.5)
        self._now += 1.0
        self._monitor.tick(self._now)

    def relearn(self, scale: float) -> None:
        """Forget the baseline, so that all bins are placed anew, feature 3 at another scale."""
        with self._lock:
            self._monitor.reset([LAYER], self._now)
            self._scale = scale

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the source."""
        return getattr(self._source, name)

    def features(self) -> Sequence[FeatureStatus]:
        """Return the flagged features."""
        return self._monitor.watched()

    def layers(self) -> Sequence[LayerStatus]:
        """Return the layer."""
        return self._monitor.layers()

    def activations(self) -> Sequence[LayerActivations]:
        """Return the activations after one more window."""
        self.window()
        return self._monitor.activations()


def value(prometheus: Any, expr: str) -> float:
    """Return the only value of an expression; NaN when there is none yet."""
    found = prometheus.query(expr)
    assert len(found) <= 1
    return float(found[0]["value"][1]) if found else float("nan")


def test_native_histograms_hold_the_known_distributions(
    source: Any, serve: Any, start_prometheus: Any
) -> None:
    """Quantiles of both signs, far from zero and at zero, are right to a bucket and a bin."""
    live = LiveSource(source)
    server = serve(live)
    prometheus = start_prometheus(render_rules(), server.port, "--enable-feature=native-histograms")
    series = "sidecar_feature_activation"
    rate = f'rate({series}{{feature="%s"}}[30s])'
    normal, far, sparse = (rate % feature for feature in ("0", "1", "2"))
    eventually(lambda: value(prometheus, f"histogram_count({normal})") > 0, "a rate")
    live.window(outlier=1e6)  # makes the buckets of feature 0 coarser under way
    live.relearn(scale=64.0)  # makes the zero bucket of feature 3 wider
    eventually(
        lambda: value(prometheus, 'count_over_time(up{job="sidecar"}[30s])') >= 6,
        "some scrapes",
    )

    quantiles = {
        level: value(prometheus, f"histogram_quantile({level}, {normal})")
        for level in (0.01, 0.25, 0.75, 0.99)
    }

    exact = {0.01: -2.3263, 0.25: -0.6745, 0.75: 0.6745, 0.99: 2.3263}
    for level, found in quantiles.items():
        # 1e6 needs schema 3: buckets of twice the width.
        assert abs(found - exact[level]) <= (2.1 * BUCKET + BIN) * abs(exact[level]), level
    for feature in ("0", "3"):
        # Other borders are no restart: if they were, all values before would count again.
        whole = f'rate({series}_levels_bucket{{feature="{feature}",le="+Inf"}}[30s])'
        native = f"histogram_count({rate % feature})"
        agreement = value(prometheus, f"{native} / ignoring (le) {whole}")
        assert 1.0 == pytest.approx(agreement, abs=0.2), feature
    assert 102.3263 == pytest.approx(
        value(prometheus, f"histogram_quantile(0.99, {far})"), abs=0.45
    )
    assert abs(value(prometheus, f"histogram_quantile(0.5, {sparse})")) < 0.1
    above = value(prometheus, f"histogram_fraction(2, 200, {normal})")
    assert 0.02275 == pytest.approx(above, abs=0.006)
    mean = value(prometheus, f"histogram_sum({far}) / histogram_count({far})")
    assert 100.0 == pytest.approx(mean, abs=0.2)


def test_nothing_is_missing_or_doubled_with_native_histograms(
    source: Any, serve: Any, start_prometheus: Any
) -> None:
    """Every series of the text arrives through protobuf too, and the classic buckets are queryable."""
    live = LiveSource(source)
    server = serve(live)
    prometheus = start_prometheus(render_rules(), server.port, "--enable-feature=native-histograms")
    rate = 'sum by (le) (rate(sidecar_feature_activation_levels_bucket{feature="%s"}[30s]))'
    eventually(lambda: prometheus.query(f"{rate % 0} > 0"), "a rate of buckets")

    scraped = value(prometheus, 'scrape_samples_scraped{job="sidecar"}')
    held = value(prometheus, "sidecar_series")
    foreign = value(prometheus, 'count({job="sidecar",__name__=~"process_.+|python_.+"})')
    low, high = (
        value(prometheus, f"histogram_quantile({level}, {rate % 0})") for level in (0.05, 0.95)
    )

    assert held + foreign == scraped
    assert -1.645 == pytest.approx(low, abs=0.3)
    assert 1.645 == pytest.approx(high, abs=0.3)
    bounds = {float(one["metric"]["le"]) for one in prometheus.query(rate % 0)}
    assert min(bounds) < 0.0 < max(bounds)
    assert 0.0 in bounds
    targets = prometheus.get("targets")["activeTargets"]
    assert [("up", "")] == [(target["health"], target["lastError"]) for target in targets]


def test_without_native_histograms_everything_else_is_scraped(
    source: Any, serve: Any, start_prometheus: Any
) -> None:
    """An ordinary Prometheus gets text, with the classic buckets and without the native ones."""
    prometheus = start_prometheus(render_rules(), serve(LiveSource(source)).port)
    rate = 'sum by (le) (rate(sidecar_feature_activation_levels_bucket{feature="1"}[30s]))'
    eventually(lambda: prometheus.query(f"{rate} > 0"), "a rate of buckets")

    median = value(prometheus, f"histogram_quantile(0.5, {rate})")
    scraped = value(prometheus, 'scrape_samples_scraped{job="sidecar"}')
    held = value(prometheus, "sidecar_series")
    foreign = value(prometheus, 'count({job="sidecar",__name__=~"process_.+|python_.+"})')

    assert 100.0 == pytest.approx(median, abs=0.2)
    assert [] == prometheus.query("sidecar_feature_activation")
    # Four native histograms are counted as series, and are not there.
    assert held + foreign == scraped + 4

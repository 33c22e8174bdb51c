"""Recordings without a daemon: windows of traffic whose burstiness and clustering are known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidecar.features import LayerKey
from sidecar.store import Subject, WindowRecord

LAYER = LayerKey("lite0", "3f" * 32, "_blocks.14")
RATE = 0.016
WINDOW = 10.0
LEVELS = (0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Traffic:
    """A generator of windows.

    Attributes:
        features: How many are flagged.
        requests: Requests in each window.
        rate: Share of requests that exceed in the mean.
        variation: Standard deviation of the logarithm of the rate over time, of each feature apart.
        memory: Correlation of that from one window to the next.
        rows: Mean rows beyond the threshold of an exceeding request, at least 1; geometric.
    """

    features: int = 4
    requests: int = 64
    rate: float = RATE
    variation: float = 0.0
    memory: float = 0.0
    rows: float = 1.0

    def subject(self, layer: LayerKey = LAYER) -> Subject:
        """Return what the windows are about, with the true rates as the baseline's."""
        n = self.features
        rates = 1 - (1 - self.rate) ** np.array([10.0, 1.0, 0.1])
        return Subject(
            layer=layer,
            capture="c0ffee",
            window_seconds=WINDOW,
            quantile=0.999,
            indices=np.arange(n, dtype=np.int64) * 3,
            thresholds=np.full(n, 3.0),
            baseline_rate=np.full(n, self.rate),
            baseline_share=np.full(n, self.rate),
            factor=np.full(n, np.nan),
            judged=np.ones(n, np.bool_),
            baseline="learned",
            baseline_requests=360 * self.requests,
            baseline_seconds=3600.0,
            levels=np.array(LEVELS),
            level_rates=np.tile(rates, (n, 1)),
            level_shares=np.tile(rates, (n, 1)),
        )

    def rates(self, windows: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the share that exceeds in each window, shape ``(windows, features)``."""
        found = np.empty((windows, self.features))
        innovation = self.variation * np.sqrt(1 - self.memory**2)
        latent = rng.normal(0, self.variation, self.features)
        for at in range(windows):
            found[at] = self.rate * np.exp(latent - self.variation**2 / 2)
            latent = self.memory * latent + rng.normal(0, innovation, self.features)
        return np.minimum(found, 0.9)

    def windows(
        self,
        count: int,
        rng: np.random.Generator,
        *,
        spikes: Sequence[tuple[int, int, int, float]] = (),
        start: float = 1_000_000.0,
        subject: Subject | None = None,
    ) -> Iterator[WindowRecord]:
        """Yield windows.

        Args:
            count: How many.
            rng: Where chance comes from.
            spikes: Feature, first window, last window (not included), share of requests.
            start: Unix seconds at which the first window begins.
            subject: What they are about; as ``subject`` by default.
        """
        of, rates = subject or self.subject(), self.rates(count, rng)
        for feature, first, last, share in spikes:
            rates[first:last, feature] += (1 - rates[first:last, feature]) * share
        for at in range(count):
            yield window_of(of, rng, rates[at], self, start + WINDOW * (at + 1))


def window_of(
    of: Subject,
    rng: np.random.Generator,
    rates: NDArray[np.float64],
    traffic: Traffic,
    at: float,
) -> WindowRecord:
    """Return one window in which requests exceed at these rates."""
    n, requests = len(of), traffic.requests
    exceedances = rng.binomial(requests, rates)
    more = rng.negative_binomial(np.maximum(exceedances, 1), 1 / traffic.rows)
    lower = np.maximum(exceedances, rng.binomial(requests, np.minimum(9 * rates, 0.95)))
    return WindowRecord(
        of,
        at,
        flagged=n,
        requests=requests,
        rows=requests * 16,
        compared=np.full(n, requests),
        exceedances=exceedances,
        level_exceedances=np.stack([lower, exceedances, rng.binomial(exceedances, 0.1)], axis=1),
        rows_beyond=np.where(exceedances > 0, exceedances + more, 0),
        maximum=rng.normal(4, 0.4, n).astype(np.float32),
        minimum=rng.normal(-4, 0.4, n).astype(np.float32),
        zeros=np.zeros(n, np.int64),
        nonfinite=np.zeros(n, np.int64),
    )


def unsampled(window: WindowRecord) -> WindowRecord:
    """Return the window as if no request had been sampled in it."""
    nothing = np.zeros_like(window.compared)
    return replace(
        window,
        requests=0,
        rows=0,
        compared=nothing,
        exceedances=nothing,
        level_exceedances=np.zeros_like(window.level_exceedances),
        rows_beyond=nothing,
    )

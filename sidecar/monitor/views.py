"""What the monitor tells people and machines: immutable values, made on request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sidecar.detect import Detector, Direction, State
from sidecar.features import Capture, FeatureKey, LayerKey, Slice


class Window(StrEnum):
    """Which stretch of time a distribution covers."""

    CURRENT = "current"
    BASELINE = "baseline"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class Flag:
    """Why a feature is watched, how, and who is told.

    Attributes:
        name: What people call it; may be empty.
        severity: ``info``, ``warning`` or ``critical``.
        owner: Who is told; may be empty.
        factor: The least factor over its recent level that can raise an alarm; None: the common one.
        direction: On which side of its baseline it is watched.
        traffic: Only requests with all these pairs count; without any, all do.
        detectors: What looks at it.
    """

    name: str = ""
    severity: str = "warning"
    owner: str = ""
    factor: float | None = None
    direction: Direction = Direction.ABOVE
    traffic: Slice = field(default_factory=Slice)
    detectors: tuple[Detector, ...] = tuple(Detector)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A feature that nobody flagged and that the screen finds.

    Attributes:
        key: Which feature.
        since: Unix seconds of the end of the first window in which it was significant.
        seen: Of the newest such window, from which the numbers are.
        windows: In how many windows it was since then; findings that come once may be chance.
        requests: Requests of the newest one.
        exceedances: Of these, the ones with a value above the feature's baseline quantile.
        baseline_ratio: Share that exceeds in the baseline; above 0.
        p_log10: Chance of so many by the baseline, as a power of ten.
        q_log10: Least share of false findings, as a power of ten, at which it would still be one.
    """

    key: FeatureKey
    since: float
    seen: float
    windows: int
    requests: int
    exceedances: int
    baseline_ratio: float
    p_log10: float
    q_log10: float

    @property
    def exceedance_ratio(self) -> float:
        """Share of the requests that exceeded."""
        return self.exceedances / self.requests

    @property
    def factor(self) -> float:
        """How many times as often it exceeds as in its baseline."""
        return self.exceedance_ratio / self.baseline_ratio


@dataclass(frozen=True, slots=True)
class FeatureStatus:
    """A feature as it stands now.

    Attributes:
        key: Which feature.
        flag: Why it is watched; None where it is not.
        state: What the detector says; unknown where it is not watched.
        since: Unix seconds of the last change of state.
        requests: Requests in the last short windows with a sample.
        exceedance_ratio: Share of those with a value beyond ``threshold``.
        baseline_ratio: That share in the baseline; NaN before there is one.
        threshold: Baseline quantile of the spike test, the upper one where there are two; NaN before
            there is a baseline.
        last: Largest value of the last closed window that had samples; NaN before.
        explanation: Why the state is what it is, in words.
        evidence_log10: Evidence of a spike, as a power of ten; 0: none, or an alarm is held; NaN:
            nothing can be judged.
        evidence_threshold_log10: Evidence that raises an alarm.
        level_ratio: Recent level of the exceeding share; NaN before there is one.
        tolerated_ratio: Share that is tolerated now: as much as so few measured requests allow at least, see
            ``detect.measured_rate``; NaN before there is a baseline.
        conditions: What certainly holds of it: ``never_seen``, ``nonfinite``, ``silent``, ``saturated``.
        drift_js: Jensen-Shannon distance of its newest hour from the baseline; NaN before there is one.
        drift_wasserstein: Wasserstein distance from the baseline, in standard deviations of that.
        drift_js_yesterday: Jensen-Shannon distance from the same hour of yesterday.
        drifting: Whether that is further than the baseline's own hours are apart.
        evidence_id: The newest record of why it fired; empty: there is none.
        direction: On which side of its threshold a value exceeds: ``above``, ``below`` or ``both``.
        slice: The traffic it is judged on, as the flag has it; empty: all.
        sampled_requests: Requests sampled in closed windows since the daemon started.
        sampled_exceedances: Of those, the ones with a value beyond a threshold.
        spikes: Times it began to fire since the daemon started.
        low_threshold: A value below exceeds; NaN where there is no such threshold.
        least: Least finite value of the last closed window that had samples, of a feature that is watched
            ``below`` or on ``both`` sides and has a baseline; else NaN.
        caution: What speaks against the rate that it is held to, in words; empty: nothing.
        anomaly: What the screen finds of it, of one that nobody flagged; None: nothing.
    """

    key: FeatureKey
    flag: Flag | None
    state: State
    since: float
    requests: int
    exceedance_ratio: float
    baseline_ratio: float
    threshold: float
    last: float
    explanation: str
    evidence_log10: float = math.nan
    evidence_threshold_log10: float = math.nan
    level_ratio: float = math.nan
    tolerated_ratio: float = math.nan
    conditions: tuple[str, ...] = ()
    drift_js: float = math.nan
    drift_wasserstein: float = math.nan
    drift_js_yesterday: float = math.nan
    drifting: bool = False
    evidence_id: str = ""
    direction: str = "above"
    slice: str = ""
    sampled_requests: int = 0
    sampled_exceedances: int = 0
    spikes: int = 0
    low_threshold: float = math.nan
    least: float = math.nan
    caution: str = ""
    anomaly: Anomaly | None = None


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """A layer as it stands now.

    Attributes:
        key: Which layer.
        width: Features in it.
        capture: How it is measured.
        rows: Rows seen since it was registered.
        requests: Requests seen since it was registered.
        nonfinite: NaN and infinite values seen since it was registered; of a sparse layer negative and
            impossibly great ones, too.
        baseline_requests: Requests in the frozen baseline, or learned so far.
        baseline_frozen: Whether the baseline is frozen.
        last_seen: Unix seconds of the newest sample; 0: never.
        restored: What of ``rows``, ``requests`` and ``nonfinite`` a snapshot brought back. A snapshot
            is older than what was scraped last, so a Prometheus counter must start without it.
        detail: How much is kept of it: ``full`` or ``screened``.
        memory_bytes: Memory set aside for it.
        screened_features: Features that the screen judged in the newest closed window; 0: none yet.
        significant_features: Of those, the ones that exceed more often than the baseline explains.
        shifted: Whether the layer as a whole has moved: at once when many are significant in a window in
            which two flagged features fire, until fewer than two do; else after many such windows in a row.
        baseline_id: What tells its frozen baseline from others; empty: none.
        baseline_windows: Windows in which the baseline's second half measured what to expect.
        baseline_min_requests: Requests after which a baseline that learns may freeze by itself.
        baseline_min_seconds: Seconds that must have passed as well.
        anomalies: The unflagged features that the screen finds, the most telling first; few.
        failed_windows: Windows that could not be closed since the daemon started: nothing was judged in them.
    """

    key: LayerKey
    width: int
    capture: Capture
    rows: int
    requests: int
    nonfinite: int
    baseline_requests: int
    baseline_frozen: bool
    last_seen: float
    restored: tuple[int, int, int] = (0, 0, 0)
    detail: str = "full"
    memory_bytes: int = 0
    screened_features: int = 0
    significant_features: int = 0
    shifted: bool = False
    baseline_id: str = ""
    baseline_windows: int = 0
    baseline_min_requests: int = 0
    baseline_min_seconds: float = 0.0
    anomalies: tuple[Anomaly, ...] = ()
    failed_windows: int = 0


@dataclass(frozen=True, slots=True)
class FeatureDistribution:
    """The distribution of one feature over one window.

    Attributes:
        key: Which feature.
        window: Over which stretch of time.
        count: Finite values.
        mean: Their mean; NaN when there are none.
        variance: Their population variance.
        minimum: Their least; NaN when there are none.
        maximum: Their greatest.
        zero_ratio: Share of exact zeros among them.
        nonfinite: NaN and infinite values, counted apart; of a sparse latent negative and impossibly
            great ones, too.
        edges: Bin edges in increasing order, shape ``(bins + 1,)``; only the occupied stretch.
        counts: Values in ``[edges[i], edges[i + 1])``, shape ``(bins,)``.
        levels: Quantile levels, shape ``(levels,)``.
        quantiles: Values at those levels, shape ``(levels,)``; NaN when there are none.
        relative_error: Largest error of a quantile as a ratio of its distance from the centre.
        started: Unix seconds of the first value; 0 when there are none.
        ended: Unix seconds of the last.
    """

    key: FeatureKey
    window: Window
    count: int
    mean: float
    variance: float
    minimum: float
    maximum: float
    zero_ratio: float
    nonfinite: int
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    levels: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    relative_error: float
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerActivations:
    """All activations of ``n`` watched features of one layer since the daemon started.

    Counts only grow, but for those of ``below`` where ``bounds`` changed. Values of the warm-up and of
    a window that a reset cut short are not in them, NaN and infinities neither.

    Attributes:
        layer: Which layer.
        keys: The features; every array of shape ``(n, …)`` is aligned with them.
        count: Values, shape ``(n,)``.
        sum: Their sum, shape ``(n,)``.
        schema: ``2**schema`` buckets to a factor of two, shape ``(n,)``; it may fall, never rise.
        zero_exponent: Power of two up to which values of either sign lie in the zero bucket, shape
            ``(n,)``; it may rise, never fall.
        bucket_features: Position in ``keys`` of each bucket that is not empty, shape ``(c,)``, in
            increasing order.
        bucket_ranks: The bucket's distance from the zero bucket, with the sign of its values, shape
            ``(c,)``, increasing for each feature; 0 is the zero bucket.
        bucket_counts: Values in it, shape ``(c,)``; they add up to ``count``.
        bounds: Bounds placed for people, shape ``(n, b)``, increasing, filled up with +Inf.
        below: Values at or below each since the bounds were placed, shape ``(n, b)``.
    """

    layer: LayerKey
    keys: tuple[FeatureKey, ...]
    count: NDArray[np.int64]
    sum: NDArray[np.float64]
    schema: NDArray[np.int64]
    zero_exponent: NDArray[np.int64]
    bucket_features: NDArray[np.int64]
    bucket_ranks: NDArray[np.int64]
    bucket_counts: NDArray[np.int64]
    bounds: NDArray[np.float64]
    below: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the audit log: a transition, a flag, a freeze.

    Attributes:
        at: Unix seconds.
        what: Constant snake_case name, such as ``feature_firing`` or ``baseline_frozen``.
        subject: Text form of the feature or layer key.
        detail: The numbers that made it, in words.
    """

    at: float
    what: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What became of the batches since the daemon started; one consistent reading.

    ``received = accepted + sum(refused)`` and ``accepted = processed + sum(dropped) + in_flight``
    hold in every reading: a batch is counted in at the moment its fate is known, under one lock. Every
    counter only grows: what a hook process reports is added up as increments, so that a hook that
    restarts takes nothing away.

    Attributes:
        received: Batches read from streams.
        accepted: Of those, the ones that went into the queue.
        refused: Of those, the ones that broke a rule, by reason.
        processed: Accepted batches that reached the statistics.
        dropped: Accepted batches thrown away under load, by reason.
        in_flight: Accepted batches that wait or are being worked on.
        payload_bytes: Bytes of tensor payload in accepted batches.
        queue_bytes: Bytes of tensor payload that wait now.
        queue_limit_bytes: Bytes that may wait.
        streams: Open ingest streams.
        sampling_rate: Share of forward passes the daemon asks hooks to sample now.
        hook_batches_sent: Batches the hooks say they sent.
        hook_dropped: Batches the hooks say they dropped, by reason.
        hook_errors: Exceptions caught inside hooks.
        forwards: Forward passes the hooks saw.
        sampled_forwards: Of those, the ones they sampled.
        hook_seconds: Seconds spent inside hooks.
        forward_seconds: Seconds the hooked models spent in forward passes.
        governed_forwards: Forward passes during which hooks held their sampling rate down to keep
            their overhead budget.
        hook_sampling_rate: Sampling rate in force where the newest report came from.
        hook_overhead_ratio: Hooks' share of forward time over a recent stretch, as measured there.
    """

    received: int = 0
    accepted: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    processed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    payload_bytes: int = 0
    queue_bytes: int = 0
    queue_limit_bytes: int = 0
    streams: int = 0
    sampling_rate: float = 1.0
    hook_batches_sent: int = 0
    hook_dropped: Mapping[str, int] = field(default_factory=dict)
    hook_errors: int = 0
    forwards: int = 0
    sampled_forwards: int = 0
    hook_seconds: float = 0.0
    forward_seconds: float = 0.0
    governed_forwards: int = 0
    hook_sampling_rate: float = 0.0
    hook_overhead_ratio: float = 0.0

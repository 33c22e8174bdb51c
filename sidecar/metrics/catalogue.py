"""Every metric family the sidecar exports, as data.

The collector, the alert rules, the dashboard and the documents all name families through this
module, so none of them can mention a metric that does not exist.
"""

from dataclasses import dataclass
from enum import StrEnum

MODEL = ("model", "revision")
LAYER = ("model", "revision", "layer", "kind", "view")
FEATURE = ("model", "revision", "layer", "kind", "feature")
AUDIT = ("audit", "model", "against")

CONDITIONS = ("never_seen", "nonfinite", "silent", "saturated")
"""What can certainly hold of a feature: values of the label ``condition``."""

AUDIT_STATES = ("waiting", "running", "passed", "regressed", "failed", "overdue")
"""How an audit may stand; the place of each is its number in the metrics."""

NIGHT_STATES = AUDIT_STATES[2:5]
"""What a night that was judged may have come to."""

AUDIT_CHECKS = (
    "complete",
    "comparison",
    "counts",
    "reproduced",
    "verdict",
    "verified",
    "revision",
    "live",
)
"""What a night is checked for: values of the label ``check``."""

AUDIT_FATES = ("same", "moved", "lost", "new")
"""What becomes of a unit in the other model: values of the label ``fate``."""

SIDES = ("above", "below")
"""On which side of its baseline a value exceeds: values of the label ``side``."""

REFERENCES = ("baseline", "yesterday")
"""What the newest hour is compared with: values of the label ``reference``."""


class FamilyType(StrEnum):
    """How the values of a family behave."""

    COUNTER = "counter"
    GAUGE = "gauge"
    INFO = "info"
    HISTOGRAM = "histogram"
    NATIVE_HISTOGRAM = "native histogram"

    @property
    def exposed(self) -> str:
        """The name that text formats have for it."""
        return "histogram" if self is FamilyType.NATIVE_HISTOGRAM else str(self)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    Attributes:
        name: Counters end in ``_total``, infos in ``_info``.
        type: How its values behave.
        unit: What one is, in words.
        help: What it means; one sentence, shown by Prometheus and in the documents.
        labels: Label names, beside Prometheus' own ``job`` and ``instance``; of a histogram, those
            of its buckets.
    """

    name: str
    type: FamilyType
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def sample(self) -> str:
        """The name that its samples have, and queries use."""
        return f"{self.name}_bucket" if self.type is FamilyType.HISTOGRAM else self.name

    @property
    def exposed_unit(self) -> str:
        """The unit OpenMetrics states, which must be the end of the name; empty without one."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in ("seconds", "bytes", "ratio") else ""


def _counter(name: str, unit: str, text: str, *labels: str) -> Family:
    return Family(name, FamilyType.COUNTER, unit, text, labels)


def _gauge(name: str, unit: str, text: str, *labels: str) -> Family:
    return Family(name, FamilyType.GAUGE, unit, text, labels)


# --- flagged features ------------------------------------------------------------------------

FEATURE_STATE = _gauge(
    "sidecar_feature_state",
    "state",
    "State of a flagged feature: 0 unknown, 1 normal, 2 pending, 3 firing, 4 resolved.",
    *FEATURE,
)
FEATURE_SPIKING = _gauge(
    "sidecar_feature_spiking",
    "0 or 1",
    "Whether the spike detector holds the feature as firing; it stays 1 until the feature has been "
    "calm for several windows, so that no scrape interval misses it.",
    *FEATURE,
)
FEATURE_STATE_CHANGED = _gauge(
    "sidecar_feature_state_changed_timestamp_seconds",
    "unix seconds",
    "When the state of a flagged feature last changed.",
    *FEATURE,
)
FEATURE_EXCEEDANCE = _gauge(
    "sidecar_feature_exceedance_ratio",
    "ratio",
    "Share of sampled requests in the short window with a value beyond the feature's threshold; "
    "absent while nothing is sampled.",
    *FEATURE,
)
FEATURE_BASELINE_EXCEEDANCE = _gauge(
    "sidecar_feature_baseline_exceedance_ratio",
    "ratio",
    "Share of requests beyond the threshold in the baseline, as it was measured; absent without one.",
    *FEATURE,
)
FEATURE_THRESHOLD = _gauge(
    "sidecar_feature_threshold",
    "activation",
    "Baseline quantile beyond which a value exceeds: a value above the one with `side` `above`, or below "
    "the one with `side` `below`. A feature has those of the sides on which it is watched; absent without a "
    "baseline.",
    *FEATURE,
    "side",
)
FEATURE_LAST = _gauge(
    "sidecar_feature_last_activation",
    "activation",
    "The value of the newest closed window with samples that comes nearest to the threshold of the same "
    "`side` or is furthest beyond it: with `above` the greatest, with `below` the least. Absent before the "
    "first; the least, too, before there is a baseline.",
    *FEATURE,
    "side",
)
FEATURE_REQUESTS = _gauge(
    "sidecar_feature_window_requests",
    "requests",
    "Requests sampled in the short window; 0 means there is no data, not that the feature is quiet.",
    *FEATURE,
)
FEATURE_EVIDENCE = _gauge(
    "sidecar_feature_spike_evidence_log10",
    "power of ten",
    "Evidence that a flagged feature spikes; at sidecar_spike_threshold_log10 it fires, at half of that "
    "it is pending, and it starts again from nothing after an alarm. Absent while nothing is judged.",
    *FEATURE,
)
SPIKE_THRESHOLD = _gauge(
    "sidecar_spike_threshold_log10",
    "power of ten",
    "Evidence at which a flagged feature fires; it grows with the number of flagged features, so that "
    "the false alarms of all of them together stay at sidecar_spike_expected_false_alarms.",
)
FEATURE_LEVEL = _gauge(
    "sidecar_feature_level_ratio",
    "ratio",
    "Recent level of the share of requests beyond the threshold, with spikes cut off; absent before "
    "there is one.",
    *FEATURE,
)
FEATURE_TOLERATED = _gauge(
    "sidecar_feature_tolerated_ratio",
    "ratio",
    "Share of requests beyond the threshold that is still no evidence of a spike: a multiple of the "
    "baseline's share or of the recent level, whichever is more, and at least what the few requests of a "
    "short baseline cannot rule out.",
    *FEATURE,
)
FEATURE_SAMPLED = _counter(
    "sidecar_feature_requests_total",
    "requests",
    "Sampled requests on which the feature was judged.",
    *FEATURE,
)
FEATURE_EXCEEDED = _counter(
    "sidecar_feature_exceedances_total",
    "requests",
    "Of those, the ones with a value beyond the feature's threshold: for shares over any stretch of "
    "time.",
    *FEATURE,
)
FEATURE_SPIKES = _counter(
    "sidecar_feature_spikes_total",
    "spikes",
    "Times a flagged feature began to fire. In OpenMetrics and protobuf its exemplar names the newest "
    "evidence, as `evidence_id`.",
    *FEATURE,
)
FEATURE_CONDITION = _gauge(
    "sidecar_feature_condition",
    "0 or 1",
    "What certainly holds of a flagged feature, without statistics: values the baseline never saw, NaN "
    "or infinities, zeros only, or one value or the baseline's greatest all the time. Without a "
    "baseline only `nonfinite` is there.",
    *FEATURE,
    "condition",
)
FEATURE_DRIFT = _gauge(
    "sidecar_feature_drift_js_distance",
    "Jensen-Shannon distance",
    "How far the feature's distribution over the newest hour is from the reference, from 0 (the same) "
    "to 1 (nothing in common); absent before there is an hour to compare.",
    *FEATURE,
    "reference",
)
FEATURE_DRIFT_WASSERSTEIN = _gauge(
    "sidecar_feature_drift_wasserstein_sigma",
    "standard deviations",
    "How far the distribution over the newest hour has moved from the baseline (Wasserstein), in "
    "standard deviations of the baseline; absent before there is an hour to compare.",
    *FEATURE,
)
FEATURE_DRIFTING = _gauge(
    "sidecar_feature_drifting",
    "0 or 1",
    "Whether the distribution is further from the baseline than the baseline's own hours are apart; "
    "absent before there is an hour to compare.",
    *FEATURE,
)
FEATURE_INFO = Family(
    "sidecar_feature_info",
    FamilyType.INFO,
    "1",
    "Name, severity and owner of a flagged feature, its path in the console, on which side of its "
    "threshold it exceeds, and the slice of the traffic it is judged on; join on the feature's labels.",
    (*FEATURE, "name", "severity", "owner", "path", "direction", "slice"),
)
FEATURE_ACTIVATION = Family(
    "sidecar_feature_activation",
    FamilyType.NATIVE_HISTOGRAM,
    "activation",
    "All sampled activations since the sidecar started, as one native histogram: for quantiles. Only "
    "in the protobuf format, which Prometheus asks for where native histograms are switched on.",
    FEATURE,
)
FEATURE_LEVELS = Family(
    "sidecar_feature_activation_levels",
    FamilyType.HISTOGRAM,
    "activation",
    "The same activations in a few buckets placed by the baseline, with zero and negative bounds: for "
    "heat maps. Buckets only: with negative values a sum would be no counter.",
    (*FEATURE, "le"),
)
ANOMALY = _gauge(
    "sidecar_anomaly_factor",
    "times",
    "How many times as often as in its baseline a feature exceeds that nobody flagged and that the screen "
    "finds. Only of the least likely ones, `metrics.anomalies_limit` of all layers together and ten of a "
    "layer, that were found in two windows or more; the series ends a minute after it was found last.",
    *FEATURE,
)
FLAG_UNMATCHED = _gauge(
    "sidecar_flag_unmatched",
    "0 or 1",
    "A flag whose layer no hook registered, or not with that index: the feature has no series at all.",
    "flag",
)
SERIES_TRUNCATED = _gauge(
    "sidecar_series_truncated",
    "features or layers",
    "Flagged features, flags and layers left out of this scrape by the configured limits or because "
    "their labels equal another's: they cannot raise an alert. Histograms and heat maps left out by "
    "the same limits, with `subject` `histograms` and `heatmaps`.",
    "subject",
)
SERIES = _gauge(
    "sidecar_series",
    "series",
    "Series of this scrape in the sidecar's own families, native histograms included.",
)
SERIES_LIMIT = _gauge(
    "sidecar_series_limit", "series", "Most series of one scrape, all families together."
)

# --- layers and models -----------------------------------------------------------------------

MODEL_INFO = Family(
    "sidecar_model_info",
    FamilyType.INFO,
    "1",
    "A model revision of which hooks have registered layers.",
    MODEL,
)
LAYER_FEATURES = _gauge(
    "sidecar_layer_features", "features", "Features of a registered layer.", *LAYER
)
LAYER_FLAGGED = _gauge(
    "sidecar_layer_flagged_features", "features", "Flagged features of a registered layer.", *LAYER
)
LAYER_ROWS = _counter(
    "sidecar_layer_rows_total", "rows", "Sampled rows that reached the statistics.", *LAYER
)
LAYER_REQUESTS = _counter(
    "sidecar_layer_requests_total",
    "requests",
    "Sampled requests that reached the statistics.",
    *LAYER,
)
LAYER_NONFINITE = _counter(
    "sidecar_layer_nonfinite_total",
    "values",
    "NaN and infinite values seen; they are counted apart and enter no statistic.",
    *LAYER,
)
LAYER_FAILURES = _counter(
    "sidecar_layer_window_failures_total",
    "windows",
    "Windows of the layer that could not be closed for a fault of the sidecar's own, which its log has "
    "as `layer_failed`: nothing of the layer was judged in them. Other layers go on.",
    *LAYER,
)
LAYER_BASELINE_FROZEN = _gauge(
    "sidecar_layer_baseline_frozen",
    "0 or 1",
    "Whether the layer's baseline is frozen; until then nothing of it is judged.",
    *LAYER,
)
LAYER_BASELINE_REQUESTS = _gauge(
    "sidecar_layer_baseline_requests",
    "requests",
    "Requests in the frozen baseline, or learned so far.",
    *LAYER,
)
LAYER_BASELINE_WINDOWS = _gauge(
    "sidecar_layer_baseline_windows",
    "windows",
    "Windows in which the second half of the baseline measured how often features exceed; 0: frozen "
    "early, and what is expected is an upper bound.",
    *LAYER,
)
LAYER_BASELINE_INFO = Family(
    "sidecar_layer_baseline_info",
    FamilyType.INFO,
    "1",
    "Which frozen baseline a layer is judged by; the label `baseline` changes when it is replaced.",
    (*LAYER, "baseline"),
)
LAYER_SCREENED = _gauge(
    "sidecar_layer_screened_features",
    "features",
    "Features, flagged or not, that the screen judged in the newest window; 0 before the baseline is "
    "frozen.",
    *LAYER,
)
LAYER_SIGNIFICANT = _gauge(
    "sidecar_layer_significant_features",
    "features",
    "Of those, the ones that exceed more often than the baseline explains, at a false discovery rate "
    "of 5 %; absent while nothing is screened.",
    *LAYER,
)
LAYER_SHIFTED = _gauge(
    "sidecar_layer_shifted",
    "0 or 1",
    "Whether the layer as a whole has moved: at once when in a window with many significant features two "
    "flagged ones of the layer fire, in the same scrape as their spikes, and until fewer than two do; else "
    "after many such windows in a row. Absent while nothing is screened.",
    *LAYER,
)
LAYER_MEMORY = _gauge(
    "sidecar_layer_memory_bytes",
    "bytes",
    "Memory set aside for a layer's distributions; at full detail about five times that of a "
    "screened layer.",
    *LAYER,
)
LAYER_LAST_SAMPLE = _gauge(
    "sidecar_layer_last_sample_timestamp_seconds",
    "unix seconds",
    "When the newest sample of the layer arrived; 0: never.",
    *LAYER,
)

# --- ingest ----------------------------------------------------------------------------------

BATCHES_RECEIVED = _counter(
    "sidecar_batches_received_total",
    "batches",
    "Batches and unreadable messages that came off a stream: accepted + refused.",
)
BATCHES_ACCEPTED = _counter(
    "sidecar_batches_accepted_total",
    "batches",
    "Batches that went into the queue: processed + dropped + in flight.",
)
BATCHES_REFUSED = _counter(
    "sidecar_batches_refused_total",
    "batches",
    "Batches and messages turned away, by the reason of docs/errors.md: `queue_full` is load, every "
    "other reason a broken rule.",
    "reason",
)
BATCHES_PROCESSED = _counter(
    "sidecar_batches_processed_total", "batches", "Accepted batches that reached the statistics."
)
BATCHES_DROPPED = _counter(
    "sidecar_batches_dropped_total",
    "batches",
    "Accepted batches that never reached the statistics, by reason.",
    "reason",
)
BATCHES_IN_FLIGHT = _gauge(
    "sidecar_batches_in_flight", "batches", "Accepted batches that wait or are being worked on."
)
PAYLOAD_BYTES = _counter(
    "sidecar_payload_bytes_total", "bytes", "Tensor payload of accepted batches."
)
QUEUE_BYTES = _gauge("sidecar_queue_bytes", "bytes", "Tensor payload waiting in the ingest queue.")
QUEUE_LIMIT = _gauge("sidecar_queue_limit_bytes", "bytes", "Tensor payload that may wait.")
STREAMS = _gauge("sidecar_streams", "streams", "Open ingest streams; one a hooked process.")
SAMPLING_RATE = _gauge(
    "sidecar_sampling_ratio",
    "ratio",
    "Share of forward passes the sidecar asks hooks to sample; it falls under load.",
)

# --- hooks, by their own account -------------------------------------------------------------

HOOK_SENT = _counter(
    "sidecar_hook_batches_sent_total", "batches", "Batches the hooks say they sent."
)
HOOK_DROPPED = _counter(
    "sidecar_hook_batches_dropped_total",
    "batches",
    "Batches the hooks say they dropped rather than make the model wait, by reason.",
    "reason",
)
HOOK_ERRORS = _counter(
    "sidecar_hook_errors_total",
    "exceptions",
    "Exceptions caught inside hooks; the model never sees them.",
)
HOOK_FORWARDS = _counter(
    "sidecar_hook_forwards_total", "forward passes", "Forward passes of hooked models."
)
HOOK_SAMPLED = _counter(
    "sidecar_hook_sampled_forwards_total", "forward passes", "Forward passes the hooks sampled."
)
HOOK_SECONDS = _counter(
    "sidecar_hook_seconds_total", "seconds", "Time spent inside hooks in the model's own thread."
)
FORWARD_SECONDS = _counter(
    "sidecar_hook_forward_seconds_total", "seconds", "Time hooked models spent in forward passes."
)
HOOK_GOVERNED = _counter(
    "sidecar_hook_governed_forwards_total",
    "forward passes",
    "Forward passes during which hooks held their sampling rate down to keep their overhead budget.",
)
HOOK_SAMPLING_RATE = _gauge(
    "sidecar_hook_sampling_ratio",
    "ratio",
    "Sampling rate in force in the hooks, by their newest report; below sidecar_sampling_ratio when "
    "the plan asks for less or the governor holds it down.",
)
HOOK_OVERHEAD = _gauge(
    "sidecar_hook_overhead_ratio",
    "ratio",
    "Share of forward time that sampling took over the governor's newest stretch, by the newest report.",
)

# --- nightly audits --------------------------------------------------------------------------

AUDIT_STATE = _gauge(
    "sidecar_audit_state",
    "state",
    "How a nightly audit stands: 0 waiting for its first night, 1 running, 2 passed, 3 regressed, 4 failed, "
    "5 overdue.",
    *AUDIT,
)
AUDIT_NIGHT_STATE = _gauge(
    "sidecar_audit_night_state",
    "state",
    "What the newest judged night of an audit came to, also while another runs: 2 passed, 3 regressed, "
    "4 failed; absent before the first.",
    *AUDIT,
)
AUDIT_REGRESSED = _gauge(
    "sidecar_audit_regressed",
    "0 or 1",
    "Whether a night of an audit regressed and none has passed since; one that failed says neither.",
    *AUDIT,
)
AUDIT_CHECK_FAILED = _gauge(
    "sidecar_audit_check_failed",
    "0 or 1",
    "Whether a check of that night failed; absent where there was nothing to hold it against.",
    *AUDIT,
    "check",
)
AUDIT_CHECK_VALUE = _gauge(
    "sidecar_audit_check_value",
    "as the check",
    "What a check of that night measured; absent where that is no number.",
    *AUDIT,
    "check",
)
AUDIT_CHECK_LIMIT = _gauge(
    "sidecar_audit_check_limit",
    "as the check",
    "The most that may be without the check failing; absent where that is no number.",
    *AUDIT,
    "check",
)
AUDIT_UNITS = _gauge(
    "sidecar_audit_units",
    "units",
    "Units of all compared layers by what became of them in the other model, in that night: `same`, `moved`, "
    "`lost` or `new`; absent where nothing was compared.",
    *AUDIT,
    "fate",
)
AUDIT_FEATURES = _gauge(
    "sidecar_audit_features",
    "features",
    "Features that were pictured in that night.",
    *AUDIT,
)
AUDIT_LAST_END = _gauge(
    "sidecar_audit_last_end_timestamp_seconds",
    "unix seconds",
    "When that night was judged; absent before the first.",
    *AUDIT,
)
AUDIT_NEXT_START = _gauge(
    "sidecar_audit_next_start_timestamp_seconds",
    "unix seconds",
    "When the next night of an audit is due.",
    *AUDIT,
)
AUDIT_OVERDUE = _gauge(
    "sidecar_audit_overdue",
    "0 or 1",
    "Whether a night was due, is still not judged, and the next one is due as well.",
    *AUDIT,
)
AUDIT_NIGHTS = _gauge(
    "sidecar_audit_nights",
    "nights",
    "Judged nights that are kept, by what they came to: `passed`, `regressed` or `failed`.",
    *AUDIT,
    "state",
)

# --- jobs, storage, the daemon itself --------------------------------------------------------

JOBS = _gauge("sidecar_jobs", "jobs", "Visualisation jobs in the job table, by state.", "state")
JOB_RUNS = _counter(
    "sidecar_job_runs_total", "jobs", "Visualisation jobs that ran to an end, whichever it was."
)
JOB_SECONDS = _counter(
    "sidecar_job_run_seconds_total", "seconds", "Time those jobs took from start to end."
)
ARTIFACT_BYTES = _gauge("sidecar_artifact_bytes", "bytes", "Artifacts stored.")
ARTIFACTS = _gauge("sidecar_artifacts", "artifacts", "How many artifacts are stored.")
ARTIFACTS_REMOVED = _counter(
    "sidecar_artifacts_removed_total",
    "artifacts",
    "Unreferenced artifacts that were removed: for lack of room, bytes, or for their age.",
    "reason",
)
JOBS_QUARANTINED = _counter(
    "sidecar_jobs_quarantined_total",
    "jobs",
    "Visualisation jobs that killed their worker in every attempt; the same is refused for a while.",
)
JOBS_HELD_BACK = _counter(
    "sidecar_jobs_held_back_total",
    "jobs",
    "How often visualisation jobs went back into the queue for want of memory of the GPU, or for the model "
    "server's sake.",
    "reason",
)
JOB_GPU_FREE = _gauge(
    "sidecar_job_gpu_free_bytes",
    "bytes",
    "Free memory of the GPU that visualisation jobs run on, as a job last found it; absent where nobody asks.",
)
ARTIFACT_LIMIT = _gauge(
    "sidecar_artifact_limit_bytes",
    "bytes",
    "Artifacts that may be stored; beyond it the oldest unreferenced ones are removed.",
)
SNAPSHOT_TIMESTAMP = _gauge(
    "sidecar_snapshot_timestamp_seconds",
    "unix seconds",
    "When the newest whole snapshot of the statistics was written; 0: none yet.",
)
SNAPSHOT_INTERVAL = _gauge(
    "sidecar_snapshot_interval_seconds", "seconds", "Configured interval of snapshots."
)
SNAPSHOT_FAILURES = _counter(
    "sidecar_snapshot_failures_total", "snapshots", "Snapshots that could not be written."
)
QUARANTINED = _gauge(
    "sidecar_quarantined_files", "files", "State files and artifacts set aside as corrupt."
)
EVIDENCE_BYTES = _gauge(
    "sidecar_evidence_bytes", "bytes", "Memory of the slices and rows of flagged features."
)
EVIDENCE_LIMIT = _gauge(
    "sidecar_evidence_limit_bytes", "bytes", "Memory that those may take; then the oldest go."
)
EVIDENCE_DROPPED = _counter(
    "sidecar_evidence_dropped_total",
    "items",
    "Evidence that found no room, by what it was: whole windows, the slices of requests, slices of "
    "requests beyond evidence.slices_limit, rows, records.",
    "what",
)
RECORDING_BYTES = _gauge(
    "sidecar_recording_bytes", "bytes", "Recorded windows of flagged features on disk."
)
RECORDING_LIMIT = _gauge(
    "sidecar_recording_limit_bytes",
    "bytes",
    "Recorded windows that may be on disk; beyond it the oldest are removed. 0: nothing is recorded.",
)
WINDOWS_RECORDED = _counter(
    "sidecar_windows_recorded_total", "windows", "Closed windows of flagged features recorded."
)
WINDOWS_DROPPED = _counter(
    "sidecar_windows_dropped_total",
    "windows",
    "Closed windows that could not be recorded: backlog for too many waiting, disk for a disk that "
    "refused, error for what should not happen. A replay states them as gaps.",
    "reason",
)
STATISTICS_KERNELS = Family(
    "sidecar_statistics_kernels_info",
    FamilyType.INFO,
    "1",
    "What counts: numpy until the compiled kernels are ready, then numba.",
    ("kernels",),
)
STATISTICS_KERNELS_FAILED = _gauge(
    "sidecar_statistics_kernels_failed",
    "0 or 1",
    "Whether the kernels could not be compiled; numpy counts then, several times slower.",
)
STATISTICS_MEMORY = _gauge(
    "sidecar_statistics_memory_bytes",
    "bytes",
    "Memory set aside for the distributions of the registered layers.",
)
STATISTICS_MEMORY_LIMIT = _gauge(
    "sidecar_statistics_memory_limit_bytes",
    "bytes",
    "Memory that distributions may take: statistics.memory_bytes.",
)
EXPECTED_FALSE_ALARMS = _gauge(
    "sidecar_spike_expected_false_alarms",
    "alarms per 1,000 days",
    "Most spike alarms without a cause to be expected in 1,000 days, over all flagged features "
    "together, as long as what is tolerated holds.",
)
BUILD_INFO = Family(
    "sidecar_build_info",
    FamilyType.INFO,
    "1",
    "Version of the sidecar and sha256 of its configuration.",
    ("version", "config"),
)
COLLECT_ERRORS = _counter(
    "sidecar_collect_errors_total",
    "scrapes",
    "Scrapes that had to leave out a section because reading it failed.",
    "section",
)

FAMILIES: tuple[Family, ...] = (
    FEATURE_STATE,
    FEATURE_SPIKING,
    FEATURE_STATE_CHANGED,
    FEATURE_EXCEEDANCE,
    FEATURE_BASELINE_EXCEEDANCE,
    FEATURE_THRESHOLD,
    FEATURE_LAST,
    FEATURE_REQUESTS,
    FEATURE_EVIDENCE,
    SPIKE_THRESHOLD,
    EXPECTED_FALSE_ALARMS,
    FEATURE_LEVEL,
    FEATURE_TOLERATED,
    FEATURE_SAMPLED,
    FEATURE_EXCEEDED,
    FEATURE_SPIKES,
    FEATURE_CONDITION,
    FEATURE_DRIFT,
    FEATURE_DRIFT_WASSERSTEIN,
    FEATURE_DRIFTING,
    FEATURE_INFO,
    FEATURE_ACTIVATION,
    FEATURE_LEVELS,
    ANOMALY,
    FLAG_UNMATCHED,
    SERIES_TRUNCATED,
    SERIES,
    SERIES_LIMIT,
    MODEL_INFO,
    LAYER_FEATURES,
    LAYER_FLAGGED,
    LAYER_ROWS,
    LAYER_REQUESTS,
    LAYER_NONFINITE,
    LAYER_FAILURES,
    LAYER_BASELINE_FROZEN,
    LAYER_BASELINE_REQUESTS,
    LAYER_BASELINE_WINDOWS,
    LAYER_BASELINE_INFO,
    LAYER_SCREENED,
    LAYER_SIGNIFICANT,
    LAYER_SHIFTED,
    LAYER_MEMORY,
    LAYER_LAST_SAMPLE,
    BATCHES_RECEIVED,
    BATCHES_ACCEPTED,
    BATCHES_REFUSED,
    BATCHES_PROCESSED,
    BATCHES_DROPPED,
    BATCHES_IN_FLIGHT,
    PAYLOAD_BYTES,
    QUEUE_BYTES,
    QUEUE_LIMIT,
    STREAMS,
    SAMPLING_RATE,
    HOOK_SENT,
    HOOK_DROPPED,
    HOOK_ERRORS,
    HOOK_FORWARDS,
    HOOK_SAMPLED,
    HOOK_SECONDS,
    FORWARD_SECONDS,
    HOOK_GOVERNED,
    HOOK_SAMPLING_RATE,
    HOOK_OVERHEAD,
    AUDIT_STATE,
    AUDIT_NIGHT_STATE,
    AUDIT_REGRESSED,
    AUDIT_CHECK_FAILED,
    AUDIT_CHECK_VALUE,
    AUDIT_CHECK_LIMIT,
    AUDIT_UNITS,
    AUDIT_FEATURES,
    AUDIT_LAST_END,
    AUDIT_NEXT_START,
    AUDIT_OVERDUE,
    AUDIT_NIGHTS,
    JOBS,
    JOB_RUNS,
    JOB_SECONDS,
    JOBS_QUARANTINED,
    JOBS_HELD_BACK,
    JOB_GPU_FREE,
    ARTIFACT_BYTES,
    ARTIFACTS,
    ARTIFACTS_REMOVED,
    ARTIFACT_LIMIT,
    SNAPSHOT_TIMESTAMP,
    SNAPSHOT_INTERVAL,
    SNAPSHOT_FAILURES,
    QUARANTINED,
    EVIDENCE_BYTES,
    EVIDENCE_LIMIT,
    EVIDENCE_DROPPED,
    RECORDING_BYTES,
    RECORDING_LIMIT,
    WINDOWS_RECORDED,
    WINDOWS_DROPPED,
    STATISTICS_KERNELS,
    STATISTICS_KERNELS_FAILED,
    STATISTICS_MEMORY,
    STATISTICS_MEMORY_LIMIT,
    BUILD_INFO,
    COLLECT_ERRORS,
)
"""All families, in the order of the exposition and of the documents."""

SCALAR_FAMILIES: tuple[Family, ...] = tuple(
    family for family in FAMILIES if family.type is not FamilyType.NATIVE_HISTOGRAM
)
"""Those whose samples are numbers: all that text formats can hold."""

_SERIES_EACH = {
    FEATURE_CONDITION: len(CONDITIONS),
    FEATURE_DRIFT: len(REFERENCES),
    FEATURE_THRESHOLD: len(SIDES),
    FEATURE_LAST: len(SIDES),
}

FEATURE_SERIES = sum(
    _SERIES_EACH.get(family, 1)
    for family in SCALAR_FAMILIES
    if set(FEATURE) <= set(family.labels)
    and family.type is not FamilyType.HISTOGRAM
    and family is not ANOMALY
)
"""Most series of one flagged feature beside its histograms."""

LAYER_SERIES = 1 + sum(set(LAYER) <= set(family.labels) for family in FAMILIES)
"""Series of one layer, with the info of its model."""

_AUDIT_SERIES_EACH = {
    "check": len(AUDIT_CHECKS),
    "fate": len(AUDIT_FATES),
    "state": len(NIGHT_STATES),
}

AUDIT_SERIES = sum(
    _AUDIT_SERIES_EACH.get(family.labels[-1], 1)
    for family in FAMILIES
    if set(AUDIT) <= set(family.labels)
)
"""Most series of one nightly audit."""

OWN_SERIES = 190
"""More than the series that are there whatever is watched: ingest with at most 33 reasons thrice,
jobs, storage, the scrape itself, and the process's own of the client library."""

BORROWED: tuple[str, ...] = (
    "ALERTS",
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
)
"""Names that queries may use though Prometheus or its client library defines them."""


def sample_names() -> frozenset[str]:
    """Return every name an alert or a panel may query."""
    return frozenset({family.sample for family in FAMILIES} | set(BORROWED))

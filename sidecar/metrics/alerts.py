"""Every alert the sidecar ships, as data: its rule and its words; ``runbooks`` says what to do about it."""

from dataclasses import dataclass
from enum import StrEnum

from sidecar.metrics import catalogue

JOB = 'job="sidecar"'
"""The matcher of Prometheus' scrape job as it stands in expressions; rendering may rename the job."""

_ORIGIN = "job, instance"
_FEATURE = f"{_ORIGIN}, {', '.join(catalogue.FEATURE)}"
_LAYER = f"{_ORIGIN}, {', '.join(catalogue.LAYER)}"


class Subject(StrEnum):
    """What an alert is about, which decides its links."""

    FEATURE = "feature"
    LAYER = "layer"
    SIDECAR = "sidecar"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Camel case; the condition, not its cause.
        expr: PromQL; every metric in it is of the catalogue.
        for_seconds: How long the condition holds before the alert fires; None takes what the
            operator asks for when rendering.
        keep_firing_seconds: How long the alert still fires after the condition has ended; None is
            twice ``for_seconds``.
        severity: Value of the label ``severity``; empty where the expression brings the label along
            from the flag of the feature.
        subject: What it is about.
        summary: A static sentence, the same for all alerts of this name.
        description: A sentence with the values; Go template.
    """

    name: str
    expr: str
    for_seconds: int | None
    keep_firing_seconds: int | None
    severity: str
    subject: Subject
    summary: str
    description: str


def _value(family: catalogue.Family, form: str, otherwise: str) -> str:
    """Return a template that looks up another family's value for the feature of the alert."""
    names = ("job", "instance", *catalogue.FEATURE)
    matchers = ",".join(f"{name}=%q" for name in names)
    values = " ".join(f"$labels.{name}" for name in names)
    return (
        f"{{{{ with printf `{family.name}{{{matchers}}}` {values} | query }}}}"
        f"{{{{ . | first | value | {form} }}}}{{{{ else }}}}{otherwise}{{{{ end }}}}"
    )


_NAME = "{{ $labels.feature }}{{ with $labels.name }} ({{ . }}){{ end }}"
_WHERE = "{{ $labels.layer }} in {{ $labels.model }} at revision {{ $labels.revision }}"
_SPIKE = Alert(
    name="SidecarFeatureSpike",
    expr=(
        f"({catalogue.FEATURE_SPIKING.name} == 1)\n"
        f"* on ({_FEATURE}) group_left (name, severity, owner)\n"
        f"{catalogue.FEATURE_INFO.name}"
    ),
    for_seconds=None,
    keep_firing_seconds=None,
    severity="",
    subject=Subject.FEATURE,
    summary="A flagged feature fires far above its baseline.",
    description=(
        f"Feature {_NAME} of {_WHERE}: "
        f"{_value(catalogue.FEATURE_EXCEEDANCE, 'humanizePercentage', 'an unknown share')} "
        "of the sampled requests exceed its threshold of "
        f"{_value(catalogue.FEATURE_THRESHOLD, 'humanize', 'unknown height')}; in the baseline "
        f"{_value(catalogue.FEATURE_BASELINE_EXCEEDANCE, 'humanizePercentage', 'an unknown share')}"
        " do."
    ),
)

_UNSAMPLED = Alert(
    name="SidecarFeatureUnsampled",
    expr=(
        f"({catalogue.FEATURE_STATE.name} == 0 and {catalogue.FEATURE_REQUESTS.name} == 0\n"
        f"  unless on ({_ORIGIN}, model, layer, kind, feature) "
        f"{catalogue.FEATURE_REQUESTS.name} > 0)\n"
        f"* on ({_FEATURE}) group_left (name, owner)\n"
        f"{catalogue.FEATURE_INFO.name}"
    ),
    for_seconds=300,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.FEATURE,
    summary="A flagged feature is not sampled, so nothing can be said about it.",
    description=(
        f"Feature {_NAME} of {_WHERE} had no sampled request in its detection window, and neither has "
        "another revision of it. No data does not mean that the feature is quiet."
    ),
)

_UNMATCHED = Alert(
    name="SidecarFlagUnmatched",
    expr=f"{catalogue.FLAG_UNMATCHED.name} == 1",
    for_seconds=900,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="A flag names a feature that no hook has registered.",
    description="The flag {{ $labels.flag }} matches no registered feature of {{ $labels.instance }}.",
)

_DOWN = Alert(
    name="SidecarDown",
    expr=f"up{{{JOB}}} == 0",
    for_seconds=60,
    keep_firing_seconds=0,
    severity="critical",
    subject=Subject.SIDECAR,
    summary="A sidecar does not answer Prometheus.",
    description="{{ $labels.instance }} has not answered a scrape; its features are not watched.",
)

_ABSENT = Alert(
    name="SidecarAbsent",
    expr=f"absent(up{{{JOB}}})",
    for_seconds=300,
    keep_firing_seconds=0,
    severity="critical",
    subject=Subject.SIDECAR,
    summary="Prometheus knows no sidecar at all.",
    description="There is no scrape target of the job {{ $labels.job }}; nothing is watched.",
)

_DROPPED = Alert(
    name="SidecarSamplesDropped",
    expr=(
        f"(\n"
        f"  sum by ({_ORIGIN}) (rate({catalogue.BATCHES_DROPPED.name}[5m]))\n"
        f"  + sum by ({_ORIGIN}) "
        f'(rate({catalogue.BATCHES_REFUSED.name}{{reason="queue_full"}}[5m]))\n'
        f"  + sum by ({_ORIGIN}) (rate({catalogue.HOOK_DROPPED.name}[5m]))\n"
        f") / (\n"
        f"  sum by ({_ORIGIN}) (rate({catalogue.BATCHES_RECEIVED.name}[5m]))\n"
        f"  + sum by ({_ORIGIN}) (rate({catalogue.HOOK_DROPPED.name}[5m]))\n"
        f"  > 0\n"
        f") > 0.01"
    ),
    for_seconds=300,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="More than one percent of the sampled batches are lost under load.",
    description=(
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the batches are lost, in the hooks "
        "or in the sidecar."
    ),
)

_REFUSED = Alert(
    name="SidecarBatchesRefused",
    # A full queue is load, not a fault of the sender: SidecarSamplesDropped counts it.
    expr=(
        f"sum by ({_ORIGIN}, reason) "
        f'(increase({catalogue.BATCHES_REFUSED.name}{{reason!="queue_full"}}[5m])) > 0'
    ),
    for_seconds=60,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="Hooks send batches that the sidecar has to refuse.",
    description=(
        "{{ $labels.instance }} refused about {{ $value | humanize }} batches in five minutes: "
        "{{ $labels.reason }}."
    ),
)

_NONFINITE = Alert(
    name="SidecarNonFinite",
    expr=f"increase({catalogue.LAYER_NONFINITE.name}[5m]) > 0",
    for_seconds=0,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.LAYER,
    summary="A layer produces NaN or infinite activations.",
    description=(
        f"Layer {_WHERE} gave about {{{{ $value | humanize }}}} NaN or infinite values in five minutes."
    ),
)

_BASELINE = Alert(
    name="SidecarBaselineMissing",
    expr=(
        f"{catalogue.LAYER_BASELINE_FROZEN.name} == 0\n"
        f"and on ({_LAYER}) {catalogue.LAYER_FLAGGED.name} > 0\n"
        f"and on ({_LAYER}) rate({catalogue.LAYER_REQUESTS.name}[15m]) > 0"
    ),
    for_seconds=7200,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.LAYER,
    summary="A layer with flagged features and live traffic still has no baseline.",
    description=(
        f"Layer {_WHERE} has been sampled for two hours and its baseline is not frozen; its flagged "
        "features cannot be judged."
    ),
)

_JOBS = Alert(
    name="SidecarJobsFailing",
    expr=f'delta({catalogue.JOBS.name}{{state="failed"}}[30m]) > 0',
    for_seconds=0,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="Visualisation jobs end without a picture.",
    description=(
        "About {{ $value | humanize }} visualisation jobs of {{ $labels.instance }} failed in half an "
        "hour."
    ),
)

_SNAPSHOT = Alert(
    name="SidecarSnapshotStale",
    expr=(
        # Before its first snapshot a daemon is as old as its process.
        f"time() - ({catalogue.SNAPSHOT_TIMESTAMP.name} > 0 or process_start_time_seconds)\n"
        f"  > 10 * {catalogue.SNAPSHOT_INTERVAL.name}"
    ),
    for_seconds=300,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="The sidecar's statistics are not being saved.",
    description=(
        "The newest snapshot of {{ $labels.instance }} is {{ $value | humanizeDuration }} old; a crash "
        "would lose what came since."
    ),
)

_CORRUPT = Alert(
    name="SidecarStateCorrupt",
    expr=f"{catalogue.QUARANTINED.name} > 0",
    for_seconds=0,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="A saved file failed its checks and was set aside.",
    description=(
        "{{ $value }} state files or artifacts of {{ $labels.instance }} are corrupt; the daemon went on "
        "without them."
    ),
)

_HOOKS = Alert(
    name="SidecarHookErrors",
    expr=f"increase({catalogue.HOOK_ERRORS.name}[5m]) > 0",
    for_seconds=0,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="Hooks catch exceptions inside model servers.",
    description=(
        "Hooks that report to {{ $labels.instance }} caught about {{ $value | humanize }} exceptions "
        "in five minutes."
    ),
)

_TRUNCATED = Alert(
    name="SidecarSeriesTruncated",
    expr=f"{catalogue.SERIES_TRUNCATED.name} > 0",
    for_seconds=300,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="Some flagged features, layers or histograms are left out of the metrics.",
    description=(
        "{{ $labels.instance }} leaves out {{ $value }} {{ $labels.subject }}: no query sees them, and "
        "features that are left out cannot raise an alert."
    ),
)

_INCOMPLETE = Alert(
    name="SidecarScrapeIncomplete",
    expr=f"increase({catalogue.COLLECT_ERRORS.name}[5m]) > 0",
    for_seconds=60,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.SIDECAR,
    summary="Scrapes of the sidecar lack a section.",
    description=(
        "{{ $labels.instance }} could not read {{ $labels.section }} in about "
        "{{ $value | humanize }} scrapes of the last five minutes."
    ),
)

ALERTS: tuple[Alert, ...] = (
    _SPIKE,
    _UNSAMPLED,
    _UNMATCHED,
    _NONFINITE,
    _BASELINE,
    _DOWN,
    _ABSENT,
    _DROPPED,
    _REFUSED,
    _HOOKS,
    _JOBS,
    _SNAPSHOT,
    _CORRUPT,
    _TRUNCATED,
    _INCOMPLETE,
)
"""All alerts: about features, layers, then the sidecar itself."""

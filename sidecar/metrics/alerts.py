"""Every alert the sidecar ships, as data: its rule and its words; ``runbooks`` says what to do about it.

When a layer as a whole moves, hundreds of its features do; one alert tells of it, that of the layer. The
features' own ask ``_UNLESS_SHIFTED`` for that: it holds from the first window of a shift, which is in the
same scrape as the spikes of that window, and until the layer's alert ends. That alert is kept for a while,
so features that calm down some windows after their layer are not told. A feature that spikes a window
before its layer is seen to shift is told on its own, unless rules are rendered with a wait for that.
"""

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
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Camel case; the condition, not its cause.
        expr: PromQL; every metric in it is of the catalogue.
        for_seconds: How long the condition holds before the alert fires; None takes what the
            operator asks for when rendering.
        keep_firing_seconds: How long the alert still fires after the condition has ended; None takes
            what the operator asks for when rendering, or twice the wait of one that waits for windows.
        severity: Value of the label ``severity``; empty where the expression brings the label along
            from the flag of the feature.
        subject: What it is about.
        summary: A static sentence, the same for all alerts of this name.
        description: A sentence with the values; Go template.
        for_windows: Detection windows to wait on top of ``for_seconds``.
        with_evidence: Whether the daemon keeps which requests made it, for the feature's evidence page.
    """

    name: str
    expr: str
    for_seconds: int | None
    keep_firing_seconds: int | None
    severity: str
    subject: Subject
    summary: str
    description: str
    for_windows: int = 0
    with_evidence: bool = False

    @property
    def severity_words(self) -> str:
        """Whose severity it is, for documents."""
        if self.severity:
            return self.severity
        worst = "critical where a flag of the layer is, else warning"
        return worst if self.subject is Subject.LAYER else "that of the flag"


def _value(family: catalogue.Family, form: str, otherwise: str, matcher: str = "") -> str:
    """Return a template that looks up another family's value for the feature of the alert."""
    names = ("job", "instance", *catalogue.FEATURE)
    matchers = ",".join([*(f"{name}=%q" for name in names), *([matcher] if matcher else [])])
    values = " ".join(f"$labels.{name}" for name in names)
    return (
        f"{{{{ with printf `{family.name}{{{matchers}}}` {values} | query }}}}"
        f"{{{{ . | first | value | {form} }}}}{{{{ else }}}}{otherwise}{{{{ end }}}}"
    )


def _count(family: catalogue.Family, condition: str) -> str:
    """Return a template that counts the features of the alert's layer whose value is 1."""
    names = ("job", "instance", "model", "revision", "layer")
    matchers = ",".join([*(f"{name}=%q" for name in names), *([condition] if condition else [])])
    values = " ".join(f"$labels.{name}" for name in names)
    return (
        f"{{{{ with printf `count({family.name}{{{matchers}}} == 1)` {values} | query }}}}"
        f"{{{{ . | first | value }}}}{{{{ else }}}}0{{{{ end }}}}"
    )


def _layer_value(family: catalogue.Family) -> str:
    """Return a template that looks up another family's value for the layer of the alert."""
    names = ("job", "instance", *catalogue.LAYER)
    matchers = ",".join(f"{name}=%q" for name in names)
    values = " ".join(f"$labels.{name}" for name in names)
    return (
        f"{{{{ with printf `{family.name}{{{matchers}}}` {values} | query }}}}"
        f"{{{{ . | first | value }}}}{{{{ else }}}}an unknown number{{{{ end }}}}"
    )


_NUMBER = 'printf "%.4g"'
"""Form of an activation: the SI prefixes of ``humanize`` would say 709m of 0.709."""


def _drift(reference: str) -> str:
    found = f'reference="{reference}"'
    return _value(catalogue.FEATURE_DRIFT, 'printf "%.2g"', "an unknown distance", found)


def _threshold(side: str) -> str:
    """Return a template of a feature's threshold on one side."""
    return _value(catalogue.FEATURE_THRESHOLD, _NUMBER, "unknown height", f'side="{side}"')


def _beyond() -> str:
    """Return a template that says on which side of which threshold a feature exceeds."""
    above, below = map(_threshold, catalogue.SIDES)
    return (
        f'{{{{ if eq $labels.direction "below" }}}}fall below its threshold of {below}'
        f'{{{{ else if eq $labels.direction "both" }}}}exceed its upper threshold of {above} or fall '
        f"below its lower one of {below}{{{{ else }}}}exceed its threshold of {above}{{{{ end }}}}"
    )


def _newest() -> str:
    """Return a template of what the newest window holds beside the thresholds, side by side."""
    told = []
    for side, extreme in zip(catalogue.SIDES, ("greatest", "least"), strict=True):
        names = ("job", "instance", *catalogue.FEATURE)
        matchers = ",".join([*(f"{name}=%q" for name in names), f'side="{side}"'])
        values = " ".join(f"$labels.{name}" for name in names)
        told.append(
            f"{{{{ with printf `{catalogue.FEATURE_LAST.name}{{{matchers}}}` {values} | query }}}}"
            f" The {extreme} value of the newest window is {{{{ . | first | value | {_NUMBER} }}}}, "
            f"the threshold {_threshold(side)}.{{{{ end }}}}"
        )
    return "".join(told)


_ABOVE = 'side="above"'
_LEAST = _value(catalogue.FEATURE_LAST, _NUMBER, "unknown", 'side="below"')
"""Of a feature that is watched below alone."""

_SAME_LAYER = f"on ({_ORIGIN}, model, revision, layer)"
_SHIFTED = f"{catalogue.LAYER_SHIFTED.name} == 1"
_UNLESS_SHIFTED = (
    f"unless {_SAME_LAYER} {_SHIFTED}\n"
    f'  unless {_SAME_LAYER} ALERTS{{alertname="SidecarLayerShift", alertstate="firing"}}'
)
_FLAG = (
    f"* on ({_FEATURE}) group_left (name, severity, owner, slice)\n{catalogue.FEATURE_INFO.name}"
)
_SPIKE_FLAG = _FLAG.replace("slice)", "slice, direction)")
"""A spike has a side; values never seen, silent or stuck have none."""
_NAME = "{{ $labels.feature }}{{ with $labels.name }} ({{ . }}){{ end }}"
_WHERE = "{{ $labels.layer }} in {{ $labels.model }} at revision {{ $labels.revision }}"
_SPIKE = Alert(
    name="SidecarFeatureSpike",
    expr=(f"(\n  {catalogue.FEATURE_SPIKING.name} == 1\n  {_UNLESS_SHIFTED}\n)\n{_SPIKE_FLAG}"),
    for_seconds=None,
    keep_firing_seconds=None,
    severity="",
    subject=Subject.FEATURE,
    summary="A flagged feature is beyond its threshold in far more requests than in its baseline.",
    description=(
        f"Feature {_NAME} of {_WHERE}: "
        f"{_value(catalogue.FEATURE_EXCEEDANCE, 'humanizePercentage', 'an unknown share')} "
        "of the sampled requests{{ with $labels.slice }} of {{ . }}{{ end }} "
        f"{_beyond()}; in the baseline "
        f"{_value(catalogue.FEATURE_BASELINE_EXCEEDANCE, 'humanizePercentage', 'an unknown share')}"
        " do."
    ),
    with_evidence=True,
)

_SHIFT = Alert(
    name="SidecarLayerShift",
    # Told instead of the features' own alerts, so it is as severe as the worst of them may be.
    expr=(
        f'label_replace(\n  {_SHIFTED} and {_SAME_LAYER} {catalogue.FEATURE_INFO.name}{{severity="critical"}},\n'
        f'  "severity", "critical", "", ""\n)\n'
        f"or on ({_LAYER})\n"
        f'label_replace({_SHIFTED}, "severity", "warning", "", "")'
    ),
    for_seconds=None,
    keep_firing_seconds=None,
    severity="",
    subject=Subject.LAYER,
    summary="Many features of a layer fire above their baselines at once.",
    description=(
        f"Layer {_WHERE}: "
        f"{_layer_value(catalogue.LAYER_SIGNIFICANT)} of {_layer_value(catalogue.LAYER_SCREENED)} "
        "features exceed more often than their baseline explains; "
        f"{_count(catalogue.FEATURE_SPIKING, '')} flagged ones spike. Their own alerts are held back "
        "while the layer is shifted."
    ),
)


def _condition(name: str, condition: str, summary: str, words: str, windows: int = 0) -> Alert:
    """Return the alert on a condition that certainly holds of a flagged feature."""
    return Alert(
        name=name,
        expr=(
            "(\n"
            f"  max without (condition) "
            f'({catalogue.FEATURE_CONDITION.name}{{condition="{condition}"}} == 1)\n'
            f"  {_UNLESS_SHIFTED}\n)\n{_FLAG}"
        ),
        for_seconds=0 if windows else 60,
        keep_firing_seconds=None if windows else 300,
        severity="",
        subject=Subject.FEATURE,
        summary=summary,
        description=f"Feature {_NAME} of {_WHERE} {words}",
        for_windows=windows,
    )


_NEVER_SEEN = _condition(
    "SidecarFeatureNeverSeen",
    "never_seen",
    "A flagged feature keeps taking values that its baseline never saw.",
    f"takes values far outside the range of its baseline again and again.{_newest()}",
    # A condition holds for six windows after it was seen last. A single value far out comes by itself
    # where tails are heavy: with a tail that falls as the cube, as Student's t of three degrees has, a day
    # exceeds twice the greatest of the day before with probability 1 / (1 + 2**3). Two within a minute
    # do not come by chance.
    windows=9,
)
_SILENT = _condition(
    "SidecarFeatureSilent",
    "silent",
    "A flagged feature is zero on every sampled request.",
    "was zero on more requests in a row than its baseline makes possible by chance; it was sampled on "
    f"{_value(catalogue.FEATURE_REQUESTS, 'humanize', 'an unknown number of')} requests in the newest "
    "windows, so this is not missing data.",
)
_SATURATED = _condition(
    "SidecarFeatureSaturated",
    "saturated",
    "A flagged feature is stuck at one value or at the top of its range.",
    "has one and the same value, or the greatest of its baseline or more, on every sampled request: "
    f"{_value(catalogue.FEATURE_LAST, _NUMBER, _LEAST, _ABOVE)}.",
)

_DRIFT = Alert(
    name="SidecarFeatureDrift",
    expr=(
        f"({catalogue.FEATURE_DRIFTING.name} == 1)\n"
        f"* on ({_FEATURE}) group_left (name, owner, slice)\n"
        f"{catalogue.FEATURE_INFO.name}"
    ),
    for_seconds=600,
    keep_firing_seconds=0,
    severity="info",
    subject=Subject.FEATURE,
    summary="The distribution of a flagged feature has moved away from its baseline.",
    description=(
        f"Feature {_NAME} of {_WHERE}: the newest hour is "
        f"{_drift('baseline')} from the baseline and {_drift('yesterday')} from the same hour of "
        "yesterday (Jensen-Shannon, 0 to 1), and "
        f"{_value(catalogue.FEATURE_DRIFT_WASSERSTEIN, 'humanize', 'an unknown number of')} standard "
        "deviations off."
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
        f"Layer {_WHERE} gave about {{{{ $value | humanize }}}} NaN or infinite values in five minutes; "
        f"""{_count(catalogue.FEATURE_CONDITION, 'condition="nonfinite"')} flagged features had some."""
    ),
)

_UNJUDGED = Alert(
    name="SidecarLayerUnjudged",
    expr=f"increase({catalogue.LAYER_FAILURES.name}[5m]) > 0",
    for_seconds=0,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.LAYER,
    summary="Windows of a layer could not be closed, so nothing of it was judged in them.",
    description=(
        f"Layer {_WHERE}: about {{{{ $value | humanize }}}} windows of the last five minutes could not be "
        "closed; spikes in them were not seen. Other layers are judged as before."
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

CHECK_WORDS = {
    "complete": "jobs are not done",
    "comparison": "layers break the gate on the comparison",
    "counts": "more units of a layer are moved or lost than before, as a share of it",
    "reproduced": "a portrait made again came out otherwise, as a share of a pixel's range",
    "verdict": "features whose portraits were trusted are trusted no longer",
    "verified": "stored manifests or pictures do not verify",
    "revision": "another revision is served than was audited",
    "live": "flagged features are not watched, or drift",
}
"""What it means that a check of a nightly audit failed."""


def _failed_checks() -> str:
    """Return a template that names the failed checks of the alert's audit, with their numbers."""
    names = ("job", "instance", "audit")
    of_audit = ",".join(f"{name}=%q" for name in names)
    values = " ".join(f"$labels.{name}" for name in names)
    words = "".join(
        f'{{{{ {"else " if place else ""}if eq .Labels.check "{name}" }}}}{words}'
        for place, (name, words) in enumerate(CHECK_WORDS.items())
    )
    value, limit = (
        f'printf `{family.name}{{{of_audit},check="%s"}}` {values} .Labels.check | query'
        for family in (catalogue.AUDIT_CHECK_VALUE, catalogue.AUDIT_CHECK_LIMIT)
    )
    number = f"{{{{ . | first | value | {_NUMBER} }}}}"
    return (
        f"{{{{ range printf `{catalogue.AUDIT_CHECK_FAILED.name}{{{of_audit}}} == 1` {values} "
        f'| query | sortByLabel "check" }}}} {{{{ .Labels.check }}}}: {words}{{{{ end }}}}'
        f"{{{{ $limit := {limit} }}}}{{{{ with {value} }}}} ({number}"
        f"{{{{ with $limit }}}}, at most {number}{{{{ end }}}}){{{{ end }}}};{{{{ end }}}}"
    )


_AUDITED = "{{ $labels.model }}{{ with $labels.against }} against {{ . }}{{ end }}"

_AUDIT_REGRESSED = Alert(
    name="SidecarAuditRegressed",
    expr=f"{catalogue.AUDIT_REGRESSED.name} == 1",
    for_seconds=0,
    keep_firing_seconds=300,
    severity="critical",
    subject=Subject.AUDIT,
    summary="A nightly audit finds that a model is no longer what it was.",
    description=(
        f"A night of audit {{{{ $labels.audit }}}} ({_AUDITED}) regressed, and none has passed since. "
        f"The newest failed in{_failed_checks()} its report has the pictures."
    ),
)

_AUDIT_OVERDUE = Alert(
    name="SidecarAuditOverdue",
    expr=f"{catalogue.AUDIT_OVERDUE.name} == 1",
    for_seconds=600,
    keep_firing_seconds=0,
    severity="warning",
    subject=Subject.AUDIT,
    summary="A nightly audit has not been judged though the next one is due.",
    description=(
        f"Audit {{{{ $labels.audit }}}} ({_AUDITED}) of {{{{ $labels.instance }}}} is a night late: "
        "nobody has looked at the model since."
    ),
)

_AUDIT_FAILED = Alert(
    name="SidecarAuditFailed",
    expr=f"{catalogue.AUDIT_NIGHT_STATE.name} == {catalogue.AUDIT_STATES.index('failed')}",
    for_seconds=0,
    keep_firing_seconds=300,
    severity="warning",
    subject=Subject.AUDIT,
    summary="A nightly audit could not be judged, because none of its jobs was done.",
    description=(
        f"The newest night of audit {{{{ $labels.audit }}}} ({_AUDITED}) failed:{_failed_checks()} "
        "it says nothing of the model, good or bad."
    ),
)

ALERTS: tuple[Alert, ...] = (
    _SPIKE,
    _NEVER_SEEN,
    _SILENT,
    _SATURATED,
    _UNSAMPLED,
    _DRIFT,
    _UNMATCHED,
    _SHIFT,
    _NONFINITE,
    _UNJUDGED,
    _BASELINE,
    _DOWN,
    _ABSENT,
    _DROPPED,
    _REFUSED,
    _HOOKS,
    _JOBS,
    _AUDIT_REGRESSED,
    _AUDIT_OVERDUE,
    _AUDIT_FAILED,
    _SNAPSHOT,
    _CORRUPT,
    _TRUNCATED,
    _INCOMPLETE,
)
"""All alerts: about features, layers, then the sidecar itself and its nightly audits."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes for queries and rules of people's own.

    Attributes:
        name: ``level:metric:operations``, as is usual in Prometheus.
        expr: PromQL.
        help: What it is; one sentence.
    """

    name: str
    expr: str
    help: str


def _share(stretch: str) -> str:
    return (
        f"rate({catalogue.FEATURE_EXCEEDED.name}[{stretch}])\n"
        f"/ (rate({catalogue.FEATURE_SAMPLED.name}[{stretch}]) > 0)"
    )


RECORDINGS: tuple[Recording, ...] = (
    Recording(
        "feature:sidecar_feature_exceedance:ratio5m",
        _share("5m"),
        "Share of requests above a flagged feature's threshold in five minutes.",
    ),
    Recording(
        "feature:sidecar_feature_exceedance:ratio1h",
        _share("1h"),
        "The same in an hour: both far above the baseline is a spike that lasts.",
    ),
    Recording(
        "layer:sidecar_layer_significant:ratio",
        f"{catalogue.LAYER_SIGNIFICANT.name} / ({catalogue.LAYER_SCREENED.name} > 0)",
        "Share of a layer's features that exceed more often than the baseline explains.",
    ),
    Recording(
        "instance:sidecar_feature_spikes:increase1d",
        f"sum by ({_ORIGIN}) (increase({catalogue.FEATURE_SPIKES.name}[1d]))",
        "Spikes of all flagged features in a day; compare it with "
        f"{catalogue.EXPECTED_FALSE_ALARMS.name} / 1000.",
    ),
)
"""What the rule file records beside the alerts."""

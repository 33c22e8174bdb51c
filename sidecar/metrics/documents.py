"""Renders the catalogue as documents: the list of metrics and the runbooks."""

from sidecar.metrics.alerts import ALERTS, RECORDINGS, Alert
from sidecar.metrics.catalogue import (
    AUDIT_SERIES,
    FAMILIES,
    FEATURE_ACTIVATION,
    FEATURE_LEVELS,
    FEATURE_SERIES,
    FEATURE_SPIKES,
    LAYER_SERIES,
)
from sidecar.metrics.dashboards import render_dashboard
from sidecar.metrics.rules import FOR_SECONDS, render_rules
from sidecar.metrics.ruletests import shipped_tests
from sidecar.metrics.runbooks import RUNBOOKS

_METRICS = f"""\
# Metrics and alerts

<!-- Generated from sidecar/metrics/ by tools/golden.py; do not edit. -->

The daemon answers `GET /metrics` at `listen.metrics` in the Prometheus text format, in OpenMetrics 1.0
or in Prometheus' protobuf format, whichever `Accept` asks for. Beside the families below it exports
`process_*` and `python_gc_*` of the Prometheus client library.

## Distributions

Every flagged feature has its activations twice, counted since the daemon started:

- `{FEATURE_ACTIVATION.name}`, a native histogram: one series with the whole distribution. It is
  there only in protobuf, which Prometheus asks for when native histograms are on: from 2.40 with
  `--enable-feature=native-histograms`, from 3.8 with `scrape_native_histograms: true`. Then
  `histogram_quantile(0.99, rate({FEATURE_ACTIVATION.name}[5m]))` is right to the bin of the
  statistics and the width of a bucket: 4.4 % of the value at schema 4, the usual one; finer where a feature's values lie close together,
  coarser where they span more than twenty factors of two, both signs together. Values below about a sixteenth of the feature's
  scale share the zero bucket.
- `{FEATURE_LEVELS.sample}`, up to 21 classic buckets, in every format and for every Prometheus. Their
  bounds are quantiles of the frozen baseline from 0.1 % to 99.99 %, zero, and multiples of the top
  one up to 10, rounded to two digits; they stay the same until the baseline is learned anew. Before
  there is one they are ±100, ±10, ±1, ±0.1 and 0. Grafana's heat map leaves out the zero and negative buckets of
  native histograms, so heat maps use these. `metrics.classic_buckets: false` switches them off.

Both are fed when a window closes; what the warm-up of a layer saw is in neither. A restart of the
daemon, and for the buckets new bounds, are what `rate()` takes for the restart of a counter.

## Exemplars

`{FEATURE_SPIKES.name}` carries one, `{{evidence_id="…"}}`, for features of which evidence is kept: in
OpenMetrics and in protobuf, at most 128 characters as the standard allows, else none. Its value is
always 1 and it has no timestamp, so that Prometheus (`--enable-feature=exemplar-storage`) stores an
evidence once, at the scrape that first saw it. The same evidence is found under `evidence_url` of the
alert.

## What never changes

- `sidecar_batches_received_total` = `sidecar_batches_accepted_total` +
  sum of `sidecar_batches_refused_total`, in every scrape.
- `sidecar_batches_accepted_total` = `sidecar_batches_processed_total` + sum of
  `sidecar_batches_dropped_total` + `sidecar_batches_in_flight`, in every scrape.
- A request id is never a label, and neither is an evidence id.
- What is not known is absent, not zero: a share without requests, a threshold without a baseline.

## Labels

| label | value |
|---|---|
| `model` | name of the model |
| `revision` | first 12 characters of the sha256 of its weights; a name of another form is kept whole |
| `layer` | canonical name of the layer |
| `kind` | `channel`, `neuron`, `head`, `latent`, `direction`, `logit` or `norm` |
| `feature` | index in the layer, with `;view` where the view is not the kind's default |
| `view` | how activations become one number, with `;scope` where not all positions count |

`<model>@<revision>/<layer>/<kind>/<feature>` is the path of the feature's page in the console.

## How many series

A flagged feature has at most {FEATURE_SERIES} series, its native histogram and 21 buckets, a layer {LAYER_SERIES},
a nightly audit {AUDIT_SERIES}, whatever the width of the model; features that are not flagged have none. Of features,
flags and layers at most `metrics.flagged_limit` each are exported, and of all series together, the process's own
included, at most `metrics.series_limit`. Within that, features come before layers, audits, flags, native
histograms and buckets, each in an order that stays the same; `sidecar_series_truncated` counts what
is left out. `sidecar_series` and `sidecar_series_limit` show how near the limit is.

## Families

| name | type | unit | labels | meaning |
|---|---|---|---|---|
"""

_RECORDINGS = """
## Recording rules

Computed by Prometheus from the same rule file, for queries of your own; no shipped alert needs them. The
spike's alert has no second window of its own: the detector behind it adds up evidence over windows, and
stays firing until the feature has been calm for several.

| name | meaning |
|---|---|
"""

_ALERTS = """
## Alerts

The rules are `deploy/prometheus/rules/sidecar.yaml`. Each has a runbook.

Spikes and shifts do not wait. The spike's detector has bounded false alarms before it says
`sidecar_feature_spiking`; a shift is told at the first loud window in which two flagged features of the layer
fire, in place of them. From the end of its window to the firing alert there is at most one scrape interval
and one evaluation interval, 10 s with the shipped files. Both alerts are kept for two minutes after they were
last seen, so that a restart of the daemon, kill -9 included, ends nothing and announces nothing again.
`sidecar rules render` has both as options, `--for-seconds` and `--keep-firing-seconds`.

| name | severity | holds for | meaning |
|---|---|---|---|
"""

_SHIFT = """
## When a layer moves as a whole

Hundreds of features may spike in the same minute. `SidecarLayerShift` tells of it once, as severe as the
worst flag of the layer, and the features' own alerts ask for it in their expressions, so that this works
without Alertmanager; the files in `deploy/alertmanager/` hold them back there, too.

- *At the beginning* a layer and its features are judged in the same window: when it is loud and two of its
  flagged features fire, `sidecar_layer_shifted` is 1 in the scrape that shows their spikes, and at every
  evaluation one alert fires, the layer's. A single flagged feature that fires is told itself. A layer whose
  baseline was measured in fewer windows than `screen.baseline_windows` (360) is not screened
  (`sidecar_layer_shifted` is absent), and its features are told each on their own.
- *A scrape between them* is rare: two kinds of one layer whose windows close at different times, or two
  replicas. The first features fire then. The shipped Alertmanager waits 5 s (`group_wait`) before it tells
  people, and what the layer's alert has overtaken by then is inhibited. That alert may come up to a scrape
  and an evaluation later, 10 s: a longer `group_wait` holds back those features, too, and delays every page.
- *A layer that moves slowly*, over several windows: the features that spike before more than one in twenty of
  the layer do are told on their own, once each; from then on the layer's alert is told, and no other of its
  features. Where that is too much, `sidecar rules render --for-seconds` with more than a detection window,
  a scrape interval and an evaluation interval together, 10 + 5 + 5 s with the shipped files, lets such an
  alert be pending and withdraws it in time, and every spike is told so much later.
- *At the end* features may calm down some windows after their layer. The layer's alert is kept for
  `--keep-firing-seconds`, two minutes, and only then is a feature told that still spikes.
- *Without two flagged features that fire* a layer is shifted after 30 loud windows in a row
  (`screen.pending_windows`): bursts that all features share are over by then, or nearly so
  ([what was measured](detection.md#the-screen)).
- A feature that fired before the shift fires for two minutes more, inhibited in Alertmanager, and is told
  again after the shift if it still spikes.
"""

_COPIED = """\
# Copied from sidecar/metrics/cases/ by tools/golden.py; do not edit. `sidecar rules test` runs them against
# rules with your addresses, and so does `promtool test rules` against the committed ones.
"""


def render_metric_docs() -> str:
    """Return ``docs/metrics.md``: every family and every alert."""
    families = "".join(
        f"| `{f.name}` | {f.type} | {f.unit} | {', '.join(f'`{n}`' for n in f.labels)} | {f.help} |\n"
        for f in FAMILIES
    )
    recordings = "".join(f"| `{one.name}` | {one.help} |\n" for one in RECORDINGS)
    alerts = "".join(_alert_row(alert) for alert in ALERTS)
    return _METRICS + families + _RECORDINGS + recordings + _ALERTS + alerts + _SHIFT


def _alert_row(alert: Alert) -> str:
    hold = (
        f"as rendered, {FOR_SECONDS} s" if alert.for_seconds is None else f"{alert.for_seconds} s"
    )
    if alert.for_windows:
        hold = f"{alert.for_windows} windows"
    link = f"[`{alert.name}`](alerts/{alert.name}.md)"
    return f"| {link} | {alert.severity_words} | {hold} | {alert.summary} |\n"


def render_runbook(name: str) -> str:
    """Return the runbook of an alert as Markdown, or an empty text when there is no such alert."""
    alert = next((alert for alert in ALERTS if alert.name == name), None)
    if alert is None:
        return ""
    book = RUNBOOKS[name]
    sections = (
        ("Meaning", book.meaning),
        ("Impact", book.impact),
        ("Diagnosis", book.diagnosis),
        ("Mitigation", book.mitigation),
        ("What the picture shows", book.picture),
        ("When to silence", book.silence),
    )
    text = "\n".join(f"## {title}\n\n{body}\n" for title, body in sections)
    head = f"# {name}\n\n{alert.summary} Severity: {alert.severity_words}.\n"
    return f"{head}\n```promql\n{alert.expr}\n```\n\n{text}"


def render_files() -> dict[str, str]:
    """Return every file generated from the catalogue: path in the project to text."""
    files = {
        "deploy/prometheus/rules/sidecar.yaml": render_rules(),
        "docs/metrics.md": render_metric_docs(),
        "grafana/dashboards/sidecar-overview.json": render_dashboard(),
    }
    for name, text in shipped_tests().items():
        files[f"deploy/prometheus/tests/{name}"] = _COPIED + text
    return files | {f"docs/alerts/{alert.name}.md": render_runbook(alert.name) for alert in ALERTS}

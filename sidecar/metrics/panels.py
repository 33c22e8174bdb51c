"""The overview dashboard as data: what each panel asks, and how the answer is read."""

from dataclasses import dataclass

from sidecar.metrics import catalogue as c
from sidecar.metrics.folded import AUDITS_ROW, COST_ROW, HEALTH_ROW, JOBS_ROW
from sidecar.metrics.judged import JUDGED_ROW
from sidecar.metrics.vocabulary import (
    BAD,
    FEATURE,
    GOOD,
    HOOK_SHARE,
    LATER,
    LAYER,
    MODEL,
    ON_FEATURE,
    OTHER,
    PLAIN,
    QUIET,
    SERIES_NAME,
    SIDECAR,
    STATES,
    WATCH,
    WINDOW,
    Column,
    Panel,
    Query,
    Row,
    about,
    of_feature,
    rate_by,
    total_rate,
)


def _in_table(family: c.Family) -> Query:
    """Return a column of the table; of what has two sides the upper, else the lower one."""
    known = about(family, "name, severity, owner, path, direction")
    if "side" in family.labels:  # a label more would be a line more
        above, below = (f'{family.name}{{{FEATURE},side="{side}"}}' for side in c.SIDES)
        one = f"(sum without (side) ({above}) or sum without (side) ({below}))"
        known = known.replace(of_feature(family), one, 1)
    # The thumbnail's address is made here, so that no series carries one.
    target = "${console:raw}/f/$1/portrait.png"
    return Query(f'label_replace({known}, "portrait", "{target}", "path", "(.+)")')


_FULL = f'sum(rate({c.BATCHES_REFUSED.name}{{{SIDECAR},reason="queue_full"}}{WINDOW}))'
_LOSS = (
    f"({total_rate(c.BATCHES_DROPPED)} + {_FULL} + {total_rate(c.HOOK_DROPPED)})"
    f" / ({total_rate(c.BATCHES_RECEIVED)} + {total_rate(c.HOOK_DROPPED)} > 0)"
)

STATS: tuple[Panel, ...] = (
    Panel(
        "Firing alerts",
        "stat",
        "Alerts of the sidecar that fire now, of all models. Red: read the table below, then the "
        "alert's runbook. Metric: `ALERTS`.",
        "none",
        (Query('count(ALERTS{alertname=~"Sidecar.+",alertstate="firing"}) or vector(0)'),),
        steps=((0, GOOD), (1, BAD)),
    ),
    Panel(
        "Spiking features",
        "stat",
        "Flagged features that the detector holds as firing; the alert follows after its waiting time. "
        f"Metric: `{c.FEATURE_SPIKING.name}`.",
        "none",
        (Query(f"sum({of_feature(c.FEATURE_SPIKING)})"),),
        no_value="nothing flagged",
        steps=((0, GOOD), (1, BAD)),
    ),
    Panel(
        "Flagged, not sampled",
        "stat",
        "Flagged features without a request in their window. Not quiet: nobody is looking. Above 0: "
        f"check the hooks of that layer. Metric: `{c.FEATURE_REQUESTS.name}`.",
        "none",
        (
            Query(
                f"count({of_feature(c.FEATURE_REQUESTS)} == 0) or "
                f"0 * count({of_feature(c.FEATURE_REQUESTS)})"
            ),
        ),
        no_value="nothing flagged",
        steps=((0, GOOD), (1, WATCH)),
    ),
    Panel(
        "Batches digested",
        "stat",
        "Batches a second that reached the statistics. 0 with a running model: look at the row “Cost on "
        f"the model server”. Metric: `{c.BATCHES_PROCESSED.name}`.",
        "suffix: /s",
        (Query(total_rate(c.BATCHES_PROCESSED)),),
        no_value="no traffic",
    ),
    Panel(
        "Dropped",
        "stat",
        "Share of batches that hooks or sidecar threw away rather than make the model wait. Above 1 %: "
        f"sample less. Metrics: `{c.HOOK_DROPPED.name}`, `{c.BATCHES_REFUSED.name}`, "
        f"`{c.BATCHES_DROPPED.name}`.",
        "percentunit",
        (Query(_LOSS),),
        no_value="no traffic",
        steps=((0, GOOD), (0.001, WATCH), (0.01, BAD)),
    ),
    Panel(
        "Sidecars up",
        "stat",
        "Sidecars that answered the newest scrape. Fewer than you run: a down one watches nothing. "
        "Metric: `up`.",
        "none",
        (Query(f"sum(up{{{SIDECAR}}})"),),
        no_value="none known",
        steps=((0, BAD), (1, GOOD)),
    ),
    Panel(
        "Cost on the model",
        "stat",
        "Time inside hooks as a share of the time in forward passes, measured by the hooks. Above 1 %: "
        f"sample less. Metrics: `{c.HOOK_SECONDS.name}`, `{c.FORWARD_SECONDS.name}`.",
        "percentunit",
        (Query(HOOK_SHARE),),
        no_value="no traffic",
        steps=((0, GOOD), (0.01, WATCH), (0.05, BAD)),
    ),
    Panel(
        "Jobs under way",
        "stat",
        "Visualisation jobs that wait or run. Growing for long: raise `jobs.concurrency` or look at the "
        f"failed ones. Metric: `{c.JOBS.name}`.",
        "none",
        (Query(f'sum({c.JOBS.name}{{{SIDECAR},state=~"queued|running"}})'),),
        no_value="no sidecar",
    ),
)
"""The first row: is all well?"""

_STATE = Row(
    "State of the flagged features",
    (
        Panel(
            "State",
            "state-timeline",
            "What the detector says of each flagged feature. Unknown: not sampled, or no baseline yet; "
            f"nothing can be said. Metric: `{c.FEATURE_STATE.name}`.",
            "none",
            (Query(about(c.FEATURE_STATE, "name"), SERIES_NAME),),
            size=(24, 8),
            no_value="nothing flagged",
            mappings=STATES,
            to_feature=True,
        ),
        Panel(
            "Flagged features",
            "table",
            "How each flagged feature stands now, with its portrait; a click opens its page. Share: "
            "requests beyond the threshold in the short window; compare it with the share in the "
            "baseline. The newest extreme is the greatest value of a window, or the least of what is watched "
            f"below. Metrics: `{c.FEATURE_STATE.name}`, `{c.FEATURE_EXCEEDANCE.name}`, "
            f"`{c.FEATURE_BASELINE_EXCEEDANCE.name}`, `{c.FEATURE_LAST.name}`, "
            f"`{c.FEATURE_THRESHOLD.name}`.",
            "short",
            tuple(
                _in_table(family)
                for family in (
                    c.FEATURE_STATE,
                    c.FEATURE_EXCEEDANCE,
                    c.FEATURE_BASELINE_EXCEEDANCE,
                    c.FEATURE_LAST,
                    c.FEATURE_THRESHOLD,
                )
            ),
            size=(24, 10),
            no_value="nothing flagged",
            mappings=STATES,
            columns=(
                Column("portrait", "Portrait", width=80),
                Column("name", "Name"),
                Column("model", "Model"),
                Column("revision", "Revision"),
                Column("layer", "Layer"),
                Column("kind", "Kind"),
                Column("feature", "Feature"),
                Column("Value #A", "State", "none"),
                Column("Value #B", "Share now", "percentunit"),
                Column("Value #C", "Share in baseline", "percentunit"),
                Column("direction", "Watched"),
                Column("Value #D", "Newest extreme", "short"),
                Column("Value #E", "Threshold", "short"),
                Column("severity", "Severity"),
                Column("owner", "Owner"),
            ),
            to_feature=True,
        ),
    ),
)

# A heat map holds one feature: the buckets of another have other bounds.
_ONE_FEATURE = (
    f'{c.FEATURE_INFO.name}{{{FEATURE},path=~"$portrait"}}'  # the repeated panel's own value
)

_SPIKES = Row(
    "What spiked",
    (
        Panel(
            "Share of requests beyond the threshold",
            "timeseries",
            "Share of sampled requests with a value beyond the feature's threshold; dashed: the share in "
            "its baseline. The line stops where nothing is sampled. Metrics: "
            f"`{c.FEATURE_EXCEEDANCE.name}`, `{c.FEATURE_BASELINE_EXCEEDANCE.name}`.",
            "percentunit",
            (
                Query(about(c.FEATURE_EXCEEDANCE, "name"), SERIES_NAME),
                Query(
                    about(c.FEATURE_BASELINE_EXCEEDANCE, "name"),
                    f"baseline {SERIES_NAME}",
                    QUIET,
                    dashed=True,
                ),
            ),
            no_value="not sampled",
            to_feature=True,
        ),
        Panel(
            "Newest extreme against the threshold",
            "timeseries",
            "Greatest value of the newest window, or the least of what is watched below; dashed: the threshold "
            "of that side, a quantile of the baseline. "
            f"Metrics: `{c.FEATURE_LAST.name}`, `{c.FEATURE_THRESHOLD.name}`.",
            "short",
            (
                Query(about(c.FEATURE_LAST, "name"), f"{SERIES_NAME} {{{{side}}}}"),
                Query(
                    about(c.FEATURE_THRESHOLD, "name"),
                    f"threshold {SERIES_NAME} {{{{side}}}}",
                    QUIET,
                    dashed=True,
                ),
            ),
            no_value="not sampled",
            to_feature=True,
        ),
        Panel(
            "Evidence against the threshold",
            "timeseries",
            "Evidence of a spike as a power of ten: it grows while more requests exceed than is tolerated. "
            "At the dashed line the feature fires, and the evidence starts again from nothing. Metrics: "
            f"`{c.FEATURE_EVIDENCE.name}`, `{c.SPIKE_THRESHOLD.name}`.",
            "none",
            (
                Query(about(c.FEATURE_EVIDENCE, "name"), SERIES_NAME),
                Query(
                    f"max({c.SPIKE_THRESHOLD.name}{{{SIDECAR}}})", "threshold", QUIET, dashed=True
                ),
            ),
            no_value="not judged",
            to_feature=True,
        ),
        Panel(
            "Activations of $portrait",
            "heatmap",
            "How many sampled activations a second lie where, in buckets placed by the baseline: its "
            "quantiles, zero, and a few bounds far above. Zero and negative values have their place. "
            "Choose features in the variable `portrait`. For exact quantiles ask the native histogram "
            f"`{c.FEATURE_ACTIVATION.name}`. Metric: `{c.FEATURE_LEVELS.sample}`.",
            "short",
            (
                Query(
                    f"sum by (le) (rate({c.FEATURE_LEVELS.sample}{{{FEATURE}}}{WINDOW})"
                    f" * on ({ON_FEATURE}) group_left () {_ONE_FEATURE})",
                    "{{le}}",
                ),
            ),
            size=(12, 9),
            no_value="not sampled",
            repeat="portrait",
        ),
        Panel(
            "Portrait of $portrait",
            "text",
            "An input that drives this feature as hard as the network allows: what it looks for, not "
            "what the traffic held. Choose features in the variable `portrait`. The picture is loaded "
            "from the console by your browser: set the variable `console` to an address it can reach.",
            size=(6, 9),
            text=(
                '<a href="${console:raw}/f/${portrait:raw}">'
                '<img src="${console:raw}/f/${portrait:raw}/portrait.png" width="256" height="256" '
                'alt="Portrait of ${portrait:raw}, or a note that there is none yet" '
                'loading="lazy"></a>'
            ),
            repeat="portrait",
        ),
    ),
)

_OF_LAYER = "{{model}} {{layer}} {{kind}}"

_LAYERS = Row(
    "Layers",
    (
        Panel(
            "Share of the layer that is significant",
            "timeseries",
            "Share of all features of a layer, flagged or not, that exceed more often than the baseline "
            "explains. A few at a time are chance; many at once mean that the layer as a whole has moved. "
            f"Metrics: `{c.LAYER_SIGNIFICANT.name}`, `{c.LAYER_SCREENED.name}`.",
            "percentunit",
            (
                Query(
                    f"{c.LAYER_SIGNIFICANT.name}{{{LAYER}}} / "
                    f"({c.LAYER_SCREENED.name}{{{LAYER}}} > 0)",
                    _OF_LAYER,
                ),
            ),
            no_value="not screened",
        ),
        Panel(
            "Sampled requests",
            "timeseries",
            "Requests a second that reached the statistics, by layer. Layers of one model should run "
            f"together. Metric: `{c.LAYER_REQUESTS.name}`.",
            "reqps",
            (
                Query(
                    rate_by(c.LAYER_REQUESTS, "model, revision, layer, kind", LAYER),
                    "{{model}} {{layer}} {{kind}}",
                ),
            ),
            no_value="no traffic",
        ),
        Panel(
            "Time since the newest sample",
            "timeseries",
            "Seconds since the layer was last sampled. Growing: no traffic, or the hook is gone. Metric: "
            f"`{c.LAYER_LAST_SAMPLE.name}`.",
            "s",
            (
                Query(
                    f"time() - ({c.LAYER_LAST_SAMPLE.name}{{{LAYER}}} > 0)",
                    "{{model}} {{layer}} {{kind}}",
                ),
            ),
            no_value="never sampled",
        ),
        Panel(
            "NaN and infinite values",
            "timeseries",
            "Values a second that are no numbers. Any at all: find the first layer of the network that "
            f"has them. Metric: `{c.LAYER_NONFINITE.name}`.",
            "suffix: /s",
            (
                Query(
                    f"{rate_by(c.LAYER_NONFINITE, 'model, revision, layer, kind', LAYER)} > 0",
                    "{{model}} {{layer}} {{kind}}",
                ),
            ),
            no_value="none",
        ),
    ),
)

ROWS: tuple[Row, ...] = (
    _STATE,
    _SPIKES,
    _LAYERS,
    JUDGED_ROW,
    JOBS_ROW,
    AUDITS_ROW,
    COST_ROW,
    HEALTH_ROW,
)
"""The rows below: what is the case, what spiked, where, why, then jobs, cost and health."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the dashboard that is filled from a label; ``query`` chains it to those before."""

    name: str
    label: str
    family: c.Family
    selector: str
    description: str
    all: bool = True


VARIABLES: tuple[Variable, ...] = (
    Variable("job", "job", c.BUILD_INFO, "", "Scrape job."),
    Variable("instance", "instance", c.BUILD_INFO, 'job=~"$job"', "Sidecar."),
    Variable("model", "model", c.MODEL_INFO, SIDECAR, "Model."),
    Variable("revision", "revision", c.MODEL_INFO, f'{SIDECAR},model=~"$model"', "Its weights."),
    Variable("layer", "layer", c.LAYER_FEATURES, MODEL, "Layer."),
    Variable("kind", "kind", c.LAYER_FEATURES, f'{MODEL},layer=~"$layer"', "What its units are."),
    Variable("feature", "feature", c.FEATURE_INFO, LAYER, "Flagged feature."),
    Variable("portrait", "path", c.FEATURE_INFO, FEATURE, "Portraits to show.", all=False),
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Marks on the time axis."""

    name: str
    expr: str
    colour: str
    title: str
    text: str
    on: bool = True


ANNOTATIONS: tuple[Annotation, ...] = (
    Annotation(
        "Firing alerts",
        'ALERTS{alertname=~"Sidecar.+",alertstate="firing"}',
        BAD,
        "{{alertname}}",
        "{{model}} {{layer}} {{kind}} {{feature}} {{name}}",
    ),
    Annotation(
        "New revisions",
        f"{c.MODEL_INFO.name}{{{SIDECAR}}} unless {c.MODEL_INFO.name}{{{SIDECAR}}} offset 2m",
        PLAIN,
        "new revision of {{model}}",
        "{{revision}}",
    ),
    Annotation(
        "New baselines",
        f"{c.LAYER_BASELINE_INFO.name}{{{SIDECAR}}} "
        f"unless {c.LAYER_BASELINE_INFO.name}{{{SIDECAR}}} offset 2m",
        LATER,
        "new baseline of {{layer}}",
        "{{model}} {{kind}} {{baseline}}",
    ),
    Annotation(
        "Restarts of a sidecar",
        f"changes(process_start_time_seconds{{{SIDECAR}}}[2m]) > 0",
        OTHER,
        "restart of {{instance}}",
        "",
    ),
    Annotation(
        "Finished jobs",
        f'delta({c.JOBS.name}{{{SIDECAR},state="done"}}[1m]) > 0',
        GOOD,
        "a picture was finished",
        "{{instance}}",
        on=False,
    ),
)

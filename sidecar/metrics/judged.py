"""A folded row of the overview dashboard: how features were judged, certain conditions and drift."""

from sidecar.metrics import catalogue as c
from sidecar.metrics.vocabulary import (
    BAD,
    FEATURE,
    LAYER,
    NO_YES,
    QUIET,
    SERIES_NAME,
    SIDECAR,
    WATCH,
    WINDOW,
    YES_NO,
    Panel,
    Query,
    Row,
    about,
)

JUDGED_ROW = Row(
    "Why: tolerance, conditions, drift",
    (
        Panel(
            "Share against what is tolerated",
            "timeseries",
            "Share of requests beyond the threshold over the dashboard's interval, its recent level, and "
            "(dashed) the share that is still no evidence. Evidence grows while the first is above the "
            f"last. Metrics: `{c.FEATURE_EXCEEDED.name}`, `{c.FEATURE_SAMPLED.name}`, "
            f"`{c.FEATURE_LEVEL.name}`, `{c.FEATURE_TOLERATED.name}`.",
            "percentunit",
            (
                Query(
                    f"rate({c.FEATURE_EXCEEDED.name}{{{FEATURE}}}{WINDOW}) / "
                    f"(rate({c.FEATURE_SAMPLED.name}{{{FEATURE}}}{WINDOW}) > 0)",
                    "{{layer}} {{kind}} {{feature}}",
                ),
                Query(about(c.FEATURE_LEVEL, "name"), f"level {SERIES_NAME}"),
                Query(
                    about(c.FEATURE_TOLERATED, "name"),
                    f"tolerated {SERIES_NAME}",
                    QUIET,
                    dashed=True,
                ),
            ),
            no_value="not judged",
            to_feature=True,
        ),
        Panel(
            "Spikes in a day, and false ones to be expected",
            "timeseries",
            "Spikes of all flagged features in the day before, and how many of them may be without a "
            "cause by the configured policy. Many more for weeks: traffic bursts beyond what is "
            f"tolerated; raise the flags' factor. Metrics: `{c.FEATURE_SPIKES.name}`, "
            f"`{c.EXPECTED_FALSE_ALARMS.name}`.",
            "none",
            (
                Query(f"sum(increase({c.FEATURE_SPIKES.name}{{{FEATURE}}}[1d]))", "spikes"),
                Query(
                    f"sum({c.EXPECTED_FALSE_ALARMS.name}{{{SIDECAR}}}) / 1000",
                    "false ones expected",
                    QUIET,
                    dashed=True,
                ),
            ),
            no_value="nothing flagged",
        ),
        Panel(
            "Spikes",
            "timeseries",
            "How often features began to fire. Each dot is evidence of one spike: a click on it leads to "
            "the requests that made it, where Prometheus stores exemplars. Metric: "
            f"`{c.FEATURE_SPIKES.name}`.",
            "none",
            (
                Query(
                    f"sum by (model, layer, kind, feature) "
                    f"(increase({c.FEATURE_SPIKES.name}{{{FEATURE}}}{WINDOW}))",
                    "{{layer}} {{kind}} {{feature}}",
                ),
            ),
            no_value="nothing flagged",
            exemplars=True,
        ),
        Panel(
            "Layer shifted",
            "state-timeline",
            "Whether a layer as a whole has moved; while it has, its features' own spikes tell nobody. "
            f"Metric: `{c.LAYER_SHIFTED.name}`.",
            "none",
            (Query(f"{c.LAYER_SHIFTED.name}{{{LAYER}}}", "{{model}} {{layer}} {{kind}}"),),
            no_value="not screened",
            mappings=NO_YES,
        ),
        Panel(
            "Certain conditions",
            "state-timeline",
            "What certainly holds of a flagged feature: values the baseline never saw, NaN or infinities, "
            "zeros only, or one value or the baseline's greatest all the time. A row appears while one "
            f"holds. Metric: `{c.FEATURE_CONDITION.name}`.",
            "none",
            (
                Query(
                    f"({about(c.FEATURE_CONDITION, 'name')}) == 1",
                    f"{{{{condition}}}}: {SERIES_NAME}",
                ),
            ),
            size=(24, 6),
            no_value="none holds",
            mappings=((0, "no", QUIET), (1, "holds", BAD)),
            to_feature=True,
        ),
        Panel(
            "Drift: Jensen-Shannon distance of an hour",
            "timeseries",
            "How far the newest hour is from the baseline and (dashed) from the same hour of yesterday, "
            "from 0 to 1. Far from the baseline and near to yesterday: the traffic changed for good. "
            f"Metric: `{c.FEATURE_DRIFT.name}`.",
            "none",
            (
                Query(
                    f'{c.FEATURE_DRIFT.name}{{{FEATURE},reference="baseline"}}',
                    "{{layer}} {{kind}} {{feature}}",
                ),
                Query(
                    f'{c.FEATURE_DRIFT.name}{{{FEATURE},reference="yesterday"}}',
                    "yesterday {{layer}} {{kind}} {{feature}}",
                    QUIET,
                    dashed=True,
                ),
            ),
            size=(8, 8),
            no_value="no hour yet",
            to_feature=True,
        ),
        Panel(
            "Drift: how far values moved",
            "timeseries",
            "Wasserstein distance of the newest hour from the baseline, in standard deviations of the "
            f"baseline. Metric: `{c.FEATURE_DRIFT_WASSERSTEIN.name}`.",
            "suffix: sd",
            (Query(about(c.FEATURE_DRIFT_WASSERSTEIN, "name"), SERIES_NAME),),
            size=(8, 8),
            no_value="no hour yet",
            to_feature=True,
        ),
        Panel(
            "Drifting features",
            "timeseries",
            "Flagged features whose newest hour is further from the baseline than the baseline's own "
            "hours are apart, by layer. A ticket, not a page: learn a new baseline if the change is "
            f"wanted. Metric: `{c.FEATURE_DRIFTING.name}`.",
            "none",
            (
                Query(
                    f"sum by (model, layer, kind) ({c.FEATURE_DRIFTING.name}{{{FEATURE}}})",
                    "{{model}} {{layer}} {{kind}}",
                    WATCH,
                ),
            ),
            size=(8, 8),
            no_value="no hour yet",
        ),
        Panel(
            "Unflagged features that stand out",
            "timeseries",
            "How many times as often as in its baseline a feature exceeds that nobody flagged; the least likely "
            "of those the screen found in two windows or more. None raises an alert: flag one with `sidecar "
            f"feature flag` to be told of it. Metric: `{c.ANOMALY.name}`.",
            "suffix: x",
            (Query(f"{c.ANOMALY.name}{{{LAYER}}}", "{{model}} {{layer}} {{kind}} {{feature}}"),),
            no_value="none",
        ),
        Panel(
            "Baseline frozen",
            "state-timeline",
            "Whether a layer's baseline is frozen; until then none of its features is judged. Metric: "
            f"`{c.LAYER_BASELINE_FROZEN.name}`.",
            "none",
            (Query(f"{c.LAYER_BASELINE_FROZEN.name}{{{LAYER}}}", "{{model}} {{layer}} {{kind}}"),),
            no_value="no layer",
            mappings=YES_NO,
        ),
        Panel(
            "Windows behind what is expected",
            "timeseries",
            "Windows of traffic in which the baseline's second half measured how often features exceed. "
            "Below 360 (an hour) the screen of a layer errs more often, and at 0 it was frozen early. "
            f"Metric: `{c.LAYER_BASELINE_WINDOWS.name}`.",
            "none",
            (Query(f"{c.LAYER_BASELINE_WINDOWS.name}{{{LAYER}}}", "{{model}} {{layer}} {{kind}}"),),
            no_value="no layer",
        ),
    ),
    folded=True,
)

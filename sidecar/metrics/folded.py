"""The folded rows of the overview dashboard: jobs, nightly audits, cost on the model server, the sidecar itself."""

from sidecar.metrics import catalogue as c
from sidecar.metrics.vocabulary import (
    AUDIT_STATES,
    BAD,
    GOOD,
    HOOK_SHARE,
    LAYER,
    NO_YES,
    OTHER,
    PLAIN,
    QUIET,
    SIDECAR,
    WATCH,
    WINDOW,
    Column,
    Panel,
    Query,
    Row,
    rate_by,
    total_rate,
)

JOBS_ROW = Row(
    "Jobs and portraits",
    (
        Panel(
            "Jobs",
            "timeseries",
            "Jobs in the job table by state. Failed ones growing: `sidecar job list`. Metric: "
            f"`{c.JOBS.name}`.",
            "none",
            tuple(
                Query(f'sum({c.JOBS.name}{{{SIDECAR},state="{state}"}})', state, colour)
                for state, colour in (
                    ("queued", QUIET),
                    ("running", PLAIN),
                    ("done", GOOD),
                    ("failed", BAD),
                    ("cancelled", WATCH),
                )
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Time of a job",
            "timeseries",
            "Mean time from start to end of the jobs that ended in the interval. Metrics: "
            f"`{c.JOB_SECONDS.name}`, `{c.JOB_RUNS.name}`.",
            "s",
            (Query(f"{total_rate(c.JOB_SECONDS)} / ({total_rate(c.JOB_RUNS)} > 0)", "mean"),),
            size=(8, 8),
            no_value="no job ended",
        ),
        Panel(
            "On disk",
            "timeseries",
            "Pictures and manifests; beyond the dashed limit the oldest unreferenced are removed. "
            f"Metrics: `{c.ARTIFACT_BYTES.name}`, `{c.ARTIFACT_LIMIT.name}`.",
            "bytes",
            (
                Query(f"{c.ARTIFACT_BYTES.name}{{{SIDECAR}}}", "artifacts {{instance}}"),
                Query(f"{c.ARTIFACT_LIMIT.name}{{{SIDECAR}}}", "limit", QUIET, dashed=True),
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
    ),
    folded=True,
)

AUDITS_ROW = Row(
    "Nightly audits",
    (
        Panel(
            "Audits",
            "table",
            "How every nightly audit stands, when its newest night was judged and when the next is due. "
            "Regressed: open its report. Failed or overdue: nobody has looked at the model. Metrics: "
            f"`{c.AUDIT_STATE.name}`, `{c.AUDIT_LAST_END.name}`, `{c.AUDIT_NEXT_START.name}`, "
            f"`{c.AUDIT_FEATURES.name}`.",
            "none",
            (
                Query(f"{c.AUDIT_STATE.name}{{{SIDECAR}}}"),
                Query(f"{c.AUDIT_LAST_END.name}{{{SIDECAR}}} * 1000"),
                Query(f"{c.AUDIT_NEXT_START.name}{{{SIDECAR}}} * 1000"),
                Query(f"{c.AUDIT_FEATURES.name}{{{SIDECAR}}}"),
            ),
            no_value="no audit",
            mappings=AUDIT_STATES,
            columns=(
                Column("audit", "Audit"),
                Column("model", "Model"),
                Column("against", "Against"),
                Column("Value #A", "State"),
                Column("Value #B", "Judged", "dateTimeFromNow"),
                Column("Value #C", "Next", "dateTimeFromNow"),
                Column("Value #D", "Features", "none"),
            ),
            to_audit=True,
        ),
        Panel(
            "Nights",
            "state-timeline",
            "What the newest judged night of each audit came to. Metric: "
            f"`{c.AUDIT_NIGHT_STATE.name}`.",
            "none",
            (Query(f"{c.AUDIT_NIGHT_STATE.name}{{{SIDECAR}}}", "{{audit}}"),),
            no_value="no night yet",
            mappings=AUDIT_STATES[2:5],
            to_audit=True,
        ),
        Panel(
            "Failed checks",
            "state-timeline",
            "What failed in the newest judged night; a line appears while it does. The alert says what "
            f"each means, the report why. Metric: `{c.AUDIT_CHECK_FAILED.name}`.",
            "none",
            (
                Query(
                    f"{c.AUDIT_CHECK_FAILED.name}{{{SIDECAR}}} == 1",
                    "{{audit}}: {{check}}",
                ),
            ),
            no_value="none failed",
            mappings=((0, "passed", GOOD), (1, "failed", BAD)),
            to_audit=True,
        ),
        Panel(
            "Checks against their limits",
            "timeseries",
            "What each check measured and (dashed) the most that may be; a check without a number is not "
            f"here. Metrics: `{c.AUDIT_CHECK_VALUE.name}`, `{c.AUDIT_CHECK_LIMIT.name}`.",
            "none",
            (
                Query(f"{c.AUDIT_CHECK_VALUE.name}{{{SIDECAR}}}", "{{audit}}: {{check}}"),
                Query(
                    f"{c.AUDIT_CHECK_LIMIT.name}{{{SIDECAR}}}",
                    "limit of {{audit}}: {{check}}",
                    QUIET,
                    dashed=True,
                ),
            ),
            no_value="no night yet",
            to_audit=True,
        ),
        Panel(
            "Units that are not the same",
            "timeseries",
            "Units of all compared layers that moved, are lost, or are new in the other model. A step means "
            f"that one of the two models, or the dataset, has changed. Metric: `{c.AUDIT_UNITS.name}`.",
            "none",
            tuple(
                Query(f'{c.AUDIT_UNITS.name}{{{SIDECAR},fate="{fate}"}}', f"{{{{audit}}}}: {fate}")
                for fate in c.AUDIT_FATES[1:]
            ),
            size=(8, 8),
            no_value="nothing compared",
            to_audit=True,
        ),
        Panel(
            "Kept nights by what they came to",
            "timeseries",
            "Judged nights whose reports are kept; failed ones say nothing of the model. Metric: "
            f"`{c.AUDIT_NIGHTS.name}`.",
            "none",
            tuple(
                Query(f'sum({c.AUDIT_NIGHTS.name}{{{SIDECAR},state="{state}"}})', state, colour)
                for _, state, colour in AUDIT_STATES[2:5]
            ),
            size=(8, 8),
            no_value="no audit",
        ),
        Panel(
            "Overdue",
            "state-timeline",
            "Whether a night was missed and the next one is due: its jobs wait or hang. Metric: "
            f"`{c.AUDIT_OVERDUE.name}`.",
            "none",
            (Query(f"{c.AUDIT_OVERDUE.name}{{{SIDECAR}}}", "{{audit}}"),),
            size=(8, 8),
            no_value="no audit",
            mappings=NO_YES,
            to_audit=True,
        ),
    ),
    folded=True,
)

COST_ROW = Row(
    "Cost on the model server",
    (
        Panel(
            "Time inside hooks",
            "timeseries",
            "Share of the time in forward passes that hooks take, by their own clock, and what the "
            "governor keeps within the plan's budget. Metrics: "
            f"`{c.HOOK_SECONDS.name}`, `{c.FORWARD_SECONDS.name}`, `{c.HOOK_OVERHEAD.name}`.",
            "percentunit",
            (
                Query(HOOK_SHARE, "share"),
                Query(f"max({c.HOOK_OVERHEAD.name}{{{SIDECAR}}})", "governed share"),
            ),
            no_value="no traffic",
        ),
        Panel(
            "Sampled forward passes",
            "timeseries",
            "Share of forward passes that hooks sample, the rate in force in them, the share of passes in "
            "which their own governor held it down, and (dashed) what the sidecar asks for; it asks for "
            f"less under load. Metrics: `{c.HOOK_SAMPLED.name}`, `{c.HOOK_FORWARDS.name}`, "
            f"`{c.HOOK_SAMPLING_RATE.name}`, `{c.HOOK_GOVERNED.name}`, `{c.SAMPLING_RATE.name}`.",
            "percentunit",
            (
                Query(
                    f"{total_rate(c.HOOK_SAMPLED)} / ({total_rate(c.HOOK_FORWARDS)} > 0)", "sampled"
                ),
                Query(f"min({c.HOOK_SAMPLING_RATE.name}{{{SIDECAR}}})", "in force"),
                Query(
                    f"{total_rate(c.HOOK_GOVERNED)} / ({total_rate(c.HOOK_FORWARDS)} > 0)",
                    "governor holds it down",
                ),
                Query(f"min({c.SAMPLING_RATE.name}{{{SIDECAR}}})", "asked for", QUIET, dashed=True),
            ),
            no_value="no traffic",
        ),
        Panel(
            "Batches dropped by hooks",
            "timeseries",
            "Batches a second dropped in the model server rather than make it wait, by reason. Metric: "
            f"`{c.HOOK_DROPPED.name}`.",
            "suffix: /s",
            (Query(rate_by(c.HOOK_DROPPED, "reason"), "{{reason}}"),),
            no_value="no hook has reported",
        ),
        Panel(
            "Exceptions inside hooks",
            "timeseries",
            "Exceptions a second caught inside hooks; the model never sees them, their samples are lost. "
            f"Metric: `{c.HOOK_ERRORS.name}`.",
            "suffix: /s",
            (Query(total_rate(c.HOOK_ERRORS), "errors", BAD),),
            no_value="no hook has reported",
        ),
    ),
    folded=True,
)

HEALTH_ROW = Row(
    "The sidecar itself",
    (
        Panel(
            "What became of the batches",
            "timeseries",
            "Batches a second; processed, dropped and refused add up to received, but for those in "
            f"flight. Metrics: `{c.BATCHES_PROCESSED.name}`, `{c.BATCHES_DROPPED.name}`, "
            f"`{c.BATCHES_REFUSED.name}`, `{c.BATCHES_RECEIVED.name}`.",
            "suffix: /s",
            (
                Query(total_rate(c.BATCHES_PROCESSED), "processed", GOOD),
                Query(total_rate(c.BATCHES_DROPPED), "dropped", WATCH),
                Query(total_rate(c.BATCHES_REFUSED), "refused", BAD),
            ),
            size=(8, 8),
            no_value="no traffic",
            stacked=True,
        ),
        Panel(
            "Refused batches",
            "timeseries",
            "Batches a second that were turned away, by the reason of docs/errors.md. Metric: "
            f"`{c.BATCHES_REFUSED.name}`.",
            "suffix: /s",
            (Query(f"{rate_by(c.BATCHES_REFUSED, 'reason')} > 0", "{{reason}}"),),
            size=(8, 8),
            no_value="none",
        ),
        Panel(
            "Windows not judged",
            "timeseries",
            "Windows of a layer in five minutes that the sidecar could not close: nothing of the layer was "
            "judged in them. Any at all: the daemon's log has the trace under `layer_failed`. Metric: "
            f"`{c.LAYER_FAILURES.name}`.",
            "none",
            (
                Query(
                    f"sum by (model, revision, layer, kind) "
                    f"(increase({c.LAYER_FAILURES.name}{{{LAYER}}}[5m])) > 0",
                    "{{model}} {{layer}} {{kind}}",
                    BAD,
                ),
            ),
            size=(8, 8),
            no_value="none",
        ),
        Panel(
            "Queue",
            "timeseries",
            "Payload that waits for the statistics; at the dashed limit batches are dropped. Metrics: "
            f"`{c.QUEUE_BYTES.name}`, `{c.QUEUE_LIMIT.name}`.",
            "bytes",
            (
                Query(f"{c.QUEUE_BYTES.name}{{{SIDECAR}}}", "{{instance}}"),
                Query(f"{c.QUEUE_LIMIT.name}{{{SIDECAR}}}", "limit", QUIET, dashed=True),
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Streams and batches in flight",
            "timeseries",
            "Open streams, one a hooked process, and batches that wait or are being worked on. Metrics: "
            f"`{c.STREAMS.name}`, `{c.BATCHES_IN_FLIGHT.name}`.",
            "none",
            (
                Query(f"sum({c.STREAMS.name}{{{SIDECAR}}})", "streams", PLAIN),
                Query(f"sum({c.BATCHES_IN_FLIGHT.name}{{{SIDECAR}}})", "in flight", OTHER),
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Payload",
            "timeseries",
            f"Tensor payload of accepted batches. Metric: `{c.PAYLOAD_BYTES.name}`.",
            "Bps",
            (Query(total_rate(c.PAYLOAD_BYTES), "payload"),),
            size=(8, 8),
            no_value="no traffic",
        ),
        Panel(
            "Memory",
            "timeseries",
            "Resident memory of the daemon; jobs run in processes of their own. Metric: "
            "`process_resident_memory_bytes`.",
            "bytes",
            (Query(f"process_resident_memory_bytes{{{SIDECAR}}}", "{{instance}}"),),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "CPU",
            "timeseries",
            "Cores the daemon uses. At one core for long, batches will be dropped. Metric: "
            "`process_cpu_seconds_total`.",
            "suffix: cores",
            (
                Query(
                    f"rate(process_cpu_seconds_total{{{SIDECAR}}}{WINDOW})",
                    "{{instance}}",
                ),
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Age of the newest snapshot",
            "timeseries",
            "What kill -9 would lose; the dashed line is the configured interval. Metrics: "
            f"`{c.SNAPSHOT_TIMESTAMP.name}`, `{c.SNAPSHOT_INTERVAL.name}`.",
            "s",
            (
                Query(f"time() - ({c.SNAPSHOT_TIMESTAMP.name}{{{SIDECAR}}} > 0)", "{{instance}}"),
                Query(f"{c.SNAPSHOT_INTERVAL.name}{{{SIDECAR}}}", "interval", QUIET, dashed=True),
            ),
            size=(8, 8),
            no_value="no snapshot yet",
        ),
        Panel(
            "Scrape",
            "timeseries",
            "Time Prometheus needs for one scrape. Metric: `scrape_duration_seconds`.",
            "s",
            (Query(f"scrape_duration_seconds{{{SIDECAR}}}", "{{instance}}"),),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Series",
            "timeseries",
            "Series of one scrape; at the dashed limit features are left out. Metrics: "
            f"`{c.SERIES.name}`, `{c.SERIES_LIMIT.name}`.",
            "none",
            (
                Query(f"{c.SERIES.name}{{{SIDECAR}}}", "{{instance}}"),
                Query(f"{c.SERIES_LIMIT.name}{{{SIDECAR}}}", "limit", QUIET, dashed=True),
            ),
            size=(8, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Left out, failed or set aside",
            "timeseries",
            "Should be empty: series left out by the limit, sections that could not be read, snapshots "
            f"that failed or are corrupt, windows not recorded. Metrics: `{c.SERIES_TRUNCATED.name}`, "
            f"`{c.COLLECT_ERRORS.name}`, `{c.SNAPSHOT_FAILURES.name}`, `{c.QUARANTINED.name}`, "
            f"`{c.STATISTICS_KERNELS_FAILED.name}`, `{c.WINDOWS_DROPPED.name}`.",
            "none",
            (
                Query(f"{c.SERIES_TRUNCATED.name}{{{SIDECAR}}} > 0", "{{subject}} without series"),
                Query(f"{rate_by(c.COLLECT_ERRORS, 'section')} > 0", "{{section}} unreadable"),
                Query(f"{total_rate(c.SNAPSHOT_FAILURES)} > 0", "snapshots failed"),
                Query(f"{c.QUARANTINED.name}{{{SIDECAR}}} > 0", "snapshots corrupt"),
                Query(f"{c.STATISTICS_KERNELS_FAILED.name}{{{SIDECAR}}} > 0", "not compiled"),
                Query(f"{rate_by(c.WINDOWS_DROPPED, 'reason')} > 0", "not recorded: {{reason}}"),
            ),
            size=(8, 8),
            no_value="none",
        ),
        Panel(
            "Versions",
            "table",
            "Version and configuration of every sidecar; two lines that should be alike and are not "
            f"explain a lot. Metric: `{c.BUILD_INFO.name}`.",
            "none",
            (Query(f"{c.BUILD_INFO.name}{{{SIDECAR}}}"),),
            size=(8, 8),
            no_value="no sidecar",
            columns=(
                Column("instance", "Instance"),
                Column("version", "Version"),
                Column("config", "Configuration"),
            ),
        ),
        Panel(
            "Memory of distributions",
            "timeseries",
            "What registered layers and flagged features take, against what they may; at the dashed "
            f"line further layers are refused. Metrics: `{c.STATISTICS_MEMORY.name}`, "
            f"`{c.STATISTICS_MEMORY_LIMIT.name}`.",
            "bytes",
            (
                Query(f"{c.STATISTICS_MEMORY.name}{{{SIDECAR}}}", "{{instance}}"),
                Query(
                    f"{c.STATISTICS_MEMORY_LIMIT.name}{{{SIDECAR}}}", "limit", QUIET, dashed=True
                ),
            ),
            size=(16, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Kernels",
            "table",
            "What counts. For the first seconds of a sidecar that is numpy; if it stays so, compiling "
            f"failed and the log says why. Metric: `{c.STATISTICS_KERNELS.name}`.",
            "none",
            (Query(f"{c.STATISTICS_KERNELS.name}{{{SIDECAR}}}"),),
            size=(8, 8),
            no_value="no sidecar",
            columns=(Column("instance", "Instance"), Column("kernels", "Kernels")),
        ),
        Panel(
            "Memory of evidence",
            "timeseries",
            "What the slices and rows of flagged features take; at the dashed line the oldest go. "
            f"Metrics: `{c.EVIDENCE_BYTES.name}`, `{c.EVIDENCE_LIMIT.name}`.",
            "bytes",
            (
                Query(f"{c.EVIDENCE_BYTES.name}{{{SIDECAR}}}", "{{instance}}"),
                Query(f"{c.EVIDENCE_LIMIT.name}{{{SIDECAR}}}", "limit", QUIET, dashed=True),
            ),
            size=(16, 8),
            no_value="no sidecar",
        ),
        Panel(
            "Evidence without room",
            "timeseries",
            "Should be empty: requests whose slices are too many to be counted, and rows, windows and "
            f"records for which there was no memory. Metric: `{c.EVIDENCE_DROPPED.name}`.",
            "none",
            (Query(f"{rate_by(c.EVIDENCE_DROPPED, 'what')} > 0", "{{what}}"),),
            size=(8, 8),
            no_value="none",
        ),
    ),
    folded=True,
)

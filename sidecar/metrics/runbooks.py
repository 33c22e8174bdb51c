"""What to read when an alert fires: one runbook an alert, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sidecar.metrics.catalogue import FEATURE_SERIES


@dataclass(frozen=True, slots=True)
class Runbook:
    """What to read when an alert fires; Markdown, one value a heading.

    Attributes:
        meaning: What is the case.
        impact: What it costs, and what still works.
        diagnosis: How to find the cause; commands to paste.
        mitigation: How to end it.
        picture: What the portrait shows about it.
        silence: When silencing is right.
    """

    meaning: str
    impact: str
    diagnosis: str
    mitigation: str
    picture: str
    silence: str


_NO_PICTURE = (
    "Nothing: this alert is about the measurement, not about what a feature looks for. Portraits made "
    "before stay valid; they belong to the model revision, not to the traffic."
)

RUNBOOKS: Mapping[str, Runbook] = MappingProxyType(
    {
        "SidecarFeatureSpike": Runbook(
            meaning=(
                "More requests than is tolerated drive a flagged feature beyond its threshold: several times "
                "as many as of late, and more than in the baseline. The threshold is a high quantile of the "
                "feature's frozen baseline, or a low one, or there are two: the label `direction` says "
                "`above`, `below` or `both`. The unit counted is the request, so that one long request is "
                "one observation. Evidence adds up over windows until false alarms are as rare as "
                "`sidecar_spike_expected_false_alarms` says. While the whole layer is shifted the alert is "
                "held back: SidecarLayerShift tells of it. Once it fires it stays until the feature has "
                "been calm for several windows, and two minutes more."
            ),
            impact=(
                "The model answers as before; nothing is blocked. What it sees, or how it reacts, has "
                "changed in the way the feature was flagged to reveal."
            ),
            diagnosis=(
                "1. Open `evidence_url`: the requests that made it, and what they have in common. Then "
                "`feature_url`: the state, the distribution against the baseline, the portrait.\n"
                "2. Read when it began (`state since`) and compare with deployments: a new model revision "
                "starts a baseline of its own and cannot cause this alert by itself.\n"
                "3. Compare with the other flagged features of the layer in the dashboard, and with the share "
                "of the layer that is significant: one that moves alone points to content, many together "
                "to preprocessing.\n"
                "4. On the command line:\n\n"
                "   ```\n"
                "   sidecar feature list\n"
                "   sidecar feature get <model>@<revision>/<layer>/<kind>/<index>\n"
                "   ```"
            ),
            mitigation=(
                "- Traffic really changed and should not have: stop or reroute it at its source.\n"
                "- Preprocessing changed: roll it back; every flagged feature will calm down.\n"
                "- The change is wanted: learn the baseline anew with "
                "`sidecar baseline relearn <model> --layer <layer>`, or flag the feature with a lower "
                "severity."
            ),
            picture=(
                "The portrait is an input that drives this feature as hard as the network allows. It tells "
                "what the feature looks for, so it is a first guess at what the traffic has more of. It is "
                "not a sample of the traffic, and a feature can answer to more than one thing: check the "
                "guess against real requests."
            ),
            silence=(
                "During an announced change of traffic, for as long as it lasts, matched on `model`, "
                "`layer` and `feature`. Do not silence by `alertname` alone: that hides every other "
                "feature too."
            ),
        ),
        "SidecarFeatureNeverSeen": Runbook(
            meaning=(
                "In at least two detection windows about a minute apart a flagged feature took values that "
                "its baseline has nothing near to: beyond twice its greatest, or beyond its range by more "
                "than the range is wide. One such value alone raises no alert; it shows as "
                '`sidecar_feature_condition{condition="never_seen"}` and on the feature\'s page.'
            ),
            impact=(
                "The model answers as before. Either something reaches it that it never saw while the "
                "baseline was learned, or the numbers themselves have changed: precision, scaling, weights."
            ),
            diagnosis=(
                "1. Open `feature_url`: how far out the newest values lie. No record of single requests is "
                "kept for this alert; find them in the model server's own log, by the time of the alert.\n"
                "2. Compare `sidecar_feature_last_activation` with `sidecar_feature_threshold`. A constant "
                "factor points to scaling or precision, single peaks to content.\n"
                "3. Read how much the baseline saw: `sidecar_layer_baseline_requests`. A short baseline has "
                "not seen much.\n"
                "4. `sidecar feature get <model>@<revision>/<layer>/<kind>/<index>`"
            ),
            mitigation=(
                "- Requests that should not be there: stop them at their source.\n"
                "- Scaling, precision or weights changed: roll back, or let the new weights have a revision "
                "of their own, with a baseline of its own.\n"
                "- The baseline was too short: `sidecar baseline relearn <model> --layer <layer>` and learn "
                "for a day."
            ),
            picture=(
                "What the feature looks for. Values far outside the baseline often come from inputs that "
                "hold the same thing more purely than ordinary traffic does, so compare the picture with "
                "such requests."
            ),
            silence="While such inputs are sent on purpose, as in a red-team test, matched on `feature`.",
        ),
        "SidecarFeatureSilent": Runbook(
            meaning=(
                "A flagged feature was exactly zero on so many sampled requests in a row that its baseline "
                "allows it by chance once in 10⁹. It is sampled: no data at all is "
                "SidecarFeatureUnsampled."
            ),
            impact=(
                "What the feature was flagged to reveal cannot show any more. Often a part of the model no "
                "longer works, or the traffic that drove the feature has gone."
            ),
            diagnosis=(
                "1. Are other features of the layer silent too? "
                '`sum by (model, layer) (sidecar_feature_condition{condition="silent"})`. All of them: the '
                "layer, or the place where the hook reads it.\n"
                "2. Did a revision, a precision or a batch path change at that time? The dashboard marks "
                "new revisions.\n"
                "3. Did a slice of the traffic end? Compare `rate(sidecar_layer_requests_total[5m])` with "
                "the day before.\n"
                "4. `sidecar feature get <model>@<revision>/<layer>/<kind>/<index>`"
            ),
            mitigation=(
                "Roll back what changed. If the traffic that drove it is gone for good, learn the baseline "
                "anew with `sidecar baseline relearn <model> --layer <layer>` or remove the flag with "
                "`sidecar feature unflag`."
            ),
            picture=(
                "What is missing: an input that used to drive the feature. Send one like it; if the feature "
                "stays at zero the fault is in the model or the hook, not in the traffic."
            ),
            silence="While the traffic that drives the feature is switched off, matched on `feature`.",
        ),
        "SidecarFeatureSaturated": Runbook(
            meaning=(
                "On every sampled request in a row, more than chance allows, a flagged feature had one and "
                "the same value other than zero, or a value at the top of its baseline or beyond."
            ),
            impact=(
                "The feature no longer tells inputs apart, and nor does what depends on it: a bias run "
                "away, a clipped or overflowing number, one input served again and again."
            ),
            diagnosis=(
                "1. Open `feature_url`: one bar (one value) or all mass at the right end (the top).\n"
                "2. Are the requests different at all? The model server's own log tells; a cache or a stuck "
                "client sends one again and again. No record of single requests is kept for this alert.\n"
                "3. Compare with other features of the layer, and look for SidecarNonFinite: saturation is "
                "often its forerunner.\n"
                "4. `sidecar feature get <model>@<revision>/<layer>/<kind>/<index>`"
            ),
            mitigation=(
                "Roll back the change of weights, precision or preprocessing; end the client that repeats "
                "itself. A feature that is constant by nature needs no flag: `sidecar feature unflag`."
            ),
            picture=(
                "An input that drives the feature high on purpose. If ordinary requests do as much, the "
                "picture shows what the model now believes to see everywhere."
            ),
            silence="During load tests with one repeated request, matched on `model`.",
        ),
        "SidecarFeatureDrift": Runbook(
            meaning=(
                "Over the newest hour the distribution of a flagged feature is further from its baseline "
                "than one and a half times the greatest distance that the baseline's own hours had from it. "
                "A ticket, not a page: it is slow, and says nothing of single requests."
            ),
            impact=(
                "None at once. Thresholds are quantiles of the baseline, so a feature that has drifted "
                "upwards spikes more easily, and one that has drifted downwards hides spikes."
            ),
            diagnosis=(
                "1. Near to the same hour of yesterday and far from the baseline: a lasting change. Far "
                "from both: a fresh one.\n"
                "2. `sidecar_feature_drift_wasserstein_sigma` tells how far values moved; a large "
                "Jensen-Shannon distance with hardly any move is a change of shape, such as more zeros.\n"
                "3. One feature or many? `sum by (model, layer) (sidecar_feature_drifting)`.\n"
                "4. Was the baseline learned at another time of day or week?"
            ),
            mitigation=(
                "If the change is wanted, learn the baseline anew: "
                "`sidecar baseline relearn <model> --layer <layer>`. Else find what changed in the traffic "
                "or in preprocessing."
            ),
            picture=(
                "What there is more of, or less. Compare the distribution's page for the direction; the "
                "picture is of the feature, not of the drift."
            ),
            silence="Until a new baseline is learned, matched on `model` and `layer`.",
        ),
        "SidecarLayerShift": Runbook(
            meaning=(
                "The layer as a whole has moved. A window is loud when more than one in twenty features of "
                "the layer, flagged or not, exceed more often than their baseline explains, at a false "
                "discovery rate of 5 %. The layer is shifted at once when a window is loud and two or more "
                "of its flagged features fire, until fewer than two fire; else after 30 loud windows in a "
                "row (`screen.pending_windows`), whatever the flagged features do, until six windows are "
                "calm (`screen.clear_windows`). Alerts of its single features are held back meanwhile, so "
                "that one page comes rather than hundreds. The alert ends two minutes after the layer is no "
                "longer shifted."
            ),
            impact=(
                "Single features of this layer can raise no new alert until it has ended. The model answers as "
                "before, on inputs or with numbers that differ from those of the baseline."
            ),
            diagnosis=(
                "1. Open the dashboard: which layer moved first, and by which share. From the first layer "
                "on: preprocessing, or other traffic. From a deeper one on: weights or precision.\n"
                "2. How many? `sidecar_layer_significant_features` of `sidecar_layer_screened_features`. Which "
                "ones is not shown: names are kept of flagged features only. `sidecar feature list --layer "
                "<layer>` has those, the firing at the top. Of any other that you suspect "
                "its page, or `sidecar feature get <model>@<revision>/<layer>/<kind>/<index>`, with "
                "`--window baseline` and without, shows how its distribution moved.\n"
                "3. Compare with deployments, and with the mix of traffic "
                "(`rate(sidecar_layer_requests_total[5m])`): a burst on one topic moves many features "
                "together, and passes."
            ),
            mitigation=(
                "- Roll back the change of preprocessing, tokenizer, weights or precision.\n"
                "- Other traffic, and wanted: `sidecar baseline relearn <model> --layer <layer>`.\n"
                "- A burst: wait; it ends by itself, and flagged features that still spike are told then."
            ),
            picture=(
                "Nothing of the layer as a whole. Portraits of the flagged features that spike, on their "
                "pages, hint at what they have in common."
            ),
            silence=(
                "During announced changes of traffic or preprocessing, matched on `model` and `layer`. "
                "A silence of this alert does not bring the features' own back."
            ),
        ),
        "SidecarFeatureUnsampled": Runbook(
            meaning=(
                "The layer of a flagged feature is registered, but no sample of it arrives, in this or in "
                "any other revision of the model. Its state is `unknown`, not `normal`. A revision that "
                "was replaced by one that is sampled does not raise this alert."
            ),
            impact="A spike of this feature would go unseen. Other features are judged as before.",
            diagnosis=(
                "1. Does the model get traffic? `rate(sidecar_hook_forwards_total[5m])`.\n"
                "2. Do hooks sample? `sidecar_sampling_ratio` falls under load and `0` stops sampling.\n"
                "3. Do batches arrive and survive? `rate(sidecar_batches_received_total[5m])`, "
                "`rate(sidecar_batches_refused_total[5m])`, `rate(sidecar_hook_batches_dropped_total[5m])`.\n"
                "4. Was the layer's tap removed from the hook plan?"
            ),
            mitigation=(
                "Restart or re-attach the hooks, give the sidecar room (`ingest.queue_bytes`), or remove "
                "the flag with `sidecar feature unflag` when the model is retired."
            ),
            picture=_NO_PICTURE,
            silence="While a model is deliberately without traffic, matched on `model`.",
        ),
        "SidecarFlagUnmatched": Runbook(
            meaning=(
                "A feature is flagged, in the configuration or at run time, but no hook has announced its "
                "layer, or not with so many features: the hooks are not attached, tap other layers, or "
                "the flag has a typing error."
            ),
            impact="The feature is not watched and has no series; no spike of it can be seen.",
            diagnosis=(
                "Compare the flag with the layers that are registered: "
                "`sidecar feature list`, or `sidecar_layer_features` in Prometheus. Check model name, "
                "layer name, kind, index, view and a pinned revision."
            ),
            mitigation="Mend the flag or the hook plan; attach the hooks.",
            picture=_NO_PICTURE,
            silence="While the model server is deliberately stopped.",
        ),
        "SidecarDown": Runbook(
            meaning="Prometheus knows the target and cannot scrape it.",
            impact=(
                "No feature of this sidecar can raise an alert. The model server is not affected: hooks "
                "drop samples, count them and reconnect by themselves."
            ),
            diagnosis=(
                "1. `curl http://127.0.0.1:9464/livez` on the machine of the sidecar.\n"
                "2. The log of the daemon: at start-up every problem of the configuration is listed and "
                "the exit status is 2.\n"
                "3. Killed for memory? Compare `process_resident_memory_bytes` before the gap with the "
                "limit of the container."
            ),
            mitigation=(
                "Start it again: distributions come back from the newest snapshot, with at most one "
                "interval lost."
            ),
            picture=_NO_PICTURE,
            silence="During planned maintenance of the machine, matched on `instance`.",
        ),
        "SidecarAbsent": Runbook(
            meaning="No target of the sidecar's scrape job exists: service discovery finds none.",
            impact="No feature of any model is watched, and no other alert of the sidecar can fire.",
            diagnosis=(
                "Look at the targets page of Prometheus and at its scrape configuration; is the job named "
                "as in the rules?"
            ),
            mitigation=(
                "Mend the scrape configuration, or generate the rules for the name of your job."
            ),
            picture=_NO_PICTURE,
            silence="Where the sidecar was removed for good: remove the rules too.",
        ),
        "SidecarSamplesDropped": Runbook(
            meaning=(
                "Samples arrive faster than they are digested. Hooks and sidecar drop the newest batches "
                "rather than make the model wait, and count every one."
            ),
            impact=(
                "Fewer samples: spikes are found later. Drops under load are not independent of the "
                "traffic, so distributions lean towards quiet hours."
            ),
            diagnosis=(
                "Where? `rate(sidecar_hook_batches_dropped_total[5m])` by reason, against "
                '`rate(sidecar_batches_refused_total{reason="queue_full"}[5m])` and '
                "`rate(sidecar_batches_dropped_total[5m])`. Is `sidecar_queue_bytes` near "
                "`sidecar_queue_limit_bytes`? Is `process_cpu_seconds_total` at one core?"
            ),
            mitigation=(
                "Lower `ingest.sampling_rate` or the rows a hook takes from a forward pass, tap fewer "
                "layers, or give the sidecar more CPU. A larger `ingest.queue_bytes` only bridges bursts."
            ),
            picture=_NO_PICTURE,
            silence="During a load test, matched on `instance`.",
        ),
        "SidecarBatchesRefused": Runbook(
            meaning=(
                "Batches break a rule of the protocol or a configured limit. The label `reason` says which; "
                "`docs/errors.md` lists all reasons."
            ),
            impact="These samples are lost. Every other batch, also of the same stream, is digested.",
            diagnosis=(
                "Find the reason in `docs/errors.md`. After an upgrade, compare the versions of hooks and "
                "sidecar; `layer_conflict` means that two processes announce one layer with two widths, "
                "`message_too_large` that `ingest.message_limit_bytes` is too small for the batches."
            ),
            mitigation="Mend the sender, or raise the limit that the reason names.",
            picture=_NO_PICTURE,
            silence="While a broken client is being replaced, matched on `reason`.",
        ),
        "SidecarNonFinite": Runbook(
            meaning=(
                "Values that are no numbers were sampled. They are counted apart and enter no mean, no "
                "histogram and no test."
            ),
            impact=(
                "The statistics stay right. The model's answers for these requests are probably wrong."
            ),
            diagnosis=(
                "Find the first layer, in the order of the network, that has any: "
                "`increase(sidecar_layer_nonfinite_total[5m]) > 0`. Half precision overflows above 65 504; "
                "look at the layer's `max` before it began."
            ),
            mitigation=(
                "Roll back the last change of weights, precision or preprocessing; run the layer in a "
                "wider type."
            ),
            picture=(
                "The portrait of a feature in such a layer, of the same revision, shows whether the weights "
                "are sound: noise or a failed job points to the weights, a usual portrait to the input."
            ),
            silence="Never for long; at most while the faulty revision is being withdrawn.",
        ),
        "SidecarLayerUnjudged": Runbook(
            meaning=(
                "A detection window of the layer ended and could not be closed: a fault of the sidecar's "
                "own, not of the model or its traffic. What was in the window is lost to the statistics, and "
                "no feature of the layer was judged in it."
            ),
            impact=(
                "No spike, condition or drift of this layer is seen while it lasts; its features keep the "
                "state they had. Other layers go on, and so does the model."
            ),
            diagnosis=(
                "1. The daemon's log has `layer_failed` for each such window, with the layer and the trace.\n"
                "2. Every window, or some? `rate(sidecar_layer_window_failures_total[5m])` times "
                "`statistics.window_seconds` is the share that fails.\n"
                "3. What changed before: the sidecar's version, a flag with a slice, an imported baseline, a "
                "layer of another width under the same name?"
            ),
            mitigation=(
                "- It began with a flag or a baseline: remove the flag with `sidecar feature unflag`, or "
                "`sidecar baseline relearn <model> --layer <layer>`.\n"
                "- It began with a release: go back to the one before.\n"
                "- Report it with the trace: no input should be able to do this."
            ),
            picture=_NO_PICTURE,
            silence="While a mended release is on its way, matched on `model` and `layer`.",
        ),
        "SidecarBaselineMissing": Runbook(
            meaning=(
                "A baseline freezes by itself after `statistics.baseline_min_requests` requests and "
                "`statistics.baseline_min_seconds` seconds. This layer is sampled, but did not get there."
            ),
            impact="Its flagged features stay `unknown`; no spike of them is found.",
            diagnosis=(
                "`sidecar_layer_baseline_requests` against `statistics.baseline_min_requests`: at the "
                "present rate, when is it reached? Was the baseline relearned (`baseline_relearned` in the audit "
                "log), or is the revision new?"
            ),
            mitigation=(
                "Wait, sample more, ask for fewer requests in the configuration, or freeze what was "
                "learned: `sidecar baseline freeze <model> --layer <layer>`. Freeze only when the "
                "traffic was normal."
            ),
            picture=_NO_PICTURE,
            silence="For a new revision with little traffic, matched on `revision`.",
        ),
        "SidecarJobsFailing": Runbook(
            meaning="A job ended with an error; its code is one of the SC8xx of `docs/errors.md`.",
            impact="Alerts come without a new portrait. Monitoring is not affected.",
            diagnosis=(
                "```\n"
                "sidecar job list\n"
                "sidecar job get <id>\n"
                "```\n\n"
                "`SC801` and `SC802` point to the model's factory or weights, `SC803` to a feature that "
                "gives no gradient, `SC804` to `jobs.time_limit_seconds`, `SC806` to a worker that was "
                "killed, mostly for memory, `SC808` to jobs that waited past their deadline, `SC809` to what the "
                "sandbox refused."
            ),
            mitigation="Mend what the code names and submit the job again: `sidecar job run <feature>`.",
            picture="A portrait that is missing says nothing about the feature; an older one stays valid.",
            silence="While the worker's machine is being maintained.",
        ),
        "SidecarAuditRegressed": Runbook(
            meaning=(
                "Every night an audit looks at the same things of a model. In the newest night that could be judged "
                "at least one check failed: the description names it with what was measured and what may be. "
                "Checks that had nothing to be held against are not counted. The alert stays until a night "
                "passes: also while another runs, and after one that failed, which says nothing of the model."
            ),
            impact=(
                "The model answers as before. It, or what is measured of it, is no longer what was signed off: "
                "units have moved, pictures are not reproduced, another revision is served, or flagged "
                "features are not watched."
            ),
            diagnosis=(
                "1. Open `report_url`: the table of checks says which layers, features and jobs; then what "
                "changed since the night before, with the pictures side by side. `audit_url` has the trend.\n"
                "2. `revision` failed: which weights does the server load, and which does the "
                "configuration name?\n"
                "3. `comparison` or `counts`: which layers? All behind one layer points to its weights, all "
                "layers to preprocessing, precision or another dataset.\n"
                "4. `reproduced` or `verified`: did torch, drivers or the machine change? Both say so with "
                "the versions that the manifests name.\n"
                "5. `live`: the feature's page says whether it is sampled, learned and drifting.\n"
                "6. On the command line:\n\n"
                "   ```\n"
                "   sidecar audit show <audit>\n"
                "   sidecar audit report <audit> --to folder\n"
                "   ```"
            ),
            mitigation=(
                "- The change is a fault: roll back, then `sidecar audit run <audit>`; a night that passes ends "
                "the alert.\n"
                '- The change is wanted: `sidecar audit accept <audit> --note "who and why"` takes the night for '
                "the new normal of `counts` and `verdict`, which else fail again every night; for `comparison` "
                "change `fail_on`. Then run a night.\n"
                "- Only `live`: mend the sampling, or `sidecar baseline relearn <model> --layer <layer>`."
            ),
            picture=(
                "The report shows a portrait of this night beside that of the night before wherever they "
                "differ. A portrait that looks for something else means that the unit itself has changed; the "
                "same portrait on a unit that moved means that its values did."
            ),
            silence=(
                "Until the next night, matched on `audit`, once somebody has read the report. Never by "
                "`alertname` alone: that hides the other audits."
            ),
        ),
        "SidecarAuditOverdue": Runbook(
            meaning=(
                "A night was due, was not judged, and the time of the next one has come as well. A night that "
                "was missed while the daemon was down is made up for once, so its jobs wait or hang."
            ),
            impact="Nobody has looked at the model for a night; the last report is older than it should be.",
            diagnosis=(
                "1. `sidecar audit show <audit>`: does a night run, and since when?\n"
                "2. `sidecar job list`: are its jobs `queued`? Audits wait for `jobs.audit_windows`, make way for "
                "people's and alerts' jobs, and while `jobs.yield_to` is above its threshold.\n"
                "3. `sidecar_jobs` by state in the dashboard: has the queue grown for days?"
            ),
            mitigation=(
                "- The windows are shorter than the night's jobs: widen `jobs.audit_windows`, or lower the "
                "audit's `features`.\n"
                "- Others always come first: raise `jobs.concurrency`.\n"
                "- A job hangs: `sidecar job cancel <id>`; the night is judged without it."
            ),
            picture=_NO_PICTURE,
            silence="While audits are held back on purpose, matched on `audit`.",
        ),
        "SidecarAuditFailed": Runbook(
            meaning=(
                "No job of the newest night was done: all failed, were cancelled or refused. That is not a "
                "regression: nothing is known of the model."
            ),
            impact="The night is lost; the next one comes at its time.",
            diagnosis=(
                "1. Open `audit_url`: the check `complete` says which jobs failed.\n"
                "2. `sidecar job list` and `sidecar job get <id>`: the code is one of the SC8xx of "
                "`docs/errors.md`. Are they in quarantine? `sidecar job list --quarantined`.\n"
                "3. Do people's jobs of the same model work? Then it is the audit's dataset or the other model."
            ),
            mitigation=(
                "Mend what the jobs' error names, as for SidecarJobsFailing, then `sidecar audit run <audit>`."
            ),
            picture=_NO_PICTURE,
            silence="Until the next night, matched on `audit`.",
        ),
        "SidecarSnapshotStale": Runbook(
            meaning="No snapshot was written whole for ten configured intervals.",
            impact="Monitoring goes on. After a crash, baselines and history of that time are gone.",
            diagnosis=(
                "`sidecar_snapshot_failures_total` grows: disk full or read-only (`df`, `SC701` in the "
                "log). It does not grow: the daemon is starved of CPU."
            ),
            mitigation=(
                "Free space in `state_dir`, or lower `store.artifact_limit_bytes`. Snapshots resume by "
                "themselves."
            ),
            picture=_NO_PICTURE,
            silence="While the disk is being replaced.",
        ),
        "SidecarStateCorrupt": Runbook(
            meaning=(
                "A snapshot's magic, version or checksum is wrong, or an artifact's content does not match "
                "its name. The file was renamed to `*.corrupt-<n>`; of a snapshot the older generation "
                "was used where there is one."
            ),
            impact=(
                "After a corrupt snapshot the statistics since the older generation are lost; without one, "
                "baselines learn anew. A corrupt picture is not served; asking for it makes it again."
            ),
            diagnosis="Look at the disk's own health, and at what else writes into `state_dir`.",
            mitigation=(
                "Freeze or restore baselines where needed, then remove the `*.corrupt-*` files: the alert "
                "ends with them at the next start."
            ),
            picture=_NO_PICTURE,
            silence="Once the cause is known, until the files are removed.",
        ),
        "SidecarHookErrors": Runbook(
            meaning=(
                "Code of the hooks failed in a model server's process. It was caught there; the forward "
                "pass went on unchanged."
            ),
            impact="Samples of the affected layers are missing. The model's answers are not affected.",
            diagnosis=(
                "The log of the model server names the exception once. A layer that returns no tensor, or "
                "one of an unexpected rank, is the usual cause."
            ),
            mitigation="Correct the hook plan for that layer, or leave the layer out.",
            picture=_NO_PICTURE,
            silence="While a corrected plan is being rolled out.",
        ),
        "SidecarSeriesTruncated": Runbook(
            meaning=(
                "More features are flagged, or layers registered, than `metrics.flagged_limit` or "
                "`metrics.series_limit` allow to be exported, or two of them would have equal labels. "
                "The label `subject` says what is missing; `histograms` and `heatmaps` go first."
            ),
            impact=(
                "What is left out is still judged by the daemon and shown in the console, but Prometheus "
                "does not see it."
            ),
            diagnosis="`sidecar feature list` shows all flagged features; old revisions count too.",
            mitigation=(
                "Raise `metrics.flagged_limit` or `metrics.series_limit`, switch `metrics.classic_buckets` off "
                f"(up to 21 of the {FEATURE_SERIES + 22} series that a flagged feature may have), or remove "
                "flags nobody needs."
            ),
            picture=_NO_PICTURE,
            silence="Never: raise the limit instead.",
        ),
        "SidecarScrapeIncomplete": Runbook(
            meaning=(
                "Reading a part of the daemon's state failed, so its series are missing from the scrape; "
                "the rest of the scrape was served."
            ),
            impact="Alerts on the missing series cannot fire. With `features`, that is every spike.",
            diagnosis=(
                "`sidecar_collect_errors_total` by `section`. `jobs` and `storage` read the disk: is it "
                "full or gone? Anything else is a defect of the sidecar: report it with its version from "
                "`sidecar_build_info`."
            ),
            mitigation="Mend the disk, or restart the daemon: its state comes back from the snapshot.",
            picture=_NO_PICTURE,
            silence="Never for `features`; otherwise while the disk is being mended.",
        ),
    }
)
"""By name of the alert."""

"""How a feature stands, on one page of a terminal: what somebody reads who was woken by it."""

import math
import shlex
import textwrap
import time
from collections.abc import Iterator

import click

from sidecar.cli.words import lasting, moment, percent, power, short_key
from sidecar.features import short_revision
from sidecar.wire.v1 import features_pb2

_COLUMN, _WIDTH = 12, 110
_ALL = {"spike", "conditions", "drift"}

_CERTAIN = {
    "never_seen": "it gives values that its baseline never saw",
    "nonfinite": "it gives NaN or infinite values",
    "silent": "it gives nothing but zeros",
    "saturated": "it gives the same value, or its baseline's greatest, again and again",
}

_OF_CONTENT = {"SidecarFeatureSpike", "SidecarFeatureNeverSeen", "SidecarFeatureDrift"}
"""Alerts of which a picture of what the feature looks for may say something."""

_ADVICE = {
    "SidecarLayerShift": "The whole layer moves: look at preprocessing, precision and the model's revision "
    "before you look at this feature.",
    "SidecarNonFinite": "It gives NaN or infinities, so the model's answers may be wrong: look for overflow in "
    "half precision, or for broken input.",
    "SidecarFeatureNeverSeen": "Compare its values with the threshold: a constant factor points to scaling or "
    "precision, single peaks to content.",
    "SidecarFeatureSilent": "Look whether the layer still gets input, and whether the hook taps the right module.",
    "SidecarFeatureSaturated": "Look for clipping, and for input that is always the same.",
    "SidecarFeatureSpike": "Look at what the requests have in common, then at what the feature looks for.",
    "SidecarFeatureDrift": "Compare with the baseline. If the change is wanted, learn the baseline anew.",
    "SidecarFeatureUnsampled": "No request of it was sampled: look whether the server runs with its hooks.",
}
"""The first thing to do about each alert; the runbook has the rest."""


def state_of(found: features_pb2.Feature) -> str:
    """Return the state's name; of a feature that nobody judges for spikes why there is none."""
    if not found.flagged:
        return "anomaly" if found.HasField("anomaly") else "unflagged"
    if found.detectors and "spike" not in found.detectors:
        return "not judged"
    name = features_pb2.FeatureState.Name(found.state).removeprefix("FEATURE_STATE_").lower()
    # What gives nothing but NaN does not spike, and is not normal.
    return "no spike" if name == "normal" and holding(found) != "-" else name


def reasons(found: features_pb2.Feature) -> str:
    """Say why a feature is not calm: what is certain first, then the spike test's words."""
    told = _certain(found)
    spikes = found.state in (features_pb2.FEATURE_STATE_FIRING, features_pb2.FEATURE_STATE_PENDING)
    return "; ".join([*told, *([found.explanation] if spikes or not told else [])])


def _certain(found: features_pb2.Feature) -> list[str]:
    """Return what holds of a feature beside spikes, a clause each."""
    told = [_CERTAIN.get(name, name.replace("_", " ")) for name in found.conditions]
    told += ["its distribution drifts away from its baseline"] if found.drifting else []
    told += ["its layer moves as a whole"] if found.layer_shifted and found.flagged else []
    return told


def holding(found: features_pb2.Feature) -> str:
    """Return what holds of a feature beside spikes, in a word each; a dash: nothing."""
    held = [name.replace("_", " ") for name in found.conditions]
    held += ["drifting"] if found.drifting else []
    held += ["layer shifted"] if found.layer_shifted and found.flagged else []
    return ", ".join(held) or "-"


def describe(found: features_pb2.Feature, record: features_pb2.Evidence | None) -> Iterator[str]:
    """Yield the lines about a feature, but for its distribution.

    Args:
        found: How it stands.
        record: The newest record of why it fired; None: there is none.
    """
    yield _line("feature", found.key)
    yield _line("name", found.name or "-")
    if found.flagged:
        yield from _watched(found)
    else:
        yield _line("state", "not flagged: nobody is told about it")
    yield _line("why", found.explanation)
    if found.HasField("anomaly"):
        yield from _anomaly(found.anomaly)
    if found.flagged:
        yield from _numbers(found, record)
    if record is not None:
        yield _line("evidence", f"{record.id}, fired {moment(record.at_unix_seconds)}")
        yield _line("", record.attribution)
    yield ""
    yield from _steps(found, record)
    yield from _links(found)


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=name.ljust(_COLUMN),
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,  # a key is copied whole
        break_on_hyphens=False,
    )


def _watched(found: features_pb2.Feature) -> Iterator[str]:
    since = found.state_since_unix_seconds
    for_ = f" for {lasting(time.time() - since)}, since {moment(since)}" if since else ""
    yield _line("state", f"{state_of(found)}{for_}")
    held = holding(found)
    told = "; ".join(_certain(found))
    yield _line("holds", "nothing beside" if held == "-" else f"{held}: {told}")
    yield _line("flag", f"{found.severity}, owner {found.owner or 'nobody'}")
    side = "above and below" if found.direction == "both" else found.direction or "above"
    watch = f"{side} its baseline"
    watch += f", on requests of {found.slice}" if found.slice else ", on all requests"
    asked = set(found.detectors)
    watch += f", for {' and '.join(found.detectors)} alone" if asked and asked != _ALL else ""
    watch += f", from {found.factor:g} times its level" if found.HasField("factor") else ""
    yield _line("watched", watch)


def _numbers(found: features_pb2.Feature, record: features_pb2.Evidence | None) -> Iterator[str]:
    if math.isnan(found.threshold):
        yield _line("numbers", "none before there is a baseline")
        return
    now = percent(found.exceedance_ratio) if found.requests else "nothing sampled"
    yield _line(
        "numbers", f"exceeding {now} of {found.requests} requests; {_exceeds(found)} exceeds"
    )
    level = percent(found.level_ratio) if found.HasField("level_ratio") else "not known"
    # On the wire a share that is not known is 0; one is tolerated as soon as the baseline's is known.
    known = found.HasField("tolerated_ratio")
    tolerated = percent(found.tolerated_ratio) if known else "not known"
    usual = percent(found.baseline_exceedance_ratio) if known else "not known"
    yield _line("", f"baseline {usual}, recent level {level}, tolerated {tolerated}")
    if found.HasField("spike_evidence_log10"):
        yield _line("", _evidence(found, record))
    values = [
        f"{name} value {value:.4g}"
        for name, value, there in (
            ("greatest", found.last, found.HasField("last")),
            ("least", found.least, found.HasField("least")),
        )
        if there
    ]
    if values:
        yield _line("", f"newest window: {', '.join(values)}")
    yield _line(
        "",
        f"since the daemon started: {found.sampled_exceedances} of {found.sampled_requests} requests "
        f"exceeded, it fired {found.spikes} {'time' if found.spikes == 1 else 'times'}",
    )
    if found.HasField("drift_js"):
        yield _line("drift", _drift(found))
    if found.caution:
        yield _line("caution", found.caution)


def _evidence(found: features_pb2.Feature, record: features_pb2.Evidence | None) -> str:
    """Say how far the evidence is from an alarm; while one is held none is gathered."""
    takes = f"an alarm takes 10^{found.spike_threshold_log10:.1f}"
    fired = record.numbers.get("evidence_log10", math.nan) if record is not None else math.nan
    if found.state == features_pb2.FEATURE_STATE_FIRING and math.isfinite(fired):
        return f"evidence of a spike 10^{fired:.1f} when it fired; {takes}"
    return f"evidence of a spike 10^{found.spike_evidence_log10:.1f}; {takes}"


def _exceeds(found: features_pb2.Feature) -> str:
    above = f"above {found.threshold:.4g}" if found.direction != "below" else ""
    below = f"below {found.low_threshold:.4g}" if found.HasField("low_threshold") else ""
    return " or ".join(side for side in (above, below) if side) or "nothing"


def _drift(found: features_pb2.Feature) -> str:
    parts = [f"{found.drift_js:.2g} from the baseline (Jensen-Shannon, 0 to 1)"]
    if found.HasField("drift_js_yesterday"):
        parts.append(f"{found.drift_js_yesterday:.2g} from the same hour of yesterday")
    if found.HasField("drift_wasserstein"):
        parts.append(f"{found.drift_wasserstein:.2g} standard deviations off (Wasserstein)")
    verdict = "further than" if found.drifting else "no further than"
    return f"{', '.join(parts)}; {verdict} the baseline's own hours are apart"


def _anomaly(found: features_pb2.Anomaly) -> Iterator[str]:
    yield _line(
        "screen",
        f"{found.factor:.3g} times its baseline's {percent(found.baseline_exceedance_ratio)}: "
        f"p {power(found.p_log10)}, q {power(found.q_log10)}",
    )
    yield _line(
        "",
        f"in {found.windows} {'window' if found.windows == 1 else 'windows'} since "
        f"{moment(found.since_unix_seconds)}, last {moment(found.seen_unix_seconds)}",
    )


def _steps(found: features_pb2.Feature, record: features_pb2.Evidence | None) -> Iterator[str]:
    key = shlex.quote(short_key(found.key))
    yield "what to do"
    if not found.flagged:
        yield f"  be told of it: sidecar feature flag {key}"
        return
    for alert in found.alerts:
        yield textwrap.fill(
            _ADVICE.get(alert, alert), _WIDTH, initial_indent="  ", subsequent_indent="  "
        )
        yield f"    {found.runbooks}/{alert}"
    if not found.alerts:
        learning = math.isnan(found.threshold)
        yield f"  nothing{': it is learning what is normal' if learning else ' now'}"
    if record is not None:
        yield f"  the requests that made it fire: sidecar feature evidence {key}"
    if set(found.alerts) & _OF_CONTENT and not found.portrait_digest:
        yield f"  what it looks for: sidecar job run {key}"
    if found.drifting:
        where = f"{shlex.quote(found.model)} --layer {shlex.quote(found.layer)}"
        yield f"  if the change is wanted: sidecar baseline relearn {where}"


def _links(found: features_pb2.Feature) -> Iterator[str]:
    page = found.page.replace(found.revision, short_revision(found.revision))
    yield "links"
    yield f"  page      {page}"
    if found.evidence_id:
        yield f"  evidence  {page}/evidence"
    if found.portrait_digest:
        verdict = found.portrait_verdict.upper() if found.portrait_verdict else "not assessed"
        yield f"  portrait  {page}/portrait.png ({verdict})"


def print_page(found: features_pb2.Feature, record: features_pb2.Evidence | None) -> None:
    """Print what ``describe`` says."""
    for line in describe(found, record):
        click.echo(line)

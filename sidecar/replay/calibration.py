"""What recorded traffic says of a policy: its false alarms, its delay, and what to change."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sidecar.features import LayerKey
from sidecar.replay.false_alarms import Cut, FalseAlarms, false_alarms
from sidecar.replay.policies import Policy
from sidecar.replay.traffic import (
    FEATURES,
    Behaviour,
    Incident,
    Stretch,
    baseline_windows,
    behaviour,
    stretches,
)
from sidecar.store import WindowRecord

FACTORS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Minimum factors that are tried beside the policy's own."""

SPIKE_SHARE = 0.2
"""Share of requests that a spike is to touch when its delay is told."""

WANTED_WINDOWS = 2
"""Windows in which such a spike should be found."""

BASELINE_ERROR = 1.0 / 6.0
"""Standard error that a baseline's rates should have: half of what is tolerated is then three."""

STALE = 1.5
"""Recorded rate over the baseline's from which the baseline is of other traffic."""

MULTIPLES = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Alternatives of the e-process, as in ``detect``; of these one is nearest to a given spike."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The whole answer.

    Attributes:
        policy: Name of the policy.
        overall: All layers together; None where nothing can be measured.
        layers: Each layer.
        rates: False alarms under the policy; None where the recording is too short.
        tried: The same with other minimum factors.
        delay_windows: Windows until a spike in ``SPIKE_SHARE`` of the requests is found; infinite:
            never.
        advice: What to change, in words with numbers.
        limits: What this cannot know.
    """

    policy: str
    overall: Behaviour | None
    layers: dict[LayerKey, Behaviour]
    rates: FalseAlarms | None
    tried: tuple[FalseAlarms, ...]
    delay_windows: float
    advice: tuple[str, ...]
    limits: tuple[str, ...]


def calibrate(
    windows: Iterable[WindowRecord],
    policy: Policy,
    incidents: Sequence[Incident],
    rng: np.random.Generator,
) -> Calibration:
    """Measure recorded traffic, and what a policy does on it.

    Args:
        windows: A recording.
        policy: Which policy.
        incidents: When something really happened; those windows are left out.
        rng: Draws blocks.
    """
    parts = stretches(windows, policy, incidents)
    if not parts:
        nothing = "No window has a baseline: record until it is learned, and calibrate then."
        return Calibration(policy.name, None, {}, None, (), math.nan, (nothing,), ())
    overall = behaviour(parts)
    layers = {
        layer: behaviour([part for part in parts if part.layer == layer])
        for layer in sorted({part.layer for part in parts})
    }
    cut = Cut.of(parts, parts[0].terms.spike, overall.burst_windows)
    long = [part for part in parts if len(part.at) >= cut.least]
    rates: FalseAlarms | None = None
    tried: tuple[FalseAlarms, ...] = ()
    if cut.possible and long:
        rates = false_alarms(long, cut, rng)
        others = [factor for factor in FACTORS if factor != rates.factor]
        tried = tuple(false_alarms(long, cut, rng, factor=factor) for factor in others)
    delay = delay_windows(parts, overall.requests_per_window)
    return Calibration(
        policy=policy.name,
        overall=overall,
        layers=layers,
        rates=rates,
        tried=tried,
        delay_windows=delay,
        advice=tuple(_advice(policy, parts, layers, overall, rates, tried, delay)),
        limits=tuple(_limits(parts, overall, rates, cut, incidents)),
    )


def delay_windows(parts: Sequence[Stretch], requests: float) -> float:
    """Return the windows until a spike in ``SPIKE_SHARE`` of so many requests is found, median feature.

    Taken from the mean evidence that such a window adds against the rate that is tolerated while the
    level is as recorded.
    """
    found = [
        _evidence_per_request(float(rate), float(factor), part)
        for part in parts
        for rate, factor in zip(_usual(part), part.terms.factor, strict=True)
    ]
    each = float(np.median(found)) * requests if found else 0.0
    wanted = parts[0].terms.spike.threshold_log10(parts[0].flagged) * math.log(10.0)
    return math.ceil(wanted / each) if each > 0 else math.inf


def _usual(part: Stretch) -> list[float]:
    requests = np.maximum(part.compared.sum(axis=0), 1)
    rates: list[float] = (part.exceedances.sum(axis=0) / requests).tolist()
    return rates


def _evidence_per_request(usual: float, factor: float, part: Stretch) -> float:
    """Return the mean evidence of a request while a spike lasts, as a natural logarithm."""
    baseline = float(np.median(part.terms.baseline_rate))
    tolerated = min(0.5, max(part.terms.spike.baseline_factor * baseline, factor * usual, 1e-4))
    spiking = SPIKE_SHARE + (1.0 - SPIKE_SHARE) * usual
    gains = []
    for multiple in MULTIPLES:
        other = min(0.95, multiple * tolerated)
        gains.append(
            spiking * math.log(other / tolerated)
            + (1.0 - spiking) * (math.log1p(-other) - math.log1p(-tolerated))
        )
    return max(gains)


def rounded(value: float) -> str:
    """Return a number as people read it.

    Example:
        >>> rounded(3620.4), rounded(0.01234), rounded(0.0)
        ('3,620', '0.012', '0')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"  # noqa: PLR2004 - two digits are enough


# -- words ----------------------------------------------------------------------------------------


def _advice(
    policy: Policy,
    parts: Sequence[Stretch],
    layers: dict[LayerKey, Behaviour],
    overall: Behaviour,
    rates: FalseAlarms | None,
    tried: Sequence[FalseAlarms],
    delay: float,
) -> Iterator[str]:
    yield from _on_factor(policy, rates, tried)
    yield from _on_baselines(parts, layers)
    yield from _on_sampling(parts, overall, delay)
    if overall.design_effect > 1.5:  # noqa: PLR2004 - half more variance than independent rows
        yield (
            f"Rows of one request exceed together: {overall.beyond_per_request:.2g} a request, which makes "
            f"the number of rows beyond vary {overall.design_effect:.2g} times as much as that of "
            "independent rows. Nothing to change: requests are what is counted."
        )


def _on_factor(
    policy: Policy, rates: FalseAlarms | None, tried: Sequence[FalseAlarms]
) -> Iterator[str]:
    if rates is None:
        return
    wanted = policy.spike.false_alarms_per_1000_days
    expected = rates.per_1000_days(rates.per_feature_day)
    quiet = [
        one
        for one in sorted(tried, key=lambda one: one.factor)
        if one.per_1000_days(one.per_feature_day) <= wanted
    ]
    own = "its flags' own factors" if math.isnan(rates.factor) else f"factor {rates.factor:g}"
    if expected > wanted:
        yield (
            f"With {own} expect {rounded(expected)} false alarms in 1,000 days over {rates.flagged} "
            f"features ({rounded(rates.per_1000_days(rates.low))} to "
            f"{rounded(rates.per_1000_days(rates.high))}), if nothing in the recording was worth a page; "
            f"the policy asks for {wanted:g}."
        )
        higher = [one for one in quiet if math.isnan(rates.factor) or one.factor > rates.factor]
        if higher:
            yield f"Set spike.factor to {higher[0].factor:g}: it raises none on this recording."
        elif tried:
            best = min(tried, key=lambda one: (one.per_feature_day, one.factor))
            yield (
                f"No factor up to {FACTORS[-1]:g} is as quiet as that; {best.factor:g} comes nearest, with "
                f"{rounded(best.per_1000_days(best.per_feature_day))}. Watch a higher spike.quantile, or learn "
                "the baseline on traffic like this."
            )
        return
    lower = [one for one in quiet if one.factor < rates.factor]
    if lower:
        yield (
            f"Factor {lower[0].factor:g} raises no more alarms on this recording than {rates.factor:g}, and "
            f"finds smaller spikes; below {rounded(rates.per_1000_days(rates.high))} in 1,000 days it "
            "cannot tell them apart."
        )


def _on_baselines(parts: Sequence[Stretch], layers: dict[LayerKey, Behaviour]) -> Iterator[str]:
    seconds = parts[0].window_seconds
    for layer, one in layers.items():
        if one.baseline_error > BASELINE_ERROR and one.requests_per_window > 0:
            hours = baseline_windows(one, BASELINE_ERROR) * seconds / 3600.0
            yield (
                f"{_named(layer)}: the baseline of {one.baseline_requests:,} requests over "
                f"{one.baseline_seconds / 3600:.1f} h knows its rates to {100 * one.baseline_error:.0f} %, "
                f"and {100 * BASELINE_ERROR:.0f} % is wanted: learn for {hours:.1f} h at this traffic "
                f"(statistics.baseline_min_seconds: {math.ceil(hours) * 3600})."
            )
        if one.rate_ratio > STALE:
            yield (
                f"{_named(layer)}: requests exceed {one.rate_ratio:.2g} times as often as in the baseline: it was "
                "learned on other traffic, learn it anew (sidecar baseline relearn)."
            )


def _on_sampling(parts: Sequence[Stretch], overall: Behaviour, delay: float) -> Iterator[str]:
    if math.isnan(overall.requests_per_window) or delay <= WANTED_WINDOWS:
        return
    share, mean = 100 * SPIKE_SHARE, overall.requests_per_window
    if math.isinf(delay):
        yield (
            f"A spike in {share:.0f} % of the requests is within what is tolerated, whatever is sampled: "
            "lower spike.factor or raise spike.quantile."
        )
        return
    enough = mean
    while delay_windows(parts, enough) > WANTED_WINDOWS:
        enough *= 1.1
    yield (
        f"A spike in {share:.0f} % of the requests is found after {delay:.0f} windows at "
        f"{mean:.0f} requests a window; {math.ceil(enough)} would take {WANTED_WINDOWS}: sample more "
        f"({enough / mean:.1f} times as much), or make statistics.window_seconds longer."
    )


def _limits(
    parts: Sequence[Stretch],
    overall: Behaviour,
    rates: FalseAlarms | None,
    cut: Cut,
    incidents: Sequence[Incident],
) -> Iterator[str]:
    if rates is None:
        yield (
            f"The longest stretch has {max(len(part.at) for part in parts)} windows, and 5 times "
            f"{cut.warm} are needed to say how often the policy is wrong: record for longer."
        )
        return
    least = rates.per_1000_days(3.7 / rates.feature_days)
    yield (
        f"{rates.feature_days:.3g} feature-days can show no rate below {rounded(least)} in 1,000 days: what "
        "is rarer does not happen in them."
    )
    left = "incidents are left out" if incidents else "name the times of true ones with --incident"
    counted = (
        f"all {rates.alarms}, of {rates.clumps} causes, count as that"
        if rates.alarms
        else "none here"
    )
    yield f"Whether an alarm was false: {counted}. `sidecar replay` shows them; {left}."
    yield (
        f"Traffic that was not recorded: these are {overall.days / max(1, len(_layers(parts))):.2g} days a "
        "layer, and a release, a weekend or another season behaves otherwise."
    )
    short = sum(len(part.at) < cut.least for part in parts)
    if short:
        yield f"{short} stretches are shorter than {cut.least} windows and are in no block."
    many = [part for part in parts if part.of > part.compared.shape[1]]
    if many:
        yield (
            f"Of layers with more than {FEATURES} flagged features an even choice is measured, and taken to "
            "stand for all."
        )


def _named(layer: LayerKey) -> str:
    return str(replace(layer, revision=layer.shown_revision))


def _layers(parts: Sequence[Stretch]) -> set[LayerKey]:
    return {part.layer for part in parts}


def as_json(found: Calibration) -> dict[str, Any]:
    """Return the answer as JSON-able values; a number that is not known is null."""
    return {
        "policy": found.policy,
        "overall": None if found.overall is None else _plain(asdict(found.overall)),
        "layers": [
            {"layer": str(layer), **_plain(asdict(one))} for layer, one in found.layers.items()
        ],
        "false_alarms": None if found.rates is None else _rates(found.rates),
        "other_factors": [_rates(one) for one in found.tried],
        "delay_windows": _number(found.delay_windows),
        "advice": list(found.advice),
        "cannot_know": list(found.limits),
    }


def _rates(one: FalseAlarms) -> dict[str, Any]:
    in_1000_days = {
        name: one.per_1000_days(rate)
        for name, rate in (("expected", one.per_feature_day), ("low", one.low), ("high", one.high))
    }
    return {**_plain(asdict(one)), "per_1000_days": in_1000_days}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What recorded traffic says of a policy: its false alarms, its delay, and what to change."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.config import StatisticsConfig
from sidecar.features import LayerKey
from sidecar.replay.delay import SPIKE_SHARE, Delay, delay, enough_requests
from sidecar.replay.false_alarms import Cut, FalseAlarms, false_alarms
from sidecar.replay.policies import Policy
from sidecar.replay.running import Lanes, raised
from sidecar.replay.traffic import (
    FEATURES,
    Behaviour,
    Incident,
    Stretch,
    baseline_windows,
    behaviour,
    stretches,
)
from sidecar.replay.words import counted, lasting, rounded
from sidecar.store import WindowRecord

FACTORS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Minimum factors that are tried beside the policy's own."""

WANTED_WINDOWS = 2
"""Windows in which a spike in ``SPIKE_SHARE`` of the requests should be found."""

MISSED = 0.05
"""Share of such spikes that may be missed."""

BASELINE_ERROR = 1.0 / 6.0
"""Standard error that a baseline's rates should have: half of what is tolerated is then three."""

STALE = 1.5
"""Recorded rate over the baseline's from which the baseline is of other traffic."""

LEAST_SECONDS = 3600.0
"""Of a layer recorded for less nothing is said of its baseline: a few minutes may be any traffic."""

_SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """The whole answer.

    Attributes:
        policy: Name of the policy.
        overall: All layers together; None where nothing can be measured.
        layers: Each layer.
        rates: False alarms under the policy; None where the recording is too short.
        tried: The same with other minimum factors.
        delay: What becomes of spikes put into the recorded traffic; None where it is too short.
        delays: The same with the factors of ``tried``.
        advice: What to change, in words with numbers.
        limits: What this cannot know.
    """

    policy: str
    overall: Behaviour | None
    layers: dict[LayerKey, Behaviour]
    rates: FalseAlarms | None
    tried: tuple[FalseAlarms, ...]
    delay: Delay | None
    delays: tuple[Delay | None, ...]
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
        return Calibration(policy.name, None, {}, None, (), None, (), (nothing,), ())
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
    spikes = delay(parts, rng)
    delays = tuple(delay(parts, rng, factor=one.factor) for one in tried)
    return Calibration(
        policy=policy.name,
        overall=overall,
        layers=layers,
        rates=rates,
        tried=tried,
        delay=spikes,
        delays=delays,
        advice=(
            *_on_factor(policy, rates, tried, delays, incidents),
            *_on_baselines(parts, layers),
            *_on_sampling(parts, overall, spikes, rng, noisy=_is_noisy(policy, rates)),
            *_on_clustering(overall),
        ),
        limits=(*_limits(parts, overall, rates, cut, incidents), *_on_short_layers(layers)),
    )


# -- words ----------------------------------------------------------------------------------------


def _on_clustering(overall: Behaviour) -> Iterator[str]:
    if overall.design_effect > 1.5:  # noqa: PLR2004 - half more variance than independent rows
        yield (
            f"Rows of one request exceed together: {rounded(overall.beyond_per_request)} a request, which makes "
            f"the number of rows beyond vary {rounded(overall.design_effect)} times as much as that of "
            "independent rows. Nothing to change: requests are what is counted."
        )


def _expected(one: FalseAlarms) -> str:
    return rounded(one.per_1000_days(one.per_feature_day))


def _is_noisy(policy: Policy, rates: FalseAlarms | None) -> bool:
    """Whether more false alarms are to be expected than the policy asks for."""
    wanted = policy.spike.false_alarms_per_1000_days
    return rates is not None and rates.per_1000_days(rates.per_feature_day) > wanted


def _on_factor(
    policy: Policy,
    rates: FalseAlarms | None,
    tried: Sequence[FalseAlarms],
    delays: Sequence[Delay | None],
    incidents: Sequence[Incident],
) -> Iterator[str]:
    if rates is None:
        return
    wanted = policy.spike.false_alarms_per_1000_days
    quiet = [
        one
        for one in sorted(tried, key=lambda one: one.factor)
        if one.per_1000_days(one.per_feature_day) <= wanted
    ]
    own = "its flags' own factors" if math.isnan(rates.factor) else f"factor {rates.factor:g}"
    if _is_noisy(policy, rates):
        yield (
            f"With {own} expect {_expected(rates)} false alarms in 1,000 days over "
            f"{counted(rates.flagged, 'feature')} ({rounded(rates.per_1000_days(rates.low))} to "
            f"{rounded(rates.per_1000_days(rates.high))}), if nothing in the recording was worth a page; "
            f"the policy asks for {rounded(wanted)}."
            + ("" if incidents else " Name the times of true incidents with --incident first.")
        )
        higher = [one for one in quiet if math.isnan(rates.factor) or one.factor > rates.factor]
        if higher:
            best = higher[0]
            spikes = delays[tried.index(best)]
            words = f"Set spike.factor to {best.factor:g}: {_expected(best)} are expected then"
            yield (
                f"{words}."
                if spikes is None
                else (
                    f"{words}, and {rounded(100 * spikes.missed)} % of spikes in {100 * SPIKE_SHARE:.0f} % of the "
                    "requests missed."
                )
            )
        elif tried:
            best = min(tried, key=lambda one: (one.per_feature_day, one.factor))
            yield (
                f"No factor up to {FACTORS[-1]:g} is as quiet as that; {best.factor:g} comes nearest, with "
                f"{_expected(best)}. Watch a higher spike.quantile."
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
    for layer, one in layers.items():
        if _recorded_seconds(one) < LEAST_SECONDS:
            continue
        mine = [part for part in parts if part.layer == layer]
        stale = one.rate_ratio > STALE
        often = f"{_named(layer)}: requests exceed {rounded(one.rate_ratio)} times as often as in"
        if stale and (alarms := sum(map(_alarms, mine))):
            yield (
                f"{often} the baseline, with {counted(alarms, 'alarm')} in this recording: name the times of "
                "true incidents with --incident and calibrate again. What exceeds so often without them "
                "is other traffic than the baseline's."
            )
            continue  # how much an incident varies says nothing of how long to learn
        if one.baseline_error > BASELINE_ERROR and one.requests_per_window > 0:
            seconds = _learning_seconds(baseline_windows(one, BASELINE_ERROR), mine[0])
            yield (
                f"{_named(layer)}: the baseline of {counted(one.baseline_requests, 'request')} over "
                f"{lasting(one.baseline_seconds)} knows its rates to {100 * one.baseline_error:.0f} %, "
                f"and {100 * BASELINE_ERROR:.0f} % is wanted: learn for {lasting(seconds)} at this traffic "
                f"(statistics.baseline_min_seconds: {seconds})."
            )
        if stale:
            yield (
                f"{often} the baseline, and nothing fires: it was learned on other traffic, learn it anew "
                "(sidecar baseline relearn); if this was an incident, name its time with --incident "
                "instead."
            )


def _recorded_seconds(one: Behaviour) -> float:
    return one.days * _SECONDS_PER_DAY


def _learning_seconds(windows: float, part: Stretch) -> int:
    """Return for how long to learn: whole hours, and not less than without any advice."""
    hours = math.ceil(windows * part.window_seconds / 3600.0)
    return max(hours * 3600, math.ceil(StatisticsConfig().baseline_min_seconds))


def _alarms(part: Stretch) -> int:
    """Return how many alarms the policy raises in a stretch."""
    terms = part.terms
    lanes = Lanes(
        terms.spike,
        part.flagged,
        terms.baseline_rate,
        terms.baseline_share,
        terms.factor,
        terms.judged,
    )

    def window(number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return part.compared[number], part.exceedances[number]

    return int(raised(lanes, window, 0, len(part.at)).sum())


def _on_sampling(
    parts: Sequence[Stretch],
    overall: Behaviour,
    spikes: Delay | None,
    rng: np.random.Generator,
    *,
    noisy: bool,
) -> Iterator[str]:
    if spikes is None or (spikes.windows <= WANTED_WINDOWS and spikes.missed <= MISSED):
        return
    mean = overall.requests_per_window
    enough = enough_requests(parts[0], overall, rng, windows=WANTED_WINDOWS, missed=MISSED)
    missed = f"{rounded(100 * spikes.missed)} % are missed"
    after = "" if math.isinf(spikes.windows) else counted(round(spikes.windows), "window")
    soon = f"after {after}, {missed}" if after else missed
    words = f"Spikes in {100 * SPIKE_SHARE:.0f} % of {mean:.0f} requests a window are found late ({soon})"
    if enough is None:
        lower = (
            "a lower spike.factor would find them, and be wrong even more often"
            if noisy
            else "lower spike.factor or raise spike.quantile"
        )
        yield f"{words}, and more requests do not help: {lower}."
    elif enough > mean:
        yield (
            f"{words}; with {enough} requests {WANTED_WINDOWS} windows would do: sample "
            f"{enough / mean:.1f} times as much, or make statistics.window_seconds longer."
        )
    else:
        yield f"{words}, though so many would be enough if requests were independent: they burst."


def _limits(
    parts: Sequence[Stretch],
    overall: Behaviour,
    rates: FalseAlarms | None,
    cut: Cut,
    incidents: Sequence[Incident],
) -> Iterator[str]:
    if rates is None:
        yield (
            f"The longest stretch has {counted(max(len(part.at) for part in parts), 'window')}, and "
            f"{5 * cut.warm} are needed to say how often the policy is wrong: record for longer."
        )
        return
    least = rates.per_1000_days(3.7 / rates.feature_days)
    yield (
        f"{rounded(rates.feature_days, 3)} feature-days can show no rate below {rounded(least)} in 1,000 days: what "
        "is rarer does not happen in them."
    )
    left = "incidents are left out" if incidents else "name the times of true ones with --incident"
    taken = "none here"
    if rates.alarms:
        taken = "the one here is taken for that"
    if rates.alarms > 1:
        taken = f"all {rates.alarms}, of {counted(rates.clumps, 'cause')}, are taken for that"
    yield f"Whether an alarm was false: {taken}. `sidecar replay` shows them; {left}."
    yield (
        f"Traffic that was not recorded: these are "
        f"{lasting(_recorded_seconds(overall) / max(1, len(_layers(parts))))} a layer, and a release, a weekend or another season behaves otherwise."
    )
    each = overall.rate * overall.requests_per_window
    if each < 1.0:
        yield (
            f"Bursts of what is rare: a window holds {each:.2g} exceeding requests on average, less than one, so that "
            "the recent level is mostly 0 and only the baseline holds an alarm back: lower spike.quantile, or "
            "sample more."
        )
    short = sum(len(part.at) < cut.least for part in parts)
    if short:
        are = "1 stretch is" if short == 1 else f"{short} stretches are"
        yield f"{are} shorter than {counted(cut.least, 'window')} and in no block."
    many = [part for part in parts if part.of > part.compared.shape[1]]
    if many:
        yield (
            f"Of layers with more than {FEATURES} flagged features an even choice is measured, and taken to "
            "stand for all."
        )


def _on_short_layers(layers: dict[LayerKey, Behaviour]) -> Iterator[str]:
    short = sum(_recorded_seconds(one) < LEAST_SECONDS for one in layers.values())
    if short:
        yield (
            f"Whether a baseline fits: of {counted(short, 'layer')} less than {lasting(LEAST_SECONDS)} is "
            "recorded, which may be any traffic."
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
        "other_factors": [
            {**_rates(one), "spikes": _spikes(spikes)}
            for one, spikes in zip(found.tried, found.delays, strict=True)
        ],
        "spikes": _spikes(found.delay),
        "advice": list(found.advice),
        "cannot_know": list(found.limits),
    }


def _spikes(one: Delay | None) -> dict[str, Any] | None:
    return None if one is None else _plain(asdict(one))


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

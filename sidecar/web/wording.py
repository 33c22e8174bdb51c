"""Numbers, times and verdicts in words that people read at a glance."""

import math
import shlex
from datetime import UTC, datetime

from sidecar.detect import Detector, State
from sidecar.features import FeatureKey, FeatureKind, short_revision
from sidecar.monitor import Anomaly, FeatureStatus

ABSENT = "\u2013"
"""Stands for a number that is not known; always with words nearby that say why."""

UNJUDGED = "not judged for spikes"
"""The state of a feature whose flag does not ask for the spike test: it is not unknown."""

TIMES = "\u00d7"
"""The multiplication sign after a factor."""

_MINUS = "\u2212"  # a true minus lines up with plus in tabular figures
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_AGES = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_AT_LEAST_TIMES = 1.05  # below this "times as often" would read as a difference that is none


def number(value: float) -> str:
    """Return a measured value with three significant digits, padded so that columns line up.

    Example:
        >>> number(4.7), number(0.5), number(12345.6), number(2.5e7), number(0.0)
        ('4.70', '0.500', '12,300', '2.5e7', '0')
    """
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:  # noqa: PLR2004 - where plain digits become hard to count
        mantissa, exponent = f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    if not value:
        return "0"
    rounded = float(f"{value:.2e}")  # first, so that 9.996 gets the places of 10
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}".replace("-", _MINUS)


def compact(value: float) -> str:
    """Return ``number(value)`` without padding, for running text and axes.

    Example:
        >>> compact(83.0), compact(0.5), compact(100.0)
        ('83', '0.5', '100')
    """
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def count(value: int) -> str:
    """Return a whole number, grouped below a million and scaled from there.

    Example:
        >>> count(999), count(12345), count(2_345_678)
        ('999', '12,345', '2.35 M')
    """
    if value < 1_000_000:  # noqa: PLR2004 - six digits are still read at a glance
        return f"{value:,}"
    scale, letter = next(item for item in _SCALES if value >= item[0])
    return f"{value / scale:.3g} {letter}"


def percent(ratio: float) -> str:
    """Return a share as a percentage with two significant digits; tiny shares keep their size.

    Example:
        >>> percent(0.0834), percent(0.001), percent(1.0), percent(0.0), percent(3e-7)
        ('8.3 %', '0.1 %', '100 %', '0 %', '<0.0001 %')
    """
    if math.isnan(ratio):
        return ABSENT
    value = ratio * 100
    if 0 < value < 0.000_099_9:  # noqa: PLR2004 - one in a million is "never" to a reader
        return "<0.0001 %"
    if value >= 99.95 and ratio < 1:  # noqa: PLR2004 - rounding must not turn "nearly" into "all"
        return ">99.9 %"
    digits = 1 if value >= 10 or value == 0 else 1 - math.floor(math.log10(value))  # noqa: PLR2004
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def times(now: float, before: float) -> str:
    """Return ``now / before`` as a factor, or words where there is none.

    Example:
        >>> times(0.08, 0.001).removesuffix(TIMES), times(0.08, 0.0), times(math.nan, 0.1)
        ('80', '', '')
    """
    if not (math.isfinite(now) and before > 0):
        return ""
    return f"{compact(now / before)}{TIMES}"


def duration(seconds: float) -> str:
    """Return a stretch of time in its two largest units.

    Example:
        >>> duration(0.4), duration(75), duration(7300), duration(90000)
        ('0 s', '1 min 15 s', '2 h 1 min', '1 d 1 h')
    """
    left = max(0.0, seconds)
    parts: list[tuple[int, str]] = []
    for size, unit in _AGES:
        whole = int(left // size)
        if whole or (parts and len(parts) < 2):  # noqa: PLR2004 - two units
            parts.append((whole, unit))
        left -= whole * size
        if len(parts) == 2:  # noqa: PLR2004 - two units
            break
    shown = [f"{whole} {unit}" for whole, unit in parts if whole]
    return " ".join(shown) or "0 s"


def age(at: float, now: float) -> str:
    """Return how long ago ``at`` was in its largest unit, ``never`` for 0.

    Example:
        >>> age(1000, 1260), age(1000, 1000), age(0, 5)
        ('4 min ago', 'just now', 'never')
    """
    if at <= 0:
        return "never"
    gone = now - at
    unit = next(((size, name) for size, name in _AGES if gone >= size), None)
    return f"{int(gone // unit[0])} {unit[1]} ago" if unit else "just now"


def moment(at: float) -> str:
    """Return a time as ``2026-11-23 15:32:01 UTC``."""
    return f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC" if at > 0 else ABSENT


def until(at: float, now: float) -> str:
    """Return how soon ``at`` is in its two largest units, ``now`` where it has come.

    Example:
        >>> until(7300, 0), until(5, 9)
        ('in 2 h 1 min', 'now')
    """
    return f"in {duration(at - now)}" if at - now >= 1 else "now"


def day(at: float) -> str:
    """Return a day as ``2026-11-23``, in UTC."""
    return f"{_utc(at):%Y-%m-%d}"


def iso(at: float) -> str:
    """Return a time for machines: ``2026-11-23T15:32:01Z``."""
    return f"{_utc(at):%Y-%m-%dT%H:%M:%SZ}"


def _utc(at: float) -> datetime:
    # A clock gone mad must not take the page down with it.
    return datetime.fromtimestamp(min(max(at, 0.0), 253_402_300_799.0), tz=UTC)


def short_key(key: FeatureKey) -> str:
    """Return the feature's text form with its revision cut to what people compare."""
    full = key.layer.revision
    return str(key).replace(f"@{full}/", f"@{short_revision(full)}/", 1)


def short_path(key: FeatureKey) -> str:
    """Return ``key.path`` with its revision cut to what people compare."""
    full = key.layer.revision
    return key.path.replace(f"@{full}/", f"@{short_revision(full)}/", 1)


def unit_name(key: FeatureKey, labels: tuple[str, ...]) -> str:
    """Return what a unit is called where nobody named it: its class, or its kind and index."""
    if key.layer.kind is FeatureKind.LOGIT and key.index < len(labels):
        return labels[key.index]
    return f"{key.layer.kind} {key.index}"


def upper(status: FeatureStatus) -> float:
    """Return the value above which a request exceeds; NaN where it is watched below alone."""
    return math.nan if status.direction == "below" else status.threshold


def lower(status: FeatureStatus) -> float:
    """Return the value below which a request exceeds; NaN where it is watched above alone."""
    return math.nan if status.direction == "above" else status.low_threshold


def extreme(status: FeatureStatus) -> tuple[str, str]:
    """Return what is compared with a feature's thresholds: what it is called, and the value in words."""
    if status.direction == "below":
        return "Least value", number(status.least)
    if status.direction == "both" and math.isfinite(status.least):
        return "Values from, to", f"{compact(status.least)}, {compact(status.last)}"
    return "Greatest value", number(status.last)


def chance(log10: float) -> str:
    """Return a chance of which the power of ten is known.

    Example:
        >>> chance(-1.3), chance(-412.6)[:3]
        ('0.0501', '2.5')
    """
    if log10 >= -3:  # noqa: PLR2004 - such chances are read without an exponent
        return number(10**log10)
    exponent = math.floor(log10)
    return f"{10 ** (log10 - exponent):.1f}e{exponent}".replace("-", _MINUS)


def stands_out(found: Anomaly) -> str:
    """Say what the screen finds of an unflagged feature."""
    return (
        f"{count(found.exceedances)} of the {count(found.requests)} requests of a recent window exceed its "
        f"baseline's quantile, {compact(found.factor)} times as often as in its baseline"
    )


def beyond(status: FeatureStatus) -> str:
    """Say which values exceed, such as ``above 4.7 or below -2``; empty without a threshold."""
    sides = (("above", upper(status)), ("below", lower(status)))
    return " or ".join(f"{side} {compact(x)}" for side, x in sides if math.isfinite(x))


def concerns(status: FeatureStatus) -> tuple[str, ...]:
    """Return in a word each what holds of a watched feature beside spikes, the most certain first.

    Empty where nothing does, whatever the spike test says.
    """
    if status.flag is None:
        return ()
    certain = tuple(name.replace("_", " ") for name in status.conditions)
    return (*certain, "drifting") if status.drifting else certain


def headline(status: FeatureStatus) -> str:
    """Return how a feature stands in a word or two; never ``normal`` where something holds of it."""
    if status.flag is None:
        return "not watched"
    held = concerns(status)
    state = str(status.state) if judged(status) else UNJUDGED
    return ", ".join((*((state,) if not held or status.state in _SPIKES else ()), *held))


def judged(status: FeatureStatus) -> bool:
    """Return whether a flag asks for the spike test, without which a state says nothing."""
    return status.flag is not None and Detector.SPIKE in status.flag.detectors


def verdict(status: FeatureStatus) -> str:
    """Say how a feature behaves, with the numbers that make it so; what is certain leads."""
    if status.flag is None and status.anomaly is not None:
        return (
            f"Nobody watches this feature, and it stands out: {stands_out(status.anomaly)}. Flag it to be "
            "told when it spikes."
        )
    if status.flag is None:
        return (
            "Nobody watches this feature. Its distribution is kept all the same; flag it to be "
            "told when it spikes."
        )
    told = [_CERTAIN.get(name, name.replace("_", " ")) for name in status.conditions]
    if status.drifting:
        told.append("Its distribution drifts away from its baseline")
    return " ".join([*(f"{words}." for words in told), _spike_verdict(status)])


def _spike_verdict(status: FeatureStatus) -> str:
    if math.isnan(status.threshold):
        return "No baseline yet, so nothing can be said about spikes."
    if not judged(status):
        return f"Not judged for spikes: its flag asks for {_asked(status)} alone."
    if status.state is State.UNKNOWN:
        return _unknown(status.explanation)
    calm = status.state is State.NORMAL and concerns(status)
    lead = "Does not spike" if calm else _LEADS[status.state]
    return f"{lead}: {_comparison(status)}."


def _asked(status: FeatureStatus) -> str:
    return " and ".join(status.flag.detectors if status.flag else ()) or "nothing"


def _unknown(explanation: str) -> str:
    reason = explanation.strip().rstrip(".")
    return f"Cannot be judged for spikes now: {reason}." if reason else _UNKNOWN


def happened(status: FeatureStatus) -> str:
    """Return what made the state what it is, in words of then; empty where the verdict says it."""
    known = not math.isnan(status.threshold) and judged(status)
    if status.flag is None or not known or status.state is State.UNKNOWN:
        return ""
    # What a feature says that never changed its state is no news.
    return status.explanation if status.explanation != "Within its baseline." else ""


_UNKNOWN = "Not enough recent requests to judge it."

_SPIKES = (State.FIRING, State.PENDING, State.RESOLVED)

_CERTAIN = {
    "never_seen": "Never seen before: it gave values outside its baseline's range",
    "nonfinite": "Broken: it gives NaN or infinite values",
    "silent": "Silent: it gives nothing but zeros",
    "saturated": "Saturated: it gives the same value, or its baseline's greatest, again and again",
}

_LEADS = {
    State.NORMAL: "Behaves as in its baseline",
    State.PENDING: "May be spiking",
    State.FIRING: "Spikes",
    State.RESOLVED: "Has calmed down",
}


def _comparison(status: FeatureStatus) -> str:
    now, usual = status.exceedance_ratio, status.baseline_ratio
    if math.isnan(now):
        return "no request was seen in the short window"
    base = (
        f"{percent(now)} of the last {count(status.requests)} requests {_exceed(status)}, "
        f"against {percent(usual)} in the baseline"
    )
    if status.state is not State.NORMAL and usual > 0 and now / usual >= _AT_LEAST_TIMES:
        return f"{base}, {times(now, usual).removesuffix(TIMES)} times as often"
    return base


def _exceed(status: FeatureStatus) -> str:
    above_only = status.direction == "above"
    return f"exceed {compact(status.threshold)}" if above_only else f"were {beyond(status)}"


def command(*words: str) -> str:
    """Return a command line to paste into a shell.

    Example:
        >>> command("sidecar", "feature", "get", "lite0@3f/b;mean")
        "sidecar feature get 'lite0@3f/b;mean'"
    """
    return shlex.join(words)


_MADE = {
    "dataset_examples": "Images of a dataset, the strongest first: nothing in them was computed.",
    "attribution": "An image, and maps of what in it drives this unit.",
    "comparison": "What this unit is in two models: portraits are computed, images are of the dataset.",
}
"""What the sheets show that are not computed pictures, by method."""


def made(method: str | None) -> str:
    """Return what a picture is, by the method that made it."""
    computed = "Computed to excite this unit as much as possible. It is not a photograph and not from your traffic."
    return _MADE.get(method or "", computed)


def stamp(method: str | None, verdict: str | None) -> str:
    """Return what is stamped on a picture."""
    word = "With images" if method in _MADE else "Synthetic"
    return f"{word}, unreliable" if verdict == "unreliable" else word


def reached(
    activation: float, percentile: float | None, greatest: float | None, of: int, window: str
) -> str:
    """Say where a picture's activation lies among the values seen on live traffic.

    Args:
        activation: What the feature gives for the picture.
        percentile: Share of live values at or below it, 0 to 100; None where it is not known.
        greatest: Greatest live value; None where it is not known.
        of: How many live values it was compared with.
        window: Which window they are of; may be empty.

    Example:
        >>> reached(3.2, 99.2, 6.1, 12000, "baseline")
        'Activation 3.2, higher than 99.2 % of 12,000 live values (baseline).'
        >>> reached(3.2, None, None, 0, "")
        'Activation 3.2; there are no live values to compare it with.'
    """
    lead = f"Activation {compact(activation)}"
    if not of:
        return f"{lead}; there are no live values to compare it with."
    live = f"{count(of)} live values{f' ({window})' if window else ''}"
    if greatest is not None and activation > greatest:
        factor = f", {times(activation, greatest)}" if greatest > 0 else ", above"
        return (
            f"{lead}{factor} the greatest of {live}, which is {compact(greatest)}. That is usual "
            "for a synthetic picture."
        )
    if percentile is not None:
        return f"{lead}, higher than {percent(percentile / 100)} of {live}."
    return f"{lead}, within the range of {live}."

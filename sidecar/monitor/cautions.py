"""What speaks against the baseline that a layer is compared with now, in sentences."""

from collections.abc import Iterator
from dataclasses import fields

from sidecar.features import Capture, Slice
from sidecar.stats import Expectation


def cautions_in_force(
    expected: Expectation | None, quantile: float, learned: Capture | None, capture: Capture
) -> tuple[str, ...]:
    """Return what has changed since a baseline froze, and what its traffic is too thin for.

    Args:
        expected: What was measured of the layer; None: nothing was.
        quantile: The spike test's.
        learned: How the layer was measured while it learned; None: that is not known.
        capture: How it is measured now.
    """
    return tuple(_cautions(expected, quantile, learned, capture))


def _cautions(
    expected: Expectation | None, quantile: float, learned: Capture | None, capture: Capture
) -> Iterator[str]:
    if learned is not None and learned != capture:
        yield (
            f"it was measured differently: {differences(learned, capture)}: learn it anew (sidecar "
            "baseline relearn), or restore what was changed"
        )
    if expected is None or not expected.windows:
        return
    if expected.level != quantile:
        yield (
            f"it was learned at quantile {expected.level:.10g}, and spike.quantile says {quantile:.10g}: "
            "the screen stays at the former, and flags learn their own rates at the latter; learn it "
            "anew (sidecar baseline relearn), or restore the setting"
        )
    each = float(expected.exceedances.mean()) / expected.windows
    if each < 1.0:
        yield (
            f"a window expects {each:.2g} requests beyond the {100 * expected.level:.6g} % quantile, less "
            "than one: more is tolerated than was measured, and a small spike is found late or not; "
            "sample more requests, or lower spike.quantile"
        )


def caution_of_rate(share: float, explained: float, traffic: Slice) -> str:
    """Return what speaks against the rate that a flag is held to.

    Args:
        share: Of the requests it was learned from.
        explained: The most that its baseline's rows explain.
        traffic: What the flag is restricted to.
    """
    unlike = " or its slice is unlike all traffic" if traffic.pairs else ""
    return (
        f"{100 * share:.3g} % of the requests it learned its rate from exceeded, and its baseline's rows "
        f"explain {100 * explained:.3g} % at most: that was unusual traffic{unlike}, and more of it raises "
        "no alarm; once traffic is ordinary have the baseline learned anew (sidecar baseline relearn)"
    )


def differences(theirs: Capture, mine: Capture) -> str:
    """Return what differs between two ways of measuring, in words."""
    names = [field.name for field in fields(Capture)]
    return ", ".join(
        f"{name} {getattr(theirs, name)!r} there and {getattr(mine, name)!r} here"
        for name in names
        if getattr(theirs, name) != getattr(mine, name)
    )

"""Numbers, times and names as commands print them."""

import math
from datetime import UTC, datetime

from sidecar.features import short_revision

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def moment(seconds: float) -> str:
    """Return a time as ``2026-11-23 15:32:01 UTC``, ``never`` for 0."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else "never"


def lasting(seconds: float) -> str:
    """Return a stretch of time in its largest unit.

    Example:
        >>> lasting(0.4), lasting(75), lasting(7300)
        ('0 s', '1 min', '2 h')
    """
    left = max(0.0, seconds)
    size, unit = next((one for one in _UNITS if left >= one[0]), _UNITS[-1])
    return f"{int(left // size)} {unit}"


def percent(share: float) -> str:
    """Return a share as a percentage; small ones keep their size.

    Example:
        >>> percent(0.0834), percent(0.00002), percent(0.0)
        ('8.34%', '0.002%', '0%')
    """
    return f"{100 * share:.3g}%" if share >= 1e-6 or not share else "<0.0001%"  # noqa: PLR2004 - one in a million


def power(log10: float) -> str:
    """Return a chance of which the power of ten is known.

    Example:
        >>> power(-1.3), power(-412.6)
        ('0.05', '2.5e-413')
    """
    if log10 >= -3:  # noqa: PLR2004 - such chances are read without an exponent
        return f"{10**log10:.2g}"
    exponent = math.floor(log10)
    return f"{10 ** (log10 - exponent):.1f}e{exponent}"


def short_key(key: str) -> str:
    """Cut the revision in a feature's or layer's key to what is shown everywhere."""
    model, _, rest = key.partition("@")
    revision, _, tail = rest.partition("/")
    return f"{model}@{short_revision(revision)}/{tail}"

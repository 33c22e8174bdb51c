"""How numbers read in what people are told: plain digits, and a unit that fits."""

import math

import numpy as np

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def rounded(value: float, digits: int = 2) -> str:
    """Return a number as people read it: a few digits, whole ones in full, and never a power of ten.

    Example:
        >>> rounded(3620.4), rounded(0.01234), rounded(0.0), rounded(0.0000271)
        ('3,620', '0.012', '0', '0.000027')
        >>> rounded(3.14159, 3), rounded(99.6), rounded(1330.0, 3)
        ('3.14', '100', '1,330')
    """
    if not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def lasting(seconds: float) -> str:
    """Return a length of time in the unit that fits.

    Example:
        >>> lasting(190.0), lasting(5400.0), lasting(86_400.0), lasting(45.0)
        ('3.2 min', '1.5 h', '1 day', '45 s')
    """
    if seconds < _MINUTE:
        return f"{_tenth(seconds)} s"
    if seconds < _HOUR:
        return f"{_tenth(seconds / _MINUTE)} min"
    if seconds < _DAY:
        return f"{_tenth(seconds / _HOUR)} h"
    return f"{_tenth(seconds / _DAY)} {'day' if seconds < 1.05 * _DAY else 'days'}"


def counted(number: int, thing: str) -> str:
    """Return how many there are of a thing whose plural ends in s.

    Example:
        >>> counted(1, "window"), counted(8640, "window"), counted(0, "page")
        ('1 window', '8,640 windows', '0 pages')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _tenth(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")

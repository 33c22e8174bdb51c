"""Arrays as JSON-able values, and back without believing what a file says."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def plain(array: NDArray[Any]) -> list[Any]:
    """Return lists of numbers; JSON has no NaN, so None stands for it."""
    if array.dtype.kind == "f":
        known = array.astype(object)
        known[np.isnan(array)] = None
        return list(known.tolist())
    return list(array.tolist())


def whole(values: Any, n: int) -> NDArray[Any]:
    """Return whole numbers, and nothing that merely could be read as such.

    Args:
        values: Lists of numbers, the innermost of ``n``.
        n: Features; with none every window is an empty list, which numpy cannot tell from no windows.

    Raises:
        ValueError: They are of another type, or of uneven lengths; so may TypeError and OverflowError.
    """
    found = np.array(values)
    if found.size and found.dtype.kind != "i":
        raise ValueError(f"numbers of type {found.dtype} where whole ones belong")
    return _ringed(found.astype(np.int64), values, n)


def real(values: Any, n: int) -> NDArray[Any]:
    """Return numbers, NaN for None; as ``whole`` otherwise."""
    return _ringed(np.array(values, np.float64), values, n)


def _ringed(found: NDArray[Any], values: Any, n: int) -> NDArray[Any]:
    return found.reshape(len(values), n) if not n and len(values) else found

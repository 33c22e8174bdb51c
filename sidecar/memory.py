"""Giving memory that is no longer used back to the system."""

import ctypes


def give_back() -> bool:
    """Return freed memory to the system, where the C library can be asked to; cheap, and at any time.

    glibc keeps what large temporary arrays leave behind, in case it is wanted again: 70 MB after the
    bins of 131,072 features have been placed. In a container that counts against the limit.

    Returns:
        Whether anything could be asked; musl and macOS cannot, and keep less.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True

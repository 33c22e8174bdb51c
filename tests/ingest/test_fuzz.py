"""A small run of the fuzz driver, whose checks are its own; a million is ``benchmarks.fuzz``'s command."""

import pytest

from benchmarks.fuzz import LIMIT, fuzz

pytestmark = pytest.mark.unit

EVERYWHERE = {
    "malformed",
    "payload_mismatch",
    "shape_mismatch",
    "unsupported_dtype",
    "unregistered_layer",
    "unregistered_stream",
    "invalid_name",
    "message_too_large",
}
FRAMES_ONLY = {"broken_frame", "truncated_frame", "unsupported_version"}


def test_hostile_input_is_accepted_or_refused_and_nothing_else() -> None:
    """No crash, balanced books, all memory back; and the driver reaches every way to say no."""
    found = fuzz(6000, seed=1)

    frames, messages = found["frames"], found["messages"]
    for outcome in (frames, messages):
        assert outcome.items >= 3000
        assert outcome.accepted > outcome.items / 20
        assert set(outcome.refused) >= EVERYWHERE
    assert set(frames.refused) >= FRAMES_ONLY
    assert not FRAMES_ONLY & set(messages.refused)


def test_the_same_seed_does_the_same() -> None:
    """A crash can be shown again."""
    assert LIMIT == 4096
    assert fuzz(600, seed=7) == fuzz(600, seed=7)

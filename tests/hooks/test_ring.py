"""The ring in which hooks stage rows: where places lie, and that nobody can take its memory away."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.hooks.lane import LEAST_RING_BYTES, _Outlet
from sidecar.hooks.ring import Ring

pytestmark = pytest.mark.unit

SIZE = 1 << 18


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A small ring, closed afterwards."""
    with contextlib.closing(Ring(SIZE)) as ring:
        yield ring


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "drop", "fetch"]), st.integers(1, SIZE // 2)),
        max_size=60,
    )
)
def test_a_place_is_not_lent_again_before_it_was_fetched(steps: list[tuple[str, int]]) -> None:
    """Whatever is sent, dropped or fetched: what the daemon has not taken out is not overwritten."""
    with contextlib.closing(Ring(SIZE)) as ring:
        use(ring, steps)


def use(ring: Ring, steps: list[tuple[str, int]]) -> None:
    """Take these steps with a ring, whose rows stay as they are until they are fetched."""
    unread: list[tuple[int, bytes]] = []
    sent = fetched = 0
    whole = ring.lend(SIZE)
    assert whole is not None
    ring.end_burst()
    ring.fetched(0)
    for what, size in steps:
        if what == "fetch":
            fetched = min(fetched + 1, sent)
            del unread[: len(unread) - (sent - fetched)]
            ring.fetched(fetched)
        elif (view := ring.lend(size)) is not None:
            if what == "send":
                sent += 1
                view[:] = bytes([sent % 256]) * size
                start = ring.place([view], size)
                assert start is not None
                unread.append((start, bytes(view)))
            else:
                view[:] = bytes(size)
            ring.end_burst()
        assert all(bytes(whole[at : at + len(data)]) == data for at, data in unread)
    ring.fetched(sent)
    assert ring.lend(SIZE) is not None


def test_what_is_not_in_the_ring_in_one_piece_travels_behind_its_frame(ring: Ring) -> None:
    """Only tensors that follow one another in it as in a payload have a place."""
    view = ring.lend(64)
    assert view is not None

    assert ring.place([bytes(64)], 64) is None
    assert ring.place([view[:8], view[16:24]], 16) is None
    assert ring.place([view[:8], bytes(8)], 16) == 0
    assert ring.place([view[:5], bytes(3), view[8:16]], 16) == 0
    assert ring.place([view[8:16], view[16:24]], 16) == 8
    ring.end_burst()
    assert ring.place([view[:8]], 8) is None  # of an earlier burst: it may be lent again by now


def test_a_ring_that_is_full_lends_nothing(ring: Ring) -> None:
    """Nor one that is too small; a place that no message used is free with the next burst."""
    assert ring.lend(SIZE + 1) is None
    assert ring.lend(SIZE) is not None
    assert ring.lend(1) is None
    assert not ring.busy
    ring.end_burst()
    ring.fetched(0)
    assert ring.lend(1) is not None


def test_a_daemon_that_counts_too_far_frees_nothing_early(ring: Ring) -> None:
    """What was not sent cannot have been fetched."""
    view = ring.lend(SIZE)
    assert view is not None
    ring.fetched(1 << 63)
    assert ring.place([view], SIZE) == 0
    ring.end_burst()
    ring.fetched(0)

    assert ring.busy
    assert ring.lend(1) is None


def test_the_memory_cannot_be_taken_away(ring: Ring) -> None:
    """Neither side can be killed by a file that has shrunk, nor can the seals be lifted."""
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.descriptor, size)
    seals = fcntl.fcntl(ring.descriptor, fcntl.F_GET_SEALS)

    assert fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW == seals
    assert os.fstat(ring.descriptor).st_blocks * 512 >= SIZE  # allocated, not only promised


def test_closing_leaves_nothing_behind() -> None:
    """Memory and descriptors go; rows that somebody still holds stay readable."""
    before = set(Path("/proc/self/fd").iterdir())
    ring = Ring(SIZE)
    view = ring.lend(4)
    assert view is not None
    view[:] = b"rows"
    ring.close()
    assert b"rows" == bytes(view)
    del view, ring
    assert not set(Path("/proc/self/fd").iterdir()) - before


def test_a_child_that_lets_go_takes_nothing_from_its_parent(ring: Ring) -> None:
    """The parent's rows stay, and its ring goes on."""
    view = ring.lend(4)
    assert view is not None
    view[:] = b"rows"
    child = os.fork()
    if child == 0:
        ring.close()
        os._exit(0)
    assert 0 == os.waitpid(child, 0)[1]

    assert b"rows" == bytes(view)
    assert ring.lend(4) is not None


class Answers:
    """What a daemon says about the ring when it is listened to."""

    def __init__(self, *says: int) -> None:
        self.fetched: int | None = 0
        self.listened = 0
        self._says = list(says)

    def listen(self, _: float) -> None:
        """Hear the next."""
        self.listened += 1
        if self._says:
            self.fetched = self._says.pop(0)


def outlet_of(ring: Ring, answers: Answers) -> _Outlet:
    """Return an outlet whose daemon has mapped the ring."""
    session: Any = SimpleNamespace(ring_bytes=SIZE, ended=False)
    outlet = _Outlet(cast("Any", None), session, cast("Any", answers))
    outlet._ring, outlet._ring_tried = ring, True  # noqa: SLF001 - as after a hand-over
    return outlet


def test_batches_that_were_dropped_do_not_use_the_ring_up(ring: Ring) -> None:
    """Nobody fetches what was never sent, and nobody is waited for."""
    answers = Answers()
    outlet = outlet_of(ring, answers)
    for _ in range(10):
        assert outlet.lend(SIZE) is not None
        ring.end_burst()

    assert 0 == answers.listened


def test_room_is_waited_for_where_it_is_about_to_come(ring: Ring) -> None:
    """And what was heard by the way counts without waiting."""
    answers = Answers(0, 1)
    outlet = outlet_of(ring, answers)
    for number in (1, 2):
        view = outlet.lend(SIZE)
        assert view is not None
        ring.place([view], SIZE)
        ring.end_burst()
        assert 2 * (number - 1) == answers.listened
    answers.fetched = 2
    assert outlet.lend(SIZE) is not None
    assert 2 == answers.listened


def test_few_rows_and_a_daemon_that_frees_nothing_go_through_the_socket(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once, the second after a moment."""
    monkeypatch.setattr("sidecar.hooks.lane.RING_SECONDS", 0.01)
    outlet = outlet_of(ring, Answers())
    assert outlet.lend(LEAST_RING_BYTES - 1) is None
    view = outlet.lend(SIZE)
    assert view is not None
    ring.place([view], SIZE)
    ring.end_burst()

    assert outlet.lend(SIZE) is None

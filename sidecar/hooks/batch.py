"""What one sampled forward pass hands to the sink."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sidecar.features import LayerKey, Request


@dataclass(frozen=True, slots=True)
class TappedRows:
    """Rows copied from the output of one module call.

    Attributes:
        layer: Where they were taken.
        dtype: ``f32``, ``f16`` or ``bf16``.
        items: Items of the model's batch the rows belong to.
        rows_per_item: Rows of each item, next to each other.
        width: Values of a row.
        payload: Little-endian values in C order; valid until the batch is released.
        named: Whether item i is request i of the batch; else the items are anonymous.
        weight: Positions the items have over those taken; at least 1.
    """

    layer: LayerKey
    dtype: str
    items: int
    rows_per_item: int
    width: int
    payload: memoryview
    named: bool
    weight: float = 1.0


Lend = Callable[[int], memoryview | None]
"""Lends writable memory of so many bytes for rows to be staged in; None: there is none now. It is valid
until the batch is released, and need not be given back."""


def lends_nothing(_: int) -> None:
    """Lend nothing: rows are staged in memory of the hooks' own."""


class Batch(Protocol):
    """The sampled rows of one forward pass."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those of ``current_requests`` that were sampled, or empty."""

    @property
    def weight(self) -> float:
        """The plan's sampling rate over the rate the pass was sampled with; at least 1."""

    @property
    def held_bytes(self) -> int:
        """Memory the rows take; what the queue is charged with."""

    def stage(self, lend: Lend = lends_nothing) -> tuple[TappedRows, ...]:
        """Return the rows, in the order the modules ran.

        A module that ran twice is there twice, and none are there when every hook had to refuse its
        own. May wait for a device, so it is called by the sender only, at most once.

        Args:
            lend: Asked for memory first, as rows staged there are not copied again.
        """

    def release(self) -> None:
        """Give the memory of ``stage`` back; called after the last use, and also without ``stage``."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A ``Batch`` of rows that somebody else made.

    Attributes:
        rows: Returns the rows, staged already.
        requests: Those that were sampled.
        weight: At least 1.
        held_bytes: What the queue is charged with.
        release: Called after the last use.
    """

    rows: Callable[[], tuple[TappedRows, ...]]
    requests: tuple[Request, ...] = ()
    weight: float = 1.0
    held_bytes: int = 0
    release: Callable[[], None] = _nothing

    def stage(self, lend: Lend = lends_nothing) -> tuple[TappedRows, ...]:
        """Return the rows where they are."""
        del lend
        return self.rows()

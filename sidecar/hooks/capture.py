"""The rows of one sampled forward pass, from the hooks that take them to the sender."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch

from sidecar.features import LayerKey, Request
from sidecar.hooks.batch import Lend, TappedRows, lends_nothing
from sidecar.hooks.sampler import Sampler
from sidecar.hooks.staging import Pool

_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


class Population(NamedTuple):
    """What a sampled forward pass computes, and which part of it is sampled.

    Attributes:
        items: Items of the model's input; 0: unknown.
        chosen: How many of them are sampled; of an unknown number all, which counts as 1.
        runs: ``(start, stop)`` of the sampled items; None: all of them.
        requests: Those of the sampled items, or empty where the server tells none.
    """

    items: int
    chosen: int
    runs: tuple[tuple[int, int], ...] | None
    requests: tuple[Request, ...]

    @property
    def holds_first(self) -> bool:
        """Whether the first item is sampled, which is as likely as for any other."""
        return self.runs is None or self.runs[0][0] == 0


def sample_items(
    sampler: Sampler, rate: float, items: int, requests: tuple[Request, ...]
) -> tuple[Population, float] | None:
    """Decide which items of a forward pass are sampled.

    By the requests' ids where the server tells them, else by chance; items beyond the requests are
    padding and never sampled, and fewer items than requests are anonymous.

    Args:
        sampler: Decides.
        rate: Probability of each item.
        items: Items of the model's input; 0: unknown, and the pass is sampled whole or not at all.
        requests: Those of the first items, or empty; ignored where there are more than items.

    Returns:
        What is sampled, and a random number from 0 to below 1 for choices within the pass; or None.
    """
    # Of several passes over parts of the requests nobody says which part this one is.
    served = requests if len(requests) <= items else ()
    if not served and (items <= 1 or rate >= 1.0):  # first: the usual case, in every pass
        draw = sampler.draw(rate)
        return None if draw is None else (Population(items, items or 1, None, ()), draw)
    ids = [request.id for request in served]
    if any(ids):
        choice = sampler.choose_named(rate, ids)
    else:
        choice = sampler.choose(rate, len(ids) or items)
    if choice is None:
        return None
    if choice.items >= items:
        return Population(items, choice.items, None, served), choice.draw
    mine = tuple(request for start, stop in choice.runs for request in served[start:stop])
    return Population(items, choice.items, choice.runs, mine), choice.draw


def pick(population: Population, tensor: torch.Tensor) -> tuple[torch.Tensor | None, bool]:
    """Return the entries of an output that belong to the sampled items, where not all of them are.

    An output with k times the input's items holds k entries of each, next to each other, as window
    attention and flattened positions do. Any other belongs to nobody in particular; it is taken
    whole when the first item is sampled, which happens at the rate that its weight says.

    Returns:
        The entries, aliasing or copied, and whether they are nobody's; None instead of entries that
        are not sampled.
    """
    entries = tensor.shape[0]
    if not population.items or entries % population.items:
        return (tensor if population.holds_first else None), True
    each = entries // population.items
    parts = [tensor[start * each : stop * each] for start, stop in population.runs or ()]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)), False


class Source(Protocol):
    """The hook that took rows."""

    @property
    def layer(self) -> LayerKey:
        """Where it takes them."""

    def accept(self, rows: torch.Tensor) -> bool:
        """Say whether these are rows of the layer; count it as the hook's error if not."""


Taken = tuple[Source, torch.Tensor, float, bool]
"""Rows of one module call: who took them; a private copy, shape ``(entries, width)`` or ``(entries,
positions, width)``; positions there were for each one taken; whether the entries are known to be
nobody's in particular. A plain tuple, since it is made between two layers of the model."""


class Sample:
    """A sampled forward pass: filled under way by one thread, and then the sender's ``Batch``.

    One object from the decision to the wire, as each that is made in the forward pass costs it a
    microsecond or more.

    Args:
        population: What the pass computes, and what of it is sampled.
        rate: Sampling rate it was chosen with.
        draw: Random number from 0 to below 1 for choices within the pass.

    Attributes:
        partial: Whether only a part of the items is sampled.
        recording: Whether torch records for a backward pass.
        plain: Whether it is neither, so that outputs are reduced as they are.
        cuda: Whether rows may be on a CUDA device.
        taken: The rows, in the order the modules ran.
        unreduced_bytes: Memory of those rows that are copies of whole outputs.
        hook_seconds: What the hooks took so far.
        too_large: Whether rows were given up as they outgrew the queue.
        others: Whether a module gave rows, but none of a sampled item.
    """

    __slots__ = (
        "_buffer",
        "_dtype",
        "_marks",
        "_pool",
        "cuda",
        "draw",
        "held_bytes",
        "hook_seconds",
        "others",
        "partial",
        "plain",
        "population",
        "rate",
        "recording",
        "requests",
        "taken",
        "too_large",
        "unreduced_bytes",
        "weight",
    )

    def __init__(
        self, population: Population, rate: float, draw: float, *, recording: bool, cuda: bool
    ) -> None:
        self.population = population
        self.partial = population.runs is not None
        self.rate = rate
        self.draw = draw
        self.recording = recording
        self.plain = not (self.partial or recording)
        self.cuda = cuda
        self.taken: list[Taken] = []
        self.unreduced_bytes = 0
        self.hook_seconds = 0.0
        self.too_large = False
        self.others = False

    def seal(
        self,
        pool: Pool,
        dtype: str,
        weight: float,
        held_bytes: int,
        marks: Mapping[torch.device, Any],
    ) -> None:
        """Make it a batch; nothing is added any more.

        Args:
            pool: Where host memory comes from.
            dtype: dtype of the wire.
            weight: Of the batch.
            held_bytes: Memory the rows take.
            marks: For each CUDA device the event after which the rows are complete.
        """
        self._pool = pool
        self._dtype = dtype
        self._marks = marks
        self._buffer: torch.Tensor | None = None
        self.requests = self.population.requests
        self.weight = weight
        self.held_bytes = held_bytes

    def stage(self, lend: Lend = lends_nothing) -> tuple[TappedRows, ...]:
        """Bring the rows into host memory, lent or pooled; may wait for the device."""
        accepted = [taken for taken in self.taken if taken[0].accept(taken[1])]
        if not accepted:
            return ()
        parts = [rows.detach() for _, rows, _, _ in accepted]
        size = sum(part.numel() for part in parts) * _ITEM_BYTES[self._dtype]
        # Copies from a CUDA device take pinned memory, which only the pool has.
        lent = None if self._marks else lend(size)
        buffer = self._pool.stage(parts, self._dtype, self._marks, lent)
        self._buffer = buffer if lent is None else None
        payload = buffer.numpy().data
        tapped = []
        offset = 0
        for taken in accepted:
            size = taken[1].numel() * _ITEM_BYTES[self._dtype]
            tapped.append(self._describe(taken, payload[offset : offset + size]))
            offset += size
        return tuple(tapped)

    def _describe(self, taken: Taken, payload: memoryview) -> TappedRows:
        """Say whose rows they are."""
        source, rows, weight, stray = taken
        entries, *positions, width = rows.shape
        per_entry = positions[0] if positions else 1
        people = self.population
        if stray or not people.items or entries % people.chosen:
            owners, named = entries, False
        else:
            owners, named = people.chosen, bool(people.requests)
        return TappedRows(
            layer=source.layer,
            dtype=self._dtype,
            items=owners,
            rows_per_item=entries // owners * per_entry,
            width=width,
            payload=payload,
            named=named,
            weight=weight,
        )

    def release(self) -> None:
        """Give the memory back."""
        self.taken = []
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None

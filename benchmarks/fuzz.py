"""Damaged and hostile input to both lanes: ``python -m benchmarks.fuzz [COUNT] [SEED]``.

Half of ``COUNT`` items go as frames through the lane's reader, decoder and admission into a real
monitor, half as messages through gRPC's path behind its own framing. They are valid messages whose
fields were set to lies, whose bytes were damaged, whose payload or frame header does not fit, and pure
garbage, drawn from a seeded generator. Whatever comes must end as accepted or as refused for a reason:

- a crash is anything but a ``SidecarError``; the item is printed, and the exit status is 1;
- every item is counted: ``received = accepted + refused``, ``accepted = processed + dropped``, the items read less the hellos,
  registrations and reports that were taken are ``received``, and each refusal was told to the client;
- all memory lent for payloads comes back.

A fifth of the frames with a payload has it in a ring, whose places, lengths and bounds are lied about too.
"""

import io
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from sidecar.config import SidecarConfig
from sidecar.errors import BrokenFrame, SidecarError
from sidecar.hooks.ring import Ring
from sidecar.ingest import Destination, Ledger, Pipeline
from sidecar.ingest.lane import take_all
from sidecar.ingest.pool import BufferPool
from sidecar.ingest.ring import RingEnd
from sidecar.ingest.stream import Stream
from sidecar.monitor import Monitor
from sidecar.wire import (
    Batch,
    Frame,
    FrameKind,
    FrameReader,
    Lease,
    Refusal,
    encode_ring_frame,
)
from sidecar.wire.frames import PAYLOAD_ALIGNMENT, padding
from sidecar.wire.v1 import ingest_pb2 as pb

LIMIT = 4096
"""``ingest.message_limit_bytes`` here: small, so that items above it are cheap."""

RING = 8192
"""Bytes of the ring here: payloads above the limit do not all fit."""

ITEMS = 64
"""Most items in one stream, beside the handshake."""

GARBAGE, HANDSHAKE, HUGE, LYING = 0.05, 0.1, 0.11, 0.5
"""Cumulated shares of items: random bytes, a damaged part of a handshake, one above the limit, and a
batch with a field that lies; the rest are valid batches. A third of all batches is damaged as well."""

WIDTHS = {0: 3, 1: 8, 2: 5}
"""Layers of every stream."""

SIZES = {pb.DTYPE_F32: 4, pb.DTYPE_F16: 2, pb.DTYPE_BF16: 2}
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, -1.0, 0.5, 1.0, 1e300, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "a", "tiny", "x" * 300, "a b", "é", "\0", "../../etc", "%s%n", "\u202e", '"', "a/b@c")


@dataclass(frozen=True, slots=True)
class Item:
    """A message, and what follows it in a frame."""

    message: bytes
    payload: bytes = b""


@dataclass(slots=True)
class Outcome:
    """What became of the items of one lane.

    Attributes:
        items: Frames or messages read.
        taken: Hellos, registrations and reports that had their effect.
        accepted: Batches that went to the statistics.
        refused: The others, by reason.
        dropped: Accepted ones of which a layer was turned away there, by reason.
    """

    items: int = 0
    taken: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, int] = field(default_factory=dict)


class Sender:
    """Draws streams of items; the same seed draws the same."""

    def __init__(self, rng: random.Random, inline_ratio: float) -> None:
        """Draw from ``rng``; this share of batches has its payload inside the message."""
        self._rng = rng
        self._inline_ratio = inline_ratio
        self.ring: Any = bytearray(RING)
        self._sequence = 0

    def stream(self) -> Iterator[Item]:
        """Yield a handshake, mostly intact, and then anything."""
        self._sequence = 0
        for item in self._handshake():
            yield item if self._chance(0.95) else self._damaged(item)
        for _ in range(self._rng.randrange(1, ITEMS)):
            yield self._item()

    def frame(self, item: Item) -> bytes:
        """Return an item as a frame, the header of which is a lie now and then."""
        rng = self._rng
        if self._chance(0.01):
            return encode_ring_frame(rng.choice((*NUMBERS, RING)))
        in_ring = bool(item.payload) and self._chance(0.2)
        message = self._placed(item) if in_ring else item.message
        values = {
            "magic": b"SCLN",
            "version": 1,
            "kind": 1,
            "flags": int(in_ring),
            "message": len(message),
            "payload": len(item.payload),
        }
        if self._chance(0.02):
            name = rng.choice(list(values))
            lies = {"magic": rng.randbytes(4), "version": rng.randrange(256)}
            lies |= {"kind": rng.randrange(256), "flags": rng.choice(NUMBERS) & 0xFFFF}
            values[name] = lies.get(name, rng.choice(NUMBERS))
        head = struct.pack("<4sBBHII", *values.values())
        checksum = zlib.crc32(message, zlib.crc32(head))
        if self._chance(0.005):
            checksum ^= 1 << rng.randrange(32)
        data = head + struct.pack("<I", checksum) + message
        if in_ring:
            return data
        gap = bytes(-len(data) % PAYLOAD_ALIGNMENT if item.payload else 0)
        return data + gap + item.payload

    def _placed(self, item: Item) -> bytes:
        """Write a payload somewhere in the ring, over others; return the message that says where."""
        most = RING - len(item.payload)
        at = self._rng.randrange(most + 1) if most >= 0 else 0
        self.ring[at : at + len(item.payload)] = item.payload[:RING]
        if self._chance(0.1):
            at = self._rng.choice((*NUMBERS, RING - 1, RING, 2**63, 2**64 - 1))
        message = struct.pack("<Q", at) + item.message
        return message[: self._rng.randrange(10)] if self._chance(0.02) else message

    def bytes_of(self, items: Iterator[Item]) -> bytes:
        """Return a stream as it may lie in a socket: with garbage in it, or cut off."""
        data = bytearray()
        for item in items:
            data += self.frame(item)
            if self._chance(0.003):
                data += self._rng.randbytes(self._rng.randrange(1, 60))
        if self._chance(0.2):
            del data[self._rng.randrange(len(data)) :]
        return bytes(data)

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _handshake(self) -> Iterator[Item]:
        hello = pb.Hello(model="tiny", revision="r", client_id=f"c{self._rng.randrange(4)}")
        yield Item(pb.StreamRequest(hello=hello).SerializeToString())
        for number, width in WIDTHS.items():
            layer = pb.RegisterLayer(
                layer_id=number, layer=f"l{number}", kind=pb.FEATURE_KIND_NEURON, width=width
            )
            yield Item(pb.StreamRequest(register_layer=layer).SerializeToString())

    def _item(self) -> Item:
        rng = self._rng
        draw = rng.random()
        if draw < GARBAGE:
            return Item(rng.randbytes(rng.randrange(80)), rng.randbytes(rng.randrange(40)))
        if draw < HANDSHAKE:
            return self._damaged(rng.choice(list(self._handshake())))
        if draw < HUGE:
            return Item(rng.randbytes(rng.randrange(LIMIT, 5 * LIMIT)))
        item = self._batch(lying=draw < LYING)
        return self._damaged(item) if self._chance(0.3) else item

    def _batch(self, *, lying: bool) -> Item:
        """Return a batch that is valid but for one lie, if it shall tell one."""
        rng = self._rng
        self._sequence += 1
        rows = rng.randrange(1, 5)
        batch = pb.ActivationBatch(sequence=self._sequence)
        payloads = []
        for number in rng.sample(list(WIDTHS), rng.randrange(1, 4)):
            dtype = rng.choice(list(SIZES))
            size = rows * WIDTHS[number] * SIZES[dtype]
            batch.tensors.add(layer_id=number, dtype=dtype, shape=(rows, WIDTHS[number]))
            payloads.append(rng.randbytes(size))
        for number in range(rows):
            batch.requests.add(id=f"r{number}", weight=rng.choice((0.0, 1.0, 2.5)))
        if self._chance(0.3):
            batch.request_index.extend(sorted(rng.randrange(rows) for _ in range(rows)))
        if self._chance(0.3):
            batch.slices.add(pairs={"route": "/v1"})
            batch.requests[0].slice = 1
        if self._chance(0.3):
            batch.report.forwards = self._sequence
            batch.report.dropped["queue_full"] = 1
        inline = self._chance(self._inline_ratio)
        if inline:
            for tensor, payload in zip(batch.tensors, payloads, strict=True):
                tensor.payload = payload
        if lying:
            self._lie(batch)
        behind = b"".join(payload + padding(len(payload)) for payload in payloads)
        return Item(pb.StreamRequest(batch=batch).SerializeToString(), b"" if inline else behind)

    def _lie(self, batch: Any) -> None:
        """Set one field to what it should not be, or perhaps may."""
        rng = self._rng
        tensor, request = rng.choice(batch.tensors), rng.choice(batch.requests)
        lies: tuple[Callable[[], object], ...] = (
            lambda: setattr(batch, "sequence", rng.choice((*NUMBERS, 2**64 - 1))),
            lambda: setattr(tensor, "layer_id", rng.choice(NUMBERS)),
            lambda: setattr(tensor, "dtype", rng.choice((0, 4, 99, -1, 2**31 - 1))),
            lambda: tensor.shape.append(rng.choice(NUMBERS)),
            tensor.shape.pop,
            lambda: tensor.shape.__setitem__(rng.randrange(2), rng.choice(NUMBERS)),
            lambda: setattr(tensor, "payload", rng.randbytes(rng.randrange(80))),
            lambda: setattr(request, "id", rng.choice(TEXTS)),
            lambda: setattr(request, "slice", rng.choice(NUMBERS)),
            lambda: setattr(request, "weight", rng.choice(FLOATS[:5])),
            lambda: setattr(request, "weight", float("nan")),
            batch.requests.add,
            batch.requests.pop,
            lambda: batch.request_index.extend([rng.choice(NUMBERS)]),
            lambda: setattr(batch, "rows_per_request", rng.choice(NUMBERS)),
            lambda: batch.slices.add(pairs={rng.choice(TEXTS): rng.choice(TEXTS)}),
            lambda: batch.slices.add(pairs={f"k{i}": "v" for i in range(rng.choice((1, 9, 40)))}),
            lambda: batch.tensors.add().CopyFrom(tensor),
            lambda: batch.report.dropped.update({f"d{i}": 1 for i in range(rng.choice((1, 40)))}),
            lambda: batch.report.dropped.update({rng.choice(TEXTS): 2**64 - 1}),
            lambda: setattr(batch.report, "hook_seconds", rng.choice(FLOATS)),
            lambda: setattr(batch.report, "sampling_rate", rng.choice(FLOATS)),
        )
        rng.choice(lies)()

    def _damaged(self, item: Item) -> Item:
        """Change, remove, insert, cut or repeat some bytes of the message or the payload."""
        if item.payload and self._chance(0.3):
            return Item(item.message, self._scratched(item.payload))
        return Item(self._scratched(item.message), item.payload)

    def _scratched(self, data: bytes) -> bytes:
        rng = self._rng
        out = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(out) + 1)
            how = rng.choice(("flip", "delete", "insert", "cut", "repeat"))
            if how == "flip" and at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            elif how == "delete":
                del out[at : at + rng.randrange(1, 9)]
            elif how == "insert":
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif how == "cut":
                out[at:] = b""
            else:
                out += out[at : at + 40]
        return bytes(out)


class _Direct(Pipeline):
    """The real pipeline without its thread: it writes each batch at once."""

    def offer(self, batch: Batch, done: Callable[[], None]) -> None:
        super().offer(batch, done)
        while entry := self._pop():
            self._write(entry)


class Receiver:
    """The daemon's end of both lanes, without sockets; checks its own books after every stream."""

    def __init__(self) -> None:
        self.config = SidecarConfig.model_validate(
            {"models": [{"name": "tiny"}], "ingest": {"message_limit_bytes": LIMIT}}
        )
        self._monitor = Monitor(self.config.statistics, self.config.spike, now=0.0)
        self._ledger = Ledger(queue_limit_bytes=1 << 20, sampling_rate=1.0)
        pipeline = _Direct(
            self._monitor,
            self._ledger,
            self.config.ingest,
            clock=lambda: 0.0,
            on_events=lambda _: None,
        )
        self._to = Destination(self.config, self._monitor, pipeline, self._ledger, lambda: 0.0)
        self._pool = BufferPool(1 << 20)
        self._ring = Ring(RING)
        self.memory = self._ring.lend(RING)
        self._lent = 0
        self.outcome = Outcome()

    def take_frames(self, data: bytes) -> None:
        """Read what one connection has sent, to its end or to the frame that breaks it."""
        stream, told = self._open()
        ring = RingEnd(RING)
        ring.keep([os.dup(self._ring.descriptor)])
        ring.attach(RING.to_bytes(8, "little"))
        reader = _Counting(io.BytesIO(data).readinto, self._lease, self.outcome, ring.fetch)
        with suppress(BrokenFrame):
            take_all(reader, stream, ring.attach)
        ring.close()
        self._check(stream, told)

    def take_messages(self, items: Sequence[Item]) -> None:
        """Read the messages of one gRPC stream."""
        stream, told = self._open()
        for item in items:
            self.outcome.items += 1
            stream.take(item.message)
        self._check(stream, told)

    def close(self) -> None:
        """Give the ring back."""
        self._ring.close()

    def _open(self) -> tuple["_Recorded", Counter[str]]:
        told: Counter[str] = Counter()
        return _Recorded(self._to, told, self.outcome), told

    def _lease(self, size: int) -> Lease:
        lease = self._pool.lease(size)
        self._lent += 1

        def release() -> None:
            self._lent -= 1
            lease.release()

        return Lease(lease.view, release)

    def _check(self, stream: "_Recorded", told: Counter[str]) -> None:
        """Raise ``AssertionError`` if an item is missing in the books."""
        stream.drain()
        counts, outcome = self._ledger.counts(), self.outcome
        outcome.accepted, outcome.dropped = counts.accepted, dict(counts.dropped)
        outcome.refused += told
        expected = {
            "received = accepted + refused": (
                counts.received,
                counts.accepted + sum(counts.refused.values()),
            ),
            "accepted = processed + dropped": (
                counts.accepted,
                counts.processed + sum(counts.dropped.values()),
            ),
            "crashes in the statistics": (0, counts.dropped.get(SidecarError.reason, 0)),
            "items = received + taken": (outcome.items, counts.received + outcome.taken),
            "refused = told": (dict(counts.refused), dict(outcome.refused)),
            "memory lent": (0, self._lent),
        }
        for law, (left, right) in expected.items():
            if left != right:
                raise AssertionError(f"{law}: {left} is not {right}")


class _Counting(FrameReader):
    """Counts frames, those it refuses included."""

    def __init__(
        self, receive: Any, lease: Callable[[int], Lease], outcome: Outcome, fetch: Any
    ) -> None:
        super().__init__(
            receive,
            kind=FrameKind.REQUEST,
            limit_bytes=LIMIT,
            lease=lease,
            fetch=fetch,
        )
        self._outcome = outcome

    def read(self) -> Frame | None:
        """Return the next frame, counted."""
        self._outcome.items += 1
        frame = super().read()
        if frame is None:
            self._outcome.items -= 1
        return frame


class _Recorded(Stream):
    """Counts what it takes that is no batch, and what it tells the client."""

    def __init__(self, destination: Destination, told: Counter[str], outcome: Outcome) -> None:
        super().__init__(destination, self.drain)
        self._told, self._outcome = told, outcome

    def admit(self, message: Any, release: Callable[[], None] = lambda: None) -> bool:
        """Admit a message, and count it if it was no batch and had its effect."""
        before = sum(self._told.values())
        taken = super().admit(message, release)
        self.drain()
        if not isinstance(message, Batch) and sum(self._told.values()) == before:
            self._outcome.taken += 1
        return taken

    def drain(self) -> None:
        """Note every refusal that is told."""
        self._told.update(a.reason for a in self.answers() if isinstance(a, Refusal))


def fuzz(count: int, seed: int) -> dict[str, Outcome]:
    """Send ``count`` items, half to each lane.

    Raises:
        Exception: What the daemon's code raised, with the item noted; AssertionError: its books are
            wrong.
    """
    with closing(Receiver()) as frames, closing(Receiver()) as messages:
        # Reproducible on purpose.
        sender = Sender(random.Random(seed), inline_ratio=0.1)  # noqa: S311
        sender.ring = frames.memory
        while frames.outcome.items < count // 2:
            data = sender.bytes_of(sender.stream())
            _noted(frames.take_frames, data)
        sender = Sender(random.Random(seed + 1), inline_ratio=0.9)  # noqa: S311
        while messages.outcome.items < count // 2:
            _noted(messages.take_messages, list(sender.stream()))
    return {"frames": frames.outcome, "messages": messages.outcome}


def _noted(take: Callable[[Any], None], given: object) -> None:
    try:
        take(given)
    except Exception as error:
        error.add_note(f"given: {given!r}")
        raise


def main(count: int, seed: int) -> int:
    """Run, print what happened, and return the exit status."""
    started = time.process_time()
    try:
        found = fuzz(count, seed)
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        print(f"crashed with seed {seed}: {error!r}\n" + "\n".join(error.__notes__))
        return 1
    for lane, outcome in found.items():
        refused = sum(outcome.refused.values())
        print(
            f"{lane}: {outcome.items:,} read = {outcome.taken:,} hellos, registrations and reports "
            f"+ {outcome.accepted:,} batches accepted + {refused:,} refused"
        )
        for reason, times in outcome.refused.most_common():
            print(f"  {reason:<22}{times:>10,}")
        for reason, times in sorted(outcome.dropped.items()):
            print(f"  accepted, then dropped: {reason} {times:,}")
    total = sum(outcome.items for outcome in found.values())
    print(f"0 crashes in {total:,}, seed {seed}, {time.process_time() - started:.0f} s of CPU")
    return 0


if __name__ == "__main__":
    given = [int(argument.replace("_", "")) for argument in sys.argv[1:]]
    sys.exit(main(*[*given, *(20_000, 0)[len(given) :]]))

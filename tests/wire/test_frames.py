import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import (
    BrokenFrame,
    MalformedMessage,
    MessageTooLarge,
    PayloadMismatch,
    SidecarError,
    TruncatedFrame,
    UnsupportedVersion,
)
from sidecar.features import FeatureKind, LayerKey, Request, View
from sidecar.wire import (
    Batch,
    FrameKind,
    FrameReader,
    Hello,
    Lease,
    OutgoingBatch,
    OutgoingTensor,
    RegisterLayer,
    StreamDecoder,
    Welcome,
    decode_response,
    decode_ring_frame,
    encode_request,
    encode_request_frame,
    encode_response_frame,
    encode_ring_frame,
)
from sidecar.wire.frames import (
    AHEAD_BYTES,
    ALIGNMENT,
    HEADER_BYTES,
    MAGIC,
    PAYLOAD_ALIGNMENT,
    encode_frame,
)

pytestmark = pytest.mark.unit

LIMIT = 1000
DTYPES = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2")}


def reader(data: bytes, kind: FrameKind = FrameKind.REQUEST, limit: int = LIMIT) -> FrameReader:
    """Return a reader of these bytes."""
    return FrameReader(io.BytesIO(data).readinto, kind=kind, limit_bytes=limit)


def joined(message: bytes, *payload: bytes, kind: FrameKind = FrameKind.REQUEST) -> bytes:
    """Return a whole frame."""
    return b"".join(encode_frame(kind, message, payload))


@given(st.lists(st.tuples(st.binary(max_size=50), st.lists(st.binary(max_size=20), max_size=4))))
def test_frames_come_out_as_they_went_in(frames: list[tuple[bytes, list[bytes]]]) -> None:
    """Messages and payloads arrive in order, however many follow one another."""
    source = reader(b"".join(joined(message, *payload) for message, payload in frames))

    for message, payload in frames:
        frame = source.read()
        assert frame is not None
        assert message == frame.message
        at = 0
        for tensor in payload:
            assert tensor == bytes(frame.payload[at : at + len(tensor)])
            at += -(-len(tensor) // ALIGNMENT) * ALIGNMENT
        assert at == frame.payload.nbytes
    assert source.read() is None


def test_the_layout_is_what_the_document_says() -> None:
    """The bytes of a frame are part of the protocol: a change of them is a new version."""
    expected = "53434c4e010100000200000008000000ed14ce886869" + 42 * "00" + "0102030000000000"

    assert expected == joined(b"hi", b"\1\2\3").hex()
    assert 20 == HEADER_BYTES


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=9))
def test_a_payload_begins_where_copies_are_fast(message: bytes, payload: bytes) -> None:
    """Its place in the frame is aligned; a frame without a payload is not filled up."""
    whole, without = joined(message, payload), joined(message)

    assert whole.endswith(payload + bytes(-len(payload) % ALIGNMENT))
    assert (len(whole) - len(payload) - (-len(payload) % ALIGNMENT)) % PAYLOAD_ALIGNMENT == 0
    assert len(without) == HEADER_BYTES + len(message)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_any_flipped_bit_of_header_or_message_is_noticed(
    message: bytes, data: st.DataObject
) -> None:
    """A CRC finds every error of one bit, so a reader that lost its place does not go on."""
    frame = bytearray(joined(message, b"payload!"))
    bit = data.draw(st.integers(0, 8 * (HEADER_BYTES + len(message)) - 1))
    frame[bit // 8] ^= 1 << bit % 8

    with pytest.raises(BrokenFrame):
        reader(bytes(frame)).read()


def test_every_truncation_is_noticed() -> None:
    """Only an end between two frames is an end."""
    whole = joined(b"message", b"payload")
    for length in range(1, len(whole)):
        with pytest.raises(TruncatedFrame):
            reader(whole[:length]).read()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (joined(b"x", kind=FrameKind.RESPONSE), MalformedMessage),
        (joined(bytes(LIMIT + 1)), MessageTooLarge),
        (joined(b"x", bytes(LIMIT)), MessageTooLarge),
        (joined(bytes(3 * LIMIT), bytes(LIMIT)), MessageTooLarge),
    ],
)
def test_what_can_be_passed_over_is(data: bytes, error: type[SidecarError]) -> None:
    """The next frame is read as if the refused one had not been there."""
    source = reader(data + joined(b"next"))

    with pytest.raises(error):
        source.read()
    frame = source.read()
    assert frame is not None
    assert b"next" == frame.message


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(20), BrokenFrame),
        (MAGIC + b"\2" + joined(b"x")[5:], UnsupportedVersion),
        (joined(bytes(4 * LIMIT), b"x"), BrokenFrame),
        (joined(bytes(2 * LIMIT))[:-1] + b"\1", BrokenFrame),
    ],
)
def test_what_has_no_trusted_end_breaks_the_stream(data: bytes, error: type[SidecarError]) -> None:
    """Another protocol, another version, an absurd length, or a checksum that is wrong."""
    with pytest.raises(error):
        reader(data).read()


def test_a_claimed_length_allocates_nothing_before_it_is_believed() -> None:
    """A header of 20 bytes cannot make a reader take gigabytes."""
    lent: list[int] = []

    def lease(size: int) -> Lease:
        lent.append(size)
        return Lease(memoryview(bytearray(size)), lambda: None)

    head = joined(b"x", bytes(100))[:8] + b"\xff" * 12
    source = FrameReader(
        io.BytesIO(head).readinto, kind=FrameKind.REQUEST, limit_bytes=LIMIT, lease=lease
    )

    with pytest.raises(BrokenFrame):
        source.read()
    assert [] == lent


def test_memory_is_given_back_when_the_payload_does_not_come() -> None:
    """A lease ends with its frame, whole or not."""
    released: list[bool] = []

    def lease(size: int) -> Lease:
        return Lease(memoryview(bytearray(size)), lambda: released.append(True))

    cut = joined(b"x", bytes(100))[:-1]
    source = FrameReader(
        io.BytesIO(cut).readinto, kind=FrameKind.REQUEST, limit_bytes=LIMIT, lease=lease
    )

    with pytest.raises(TruncatedFrame):
        source.read()
    assert [True] == released


def test_patience_is_for_frames_and_not_for_silence() -> None:
    """Time-outs between two frames mean nothing; inside one they end it."""
    now = [0.0]
    frame = joined(b"x")
    script: list[bytes | None] = [None, None, frame[:5], frame[5:20], frame[20:], frame[:5], None]

    def receive(view: memoryview) -> int:
        now[0] += 20.0
        piece = script.pop(0)
        if piece is None:
            raise BlockingIOError
        view[: len(piece)] = piece
        return len(piece)

    source = FrameReader(
        receive,
        kind=FrameKind.REQUEST,
        limit_bytes=LIMIT,
        clock=lambda: now[0],
        patience_seconds=50.0,
    )

    found = source.read()
    assert found is not None
    assert b"x" == found.message
    with pytest.raises(TruncatedFrame):
        source.read()


def test_a_dripping_peer_is_given_up() -> None:
    """Every byte in time is not a frame in time."""
    now = [0.0]
    data = io.BytesIO(joined(b"message"))

    def receive(view: memoryview) -> int:
        now[0] += 1.0
        return data.readinto(view[:1])

    source = FrameReader(
        receive,
        kind=FrameKind.REQUEST,
        limit_bytes=LIMIT,
        clock=lambda: now[0],
        patience_seconds=10.0,
    )

    with pytest.raises(TruncatedFrame):
        source.read()


@pytest.mark.parametrize("most", [1, 7, AHEAD_BYTES, 1 << 20])
def test_what_was_read_ahead_is_not_lost(most: int) -> None:
    """Small frames that come together, and the beginning of a payload, are read in one call."""
    frames = [(bytes(n), bytes([n]) * (3 * n)) for n in (0, 1, 200, 3, 240)]
    source = io.BytesIO(b"".join(joined(message, payload) for message, payload in frames))
    pieces = FrameReader(
        lambda view: source.readinto(view[:most]), kind=FrameKind.REQUEST, limit_bytes=LIMIT
    )

    for message, payload in frames:
        frame = pieces.read()
        assert frame is not None
        assert message == frame.message
        assert payload == bytes(frame.payload[: len(payload)])
    assert not pieces.begun
    assert pieces.read() is None


def test_answers_travel_in_frames_too() -> None:
    """The daemon's side of a stream has the same layout."""
    welcome = Welcome(1000, 2000, 0.5)

    frame = reader(encode_response_frame(welcome), FrameKind.RESPONSE).read()

    assert frame is not None
    assert welcome == decode_response(frame.message)


# -- one codec --------------------------------------------------------------------------------------


def ready(widths: list[int]) -> StreamDecoder:
    """Return a decoder that knows a layer for each width."""
    stream = StreamDecoder()
    stream.decode(encode_request(Hello("m", "r")))
    for number, width in enumerate(widths):
        key = LayerKey("m", "r", f"layer.{number}", FeatureKind.NEURON, View.RAW)
        stream.decode(encode_request(RegisterLayer(number, key, width)))
    return stream


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(1, 9)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_both_forms_of_a_batch_decode_to_equal_values(
    rows: int, layers: list[tuple[str, int]], random: "np.random.Generator"
) -> None:
    """Payload inside the message or behind it: the same arrays, bit by bit, in the dtype sent."""
    tensors = tuple(
        OutgoingTensor(
            number,
            dtype,
            (rows, width),
            bytes(random.getrandbits(8) for _ in range(rows * width * DTYPES[dtype].itemsize)),
        )
        for number, (dtype, width) in enumerate(layers)
    )
    outgoing = OutgoingBatch(1, tensors, tuple(Request(f"r{i}") for i in range(rows)))
    frame = reader(b"".join(encode_request_frame(outgoing)), limit=1 << 20).read()
    assert frame is not None

    widths = [width for _, width in layers]
    inline = ready(widths).decode(encode_request(outgoing))
    behind = ready(widths).decode(frame.message, frame.payload)

    assert isinstance(inline, Batch)
    assert isinstance(behind, Batch)
    assert (inline.requests, inline.payload_bytes) == (behind.requests, behind.payload_bytes)
    for tensor, one, two in zip(tensors, inline.samples, behind.samples, strict=True):
        assert DTYPES[tensor.dtype] == one.values.dtype == two.values.dtype
        assert tensor.payload == one.values.tobytes() == two.values.tobytes()
        assert two.values.flags.aligned
        assert not two.values.flags.writeable
        assert np.shares_memory(two.values, np.frombuffer(frame.payload, np.uint8))


@pytest.mark.parametrize("size", [0, 8, 15, 24])
def test_a_payload_that_does_not_fit_the_tensors_is_refused(size: int) -> None:
    """Missing bytes and bytes that belong to nothing are both lies about a length."""
    tensor = OutgoingTensor(0, "f32", (2, 2), b"")
    message = encode_request(OutgoingBatch(1, (tensor,), (Request(), Request())))

    with pytest.raises(PayloadMismatch) as caught:
        ready([2]).decode(message, memoryview(bytes(size)))
    assert 1 == caught.value.sequence


def test_only_a_batch_has_a_payload() -> None:
    """Bytes behind anything else are refused, and the message has no effect."""
    stream = StreamDecoder()

    with pytest.raises(MalformedMessage):
        stream.decode(encode_request(Hello("m", "r")), memoryview(b"12345678"))
    assert stream.hello is None


# -- payloads in a ring -----------------------------------------------------------------------------

RING = bytes(range(256))


def from_ring(data: bytes, limit: int = LIMIT) -> FrameReader:
    """Return a reader that has a ring of 256 bytes."""

    def fetch(offset: int, view: memoryview) -> None:
        if offset + len(view) > len(RING):
            raise MalformedMessage("outside")
        view[:] = RING[offset : offset + len(view)]

    source = io.BytesIO(data).readinto
    return FrameReader(source, kind=FrameKind.REQUEST, limit_bytes=limit, fetch=fetch)


def placed(message: bytes, offset: int, size: int) -> bytes:
    """Return a frame whose payload lies in the ring."""
    payload = [bytes(size)]
    return b"".join(encode_frame(FrameKind.REQUEST, message, payload, lambda *_: offset))


def test_a_payload_may_lie_in_a_ring() -> None:
    """Nothing of it follows the frame, whose layout is part of the protocol."""
    expected = (
        "53434c4e01010100" + "0a000000" + "08000000" + "fba99245" + "6400000000000000" + "6869"
    )
    frame = from_ring(placed(b"hi", 100, 3) + joined(b"next")).read()

    assert expected == placed(b"hi", 100, 3).hex()
    assert frame is not None
    assert (b"hi", RING[100:108]) == (frame.message, bytes(frame.payload))


@pytest.mark.parametrize(
    ("data", "reader_of"),
    [
        (placed(b"x", 250, 8), from_ring),
        (placed(b"x", 2**64 - 1, 8), from_ring),
        (placed(b"x", 0, 8), reader),
        (placed(bytes(LIMIT), 0, 8), from_ring),
        (placed(b"x", 0, LIMIT + 8), from_ring),
    ],
)
def test_a_frame_whose_payload_is_not_there_is_passed_over(data: bytes, reader_of: Any) -> None:
    """Outside the ring, without one, or above the limit: the next frame begins behind the message."""
    source = reader_of(data + joined(b"next"))

    with pytest.raises((MalformedMessage, MessageTooLarge)):
        source.read()
    assert b"next" == source.read().message


def test_the_ring_itself_is_spoken_of_in_numbers() -> None:
    """A size or a count, in a frame of its own kind, whoever reads."""
    for kind in (FrameKind.REQUEST, FrameKind.RESPONSE):
        frame = reader(encode_ring_frame(1 << 40), kind).read()
        assert frame is not None
        assert (FrameKind.RING, 1 << 40) == (frame.kind, decode_ring_frame(frame.message))
    for wrong in (b"", bytes(7), bytes(9)):
        with pytest.raises(MalformedMessage, match="8"):
            decode_ring_frame(wrong)

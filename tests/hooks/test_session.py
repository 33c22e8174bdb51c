from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.hooks.account import Account
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.queue import ByteQueue
from sidecar.hooks.session import BURST_MESSAGES, REPORT_SECONDS, Registry, Session, Timing
from sidecar.wire import (
    Acknowledgement,
    Batch,
    Hello,
    HookReport,
    OutgoingBatch,
    Refusal,
    RegisterLayer,
    Steering,
    StreamDecoder,
    Welcome,
    encode_request,
    encode_response,
)

pytestmark = pytest.mark.unit

Rows = Callable[..., TappedRows]
Make = Callable[..., ForwardBatch]
HELLO = Hello("tiny", "rev", client_id="host-1")


class Stream:
    """A session without a transport: the test is the network, and holds the clock."""

    def __init__(self, *, welcome: Welcome | None = None, timing: Timing | None = None) -> None:
        self.now = 1000.0
        self.account = Account()
        self.queue = ByteQueue(1 << 20, self.account)
        self.registry = Registry()
        self.rates: list[float] = []
        self.cancelled: list[bool] = []
        self.decoder = StreamDecoder()
        self.timing = timing or Timing(welcome=0.0)
        self.session = self.open()
        self.welcome = welcome or Welcome(1 << 20, 1 << 20, 0.5)

    def open(self) -> Session:
        """Start a new stream of the same process."""
        session = Session(
            HELLO,
            self.registry,
            self.queue,
            self.account,
            clock=lambda: self.now,
            timing=self.timing,
            rate=lambda: 0.25,
            on_rate=self.rates.append,
        )
        session.bind(lambda: self.cancelled.append(True))
        return session

    def offer(self, batch: ForwardBatch) -> None:
        """Let a forward pass hand its batch over."""
        self.queue.offer(batch, self.now)

    def next(self) -> Any:
        """Return the next message as the daemon reads it."""
        return self.decoder.decode(encode_request(next(self.session)))

    def say(self, value: Any) -> None:
        """Let the daemon say something."""
        self.session.receive(encode_response(value))

    def greet(self) -> None:
        """Do the handshake."""
        assert self.next() == HELLO
        self.say(self.welcome)


def test_a_stream_says_hello_registers_and_sends(tapped: Rows, forward_batch: Make) -> None:
    """Hello first; after the welcome each layer is registered right before its first rows."""
    stream = Stream()
    stream.greet()
    for _ in range(2):
        stream.offer(forward_batch(tapped("a"), tapped("b")))

    messages = [stream.next() for _ in range(4)]

    assert [RegisterLayer, RegisterLayer, Batch, Batch] == [type(m) for m in messages]
    assert ["a", "b"] == [message.layer.layer for message in messages[:2]]
    assert [1, 2] == [message.sequence for message in messages[2:]]
    assert messages[2].report.batches_sent == 0


def test_a_new_stream_registers_everything_again(tapped: Rows, forward_batch: Make) -> None:
    """After a reconnect the daemon hears of all layers before any batch, and numbers start at 1."""
    stream = Stream()
    stream.greet()
    stream.offer(forward_batch(tapped("a"), tapped("b")))
    for _ in range(3):
        stream.next()
    stream.session.end()
    stream.session, stream.decoder = stream.open(), StreamDecoder()
    stream.greet()
    stream.offer(forward_batch(tapped("b")))

    messages = [stream.next() for _ in range(3)]

    assert ["a", "b"] == [message.layer.layer for message in messages[:2]]
    assert messages[2].sequence == 1


def test_without_credit_batches_are_dropped_and_counted(tapped: Rows, forward_batch: Make) -> None:
    """Unacknowledged payload never exceeds the credit; an acknowledgement gives it back."""
    stream = Stream(welcome=Welcome(60, 1 << 20, 1.0))  # two batches of 24 bytes
    stream.greet()
    for _ in range(3):
        stream.offer(forward_batch(tapped()))
    sent = [stream.next() for _ in range(3)]
    stream.queue.close()

    assert [RegisterLayer, Batch, Batch] == [type(message) for message in sent]
    assert stream.next().dropped == {"no_credit": 1}  # the last word, owed since the second batch
    with pytest.raises(StopIteration):
        next(stream.session)
    assert stream.queue.pending == 0


@pytest.mark.parametrize(
    "answer", [Acknowledgement(1, 30), Refusal(1, "SC202", "payload_mismatch", "wrong")]
)
def test_settled_batches_give_their_credit_back(
    tapped: Rows, forward_batch: Make, answer: Any
) -> None:
    """An acknowledgement or a refusal of the batch makes room for the next."""
    stream = Stream(welcome=Welcome(30, 1 << 20, 1.0))
    stream.greet()
    stream.offer(forward_batch(tapped()))
    stream.next()
    stream.next()

    stream.say(answer)
    stream.offer(forward_batch(tapped()))

    assert stream.next().sequence == 2
    assert stream.account.dropped == {}


def test_credit_follows_every_acknowledgement(tapped: Rows, forward_batch: Make) -> None:
    """A daemon under load shrinks the credit with its next answer."""
    stream = Stream()
    stream.greet()
    stream.offer(forward_batch(tapped()))
    stream.next()
    stream.next()

    stream.say(Acknowledgement(1, 10))
    stream.offer(forward_batch(tapped()))
    stream.queue.close()

    with pytest.raises(StopIteration):
        next(stream.session)
    assert stream.account.dropped == {"no_credit": 1}


def test_messages_keep_to_the_daemons_limit(tapped: Rows, forward_batch: Make) -> None:
    """A batch is cut to the welcome's message limit, and sent once as far as the books go."""
    stream = Stream(welcome=Welcome(1 << 20, 2000, 1.0))
    stream.greet()
    stream.offer(forward_batch(tapped(items=64, width=20)))

    stream.queue.close()

    messages = [encode_request(message) for message in stream.session]

    assert len(messages) > 2
    assert max(map(len, messages)) <= 2000
    assert stream.account.report(1.0).batches_sent == 1


def test_a_row_above_the_limit_is_dropped_as_too_large(tapped: Rows, forward_batch: Make) -> None:
    """What cannot be cut is counted, and the stream goes on."""
    stream = Stream(welcome=Welcome(1 << 20, 2000, 1.0))
    stream.greet()
    stream.offer(forward_batch(tapped("wide", items=1, width=5000)))
    stream.offer(forward_batch(tapped("narrow")))

    messages = [stream.next(), stream.next()]

    assert [RegisterLayer, Batch] == [type(message) for message in messages]
    assert stream.account.dropped == {"too_large": 1}


def test_a_batch_is_sent_whole_or_not_at_all(tapped: Rows, forward_batch: Make) -> None:
    """When its second message cannot be made, the first is not sent from memory that went back."""
    released: list[bool] = []
    stream = Stream()
    stream.greet()
    stream.offer(forward_batch(tapped("b", width=3)))
    stream.next(), stream.next()
    wrong = tapped("b", items=1, width=4)
    stream.offer(forward_batch(tapped("a"), wrong, release=lambda: released.append(True)))
    stream.offer(forward_batch(tapped("c")))

    layers = [stream.next(), stream.next()]
    batch = stream.next()

    assert ["a", "c"] == [message.layer.layer for message in layers]
    assert 2 == batch.sequence
    assert [True] == released
    assert stream.account.dropped == {"error": 1}


def test_a_batch_is_sent_when_the_next_message_is_asked_for(forward_batch: Make) -> None:
    """Until then its memory belongs to the transport, which may send it without a copy."""
    stream = Stream()
    stream.greet()
    released: list[bool] = []
    stream.offer(forward_batch(release=lambda: released.append(True)))
    stream.next()
    stream.next()
    before = list(released), stream.account.report(1.0).batches_sent, stream.queue.pending
    stream.queue.close()

    assert list(stream.session) == []
    assert ([], 0, 1) == before
    assert ([True], 1, 0) == (
        released,
        stream.account.report(1.0).batches_sent,
        stream.queue.pending,
    )


def test_a_batch_that_was_not_sent_whole_is_lost(forward_batch: Make) -> None:
    """A connection that breaks in the middle of a message costs that batch, and its memory goes back."""
    stream = Stream()
    stream.greet()
    released: list[bool] = []
    stream.offer(forward_batch(release=lambda: released.append(True)))
    stream.next()
    stream.next()

    stream.session.finish()

    assert [True] == released
    assert {"disconnected": 1} == stream.account.dropped
    assert 0 == stream.queue.pending


def test_what_waits_is_sent_in_one_burst(forward_batch: Make) -> None:
    """Batches at hand go together, in order; they count as sent when the next burst is asked for."""
    stream = Stream()
    stream.greet()
    released: list[int] = []
    for n in range(3):
        stream.offer(forward_batch(release=lambda n=n: released.append(n)))
    bursts = stream.session.bursts()

    burst = next(bursts)
    before = list(released), stream.account.report(1.0).batches_sent, stream.queue.pending
    stream.queue.close()
    rest = list(bursts)

    messages = [stream.decoder.decode(encode_request(message)) for message in burst]
    assert [RegisterLayer, Batch, Batch, Batch] == [type(message) for message in messages]
    assert [1, 2, 3] == [message.sequence for message in messages if isinstance(message, Batch)]
    assert ([], 0, 3) == before
    assert [[HookReport]] == [[type(message) for message in one] for one in rest]
    assert ([0, 1, 2], 3, 0) == (
        released,
        stream.account.report(1.0).batches_sent,
        stream.queue.pending,
    )


@pytest.mark.parametrize(
    ("held_bytes", "credit_bytes", "count", "together"),
    [
        (100_000, 1 << 20, 5, 2),  # a quarter of the queue's MiB is room for two
        (24, 200_000, 5, 1),  # less credit than a burst may need: one by one, as without bursts
        (24, 1 << 20, 100, BURST_MESSAGES - 1),  # and the registration
    ],
)
def test_a_burst_is_bounded(
    forward_batch: Make, held_bytes: int, credit_bytes: int, count: int, together: int
) -> None:
    """A burst takes a part of the queue, no credit that may be missing, and so many messages."""
    stream = Stream(welcome=Welcome(credit_bytes, 1 << 20, 0.5))
    stream.greet()
    for _ in range(count):
        stream.offer(forward_batch(held_bytes=held_bytes))

    burst = next(stream.session.bursts())

    assert together == len([message for message in burst if isinstance(message, OutgoingBatch)])
    assert stream.queue.pending == count
    assert stream.account.dropped == {}


def test_a_burst_that_was_not_sent_whole_is_lost(forward_batch: Make) -> None:
    """Every batch of it is counted, and its memory goes back; what still waits stays."""
    stream = Stream()
    stream.greet()
    released: list[int] = []
    for n in range(3):
        batch = forward_batch(held_bytes=100_000, release=lambda n=n: released.append(n))
        stream.offer(batch)
    next(stream.session.bursts())

    stream.session.finish()

    assert [0, 1] == released
    assert {"disconnected": 2} == stream.account.dropped
    assert 1 == stream.queue.pending


def test_a_bad_batch_leaves_the_rest_of_its_burst_alone(forward_batch: Make) -> None:
    """One that cannot be staged is dropped from the middle of a burst, and only that one."""
    stream = Stream()
    stream.greet()
    released: list[str] = []

    def broken() -> tuple[TappedRows, ...]:
        raise RuntimeError("device lost")

    stream.offer(forward_batch(release=lambda: released.append("first")))
    stream.offer(ForwardBatch(broken, held_bytes=1, release=lambda: released.append("broken")))
    stream.offer(forward_batch(release=lambda: released.append("last")))

    burst = next(stream.session.bursts())

    assert [1, 2] == [message.sequence for message in burst if isinstance(message, OutgoingBatch)]
    assert ["broken"] == released
    assert stream.account.dropped == {"error": 1}


def test_a_batch_that_cannot_be_staged_is_counted(forward_batch: Make) -> None:
    """An error on the way off the device costs that batch and nothing else."""
    stream = Stream()
    stream.greet()

    def broken() -> tuple[TappedRows, ...]:
        raise RuntimeError("device lost")

    stream.offer(ForwardBatch(broken, held_bytes=1))
    stream.offer(forward_batch())

    assert isinstance(stream.next(), RegisterLayer)
    assert stream.account.dropped == {"error": 1}
    assert stream.account.report(1.0).errors == 1


def test_old_batches_are_not_sent(forward_batch: Make) -> None:
    """Rows that waited through an outage would be counted in a window they do not belong to."""
    stream = Stream()
    stream.offer(forward_batch())
    stream.now += stream.timing.stale + 1
    stream.greet()
    stream.offer(forward_batch())

    assert [RegisterLayer, Batch] == [type(stream.next()), type(stream.next())]
    assert stream.account.dropped == {"disconnected": 1}


def test_the_daemon_steers_the_rate() -> None:
    """Welcome and steering both set the rate, 0 included."""
    stream = Stream()
    stream.greet()

    stream.say(Steering(0.0, "overload"))

    assert stream.rates == [0.5, 0.0]


def test_reports_are_sent_when_there_are_no_batches() -> None:
    """A silent server's books still reach the daemon."""
    stream = Stream()
    stream.greet()
    stream.now += stream.timing.report
    stream.account.sampled(0.5, 0.1, 0.25)

    report = stream.next()

    assert isinstance(report, HookReport)
    assert (1, 1, 0.5, 0.1, 0.25) == (
        report.forwards,
        report.sampled_forwards,
        report.forward_seconds,
        report.hook_seconds,
        report.sampling_rate,
    )


def test_a_busy_stream_gives_an_account_of_itself_now_and_then(
    tapped: Rows, forward_batch: Make
) -> None:
    """The first batch has a report and the next ones none, until the last report is old enough."""
    stream = Stream()
    stream.greet()
    for _ in range(4):
        stream.offer(forward_batch(tapped()))

    batches = [stream.next() for _ in range(3)][1:]
    stream.now += REPORT_SECONDS
    batches += [stream.next(), stream.next()]

    sent = [batch.report and batch.report.batches_sent for batch in batches]
    assert [0, None, 2, None] == sent


def test_what_went_without_a_report_is_reported_when_no_batch_follows(
    tapped: Rows, forward_batch: Make
) -> None:
    """A burst's last batches do not wait for the long interval, nor for another burst."""
    stream = Stream()
    stream.greet()
    for _ in range(2):
        stream.offer(forward_batch(tapped()))
    for _ in range(3):
        stream.next()
    stream.now += REPORT_SECONDS

    assert stream.next().batches_sent == 2


def test_a_daemon_that_never_answers_ends_the_stream() -> None:
    """Without a welcome nothing is sent and the call is cancelled."""
    stream = Stream()
    stream.next()

    with pytest.raises(StopIteration):
        next(stream.session)
    assert stream.cancelled
    assert stream.session.ended


def test_a_daemon_that_stops_acknowledging_is_taken_for_dead(forward_batch: Make) -> None:
    """After the stall time the stream is cancelled, so that another can be opened."""
    stream = Stream()
    stream.greet()
    stream.offer(forward_batch())
    stream.next()
    stream.next()
    stream.now += stream.timing.stall

    with pytest.raises(StopIteration):
        next(stream.session)
    assert stream.cancelled


def test_a_refused_hello_ends_the_stream() -> None:
    """An unknown model gets no second message."""
    stream = Stream()
    stream.next()

    stream.say(Refusal(0, "SC401", "unknown_model", "lite9 is not configured"))

    with pytest.raises(StopIteration):
        next(stream.session)
    assert stream.session.refusals == {"SC401": 1}


def test_a_call_bound_after_the_end_is_cancelled() -> None:
    """Whichever comes first, the end or the call, the call does not go on."""
    stream = Stream()
    stream.session.end()
    cancelled: list[bool] = []

    stream.session.bind(lambda: cancelled.append(True))

    assert cancelled == [True]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_answer_can_break_the_stream(forward_batch: Make, answers: list[bytes]) -> None:
    """Whatever the other side says, the stream ends in order and the batch is accounted for."""
    stream = Stream()
    stream.greet()
    stream.offer(forward_batch())
    stream.queue.close()

    for answer in answers:
        stream.session.receive(answer)
    messages = list(stream.session)

    report = stream.account.report(1.0)
    assert len(messages) in (0, 2)
    assert report.batches_sent + sum(report.dropped.values()) + stream.queue.pending == 1
